"""The pictures of docs/verification.md: 2-D clouds against ellipses of the exact distributions. Same samples, same
bytes."""

from __future__ import annotations

import io
import math
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from rtdmd.common.files import write_atomic
from rtdmd.oracle.mixture import Mixture

POINTS = 800
STYLES = ("--", ":", "-")
COLOURS = ("#3b6ea8", "#b8562f")  # one a prompt


def draw_clouds(clouds: dict[str, Tensor], mixtures: dict[str, Mixture], path: Path) -> None:
    """One panel a cloud (n, 2) of samples for prompts 0, 1, ..., 0, 1, ..., under the ellipses of up to three named
    distributions, drawn dashed, dotted and solid, that hold 86 % of each (two standard deviations)."""
    figure = Figure(figsize=(3.2 * len(clouds), 2.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(clouds), squeeze=False, sharex=True, sharey=True)[0]
    for panel, (name, samples) in zip(panels, clouds.items(), strict=True):
        prompts = next(iter(mixtures.values())).prompts
        for prompt in range(prompts):
            own = samples[prompt::prompts][:POINTS]
            panel.scatter(own[:, 0], own[:, 1], s=2, color=COLOURS[prompt % 2], alpha=0.35, linewidths=0)
            for mixture, style in zip(mixtures.values(), STYLES, strict=False):
                _ellipse(panel, mixture, prompt, style)
        panel.set_title(name, fontsize=9)
        panel.set_aspect("equal")
        panel.tick_params(labelsize=7)
    for name, style in zip(mixtures, STYLES, strict=False):
        panels[-1].plot([], [], "k" + style, linewidth=1, label=name)
    panels[-1].legend(fontsize=7, loc="upper right")
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    write_atomic(path, data.getvalue())


def _ellipse(panel: Axes, mixture: Mixture, prompt: int, style: str) -> None:
    """Two standard deviations around each component of a prompt's distribution."""
    angle = torch.linspace(0, 2 * math.pi, 100, dtype=torch.float64)
    circle = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    for mean, covariance in zip(mixture.means[prompt], mixture.covariances[prompt], strict=True):
        line = mean + 2 * circle @ torch.linalg.cholesky(covariance).T
        panel.plot(line[:, 0], line[:, 1], "k" + style, linewidth=1)
