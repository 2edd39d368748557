"""The pictures of docs/proved.md: 2-D clouds against ellipses of the exact laws. Same samples, same bytes."""

from __future__ import annotations

import io
import math
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from rtdmd.files import write_atomic
from rtdmd.oracle.mixture import Mixture

POINTS = 1200
COLOURS = ("#3b6ea8", "#b8562f")  # one a prompt


def draw_clouds(clouds: dict[str, Tensor], teacher: Mixture, target: Mixture, path: Path) -> None:
    """One panel a cloud (n, 2) of samples for prompts 0, 1, ..., 0, 1, ...: dashed ellipses hold 86 % of the teacher's
    law, solid ones 86 % of the target (two standard deviations)."""
    figure = Figure(figsize=(3.2 * len(clouds), 3.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(clouds), squeeze=False, sharex=True, sharey=True)[0]
    for panel, (name, samples) in zip(panels, clouds.items(), strict=True):
        for prompt in range(teacher.prompts):
            own = samples[prompt :: teacher.prompts][:POINTS]
            panel.scatter(own[:, 0], own[:, 1], s=2, color=COLOURS[prompt % 2], alpha=0.35, linewidths=0)
            _ellipse(panel, teacher, prompt, "--")
            _ellipse(panel, target, prompt, "-")
        panel.set_title(name, fontsize=9)
        panel.set_aspect("equal")
        panel.tick_params(labelsize=7)
    panels[0].plot([], [], "k--", linewidth=1, label="teacher")
    panels[0].plot([], [], "k-", linewidth=1, label="fixed point")
    panels[0].legend(fontsize=7, loc="upper left")
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    write_atomic(path, data.getvalue())


def _ellipse(panel: Axes, law: Mixture, prompt: int, style: str) -> None:
    """Two standard deviations around each component of a prompt's law."""
    angle = torch.linspace(0, 2 * math.pi, 100, dtype=torch.float64)
    circle = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    for mean, covariance in zip(law.means[prompt], law.covariances[prompt], strict=True):
        line = mean + 2 * circle @ torch.linalg.cholesky(covariance).T
        panel.plot(line[:, 0], line[:, 1], "k" + style, linewidth=1)
