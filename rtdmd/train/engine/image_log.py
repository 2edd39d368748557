"""The image log: image grids of what the roles see, `image-log-00000500.png` with three rows for the same eight
prompts.

The generator's samples, then the teacher's and the fake score's estimates x̂_0 of them from one noised point. Where the
last two agree the matching term has nothing left to say; where the fake score's row is a blur it lags behind.
They are drawn into the run folder, where a tracker finds them, and end in one output, image_log.zip.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rtdmd.backbones.protocol import Backbone, Conditioning
from rtdmd.backbones.sampling import ImageNoise, sample
from rtdmd.common.errors import UserError
from rtdmd.common.images import Pixels, grid, save_png
from rtdmd.common.rng import key_seed
from rtdmd.config import Params
from rtdmd.flow.path import interpolate, x0_from_velocity
from rtdmd.train.adapters import AdapterBank
from rtdmd.train.engine.trackers import image_log_path
from rtdmd.train.prompts import TrainingPrompts

PROMPTS = 8
LEVEL = 0.7  # σ of the noised point: the layout is still open, the colours are not


@dataclass(frozen=True)
class ImageLog:
    """Image grids every ``every`` steps (0: none) in ``folder``. They draw their own noise: no training number
    changes."""

    every: int
    folder: Path
    params: Params
    bank: AdapterBank
    backbone: Backbone
    prompts: TrainingPrompts
    sigmas: Tensor

    def after(self, done: int) -> None:
        """After ``done`` steps, where an image grid is due: draw it."""
        if self.every and done % self.every == 0:
            save_png(image_log_path(self.folder, done), self.draw())

    def write(self, done: int, path: Path) -> None:
        """image_log.zip: the image grids of a run of ``done`` steps by the names that they have in the run folder, the
        same bytes for the same image grids; without a member where none was due. UserError where the run folder has
        lost one."""
        with zipfile.ZipFile(path, "w") as log:
            for number in range(self.every, done + 1, self.every) if self.every else ():
                panel = image_log_path(self.folder, number)
                if not panel.is_file():
                    raise UserError(
                        f"{panel}: the image grid after {number} steps is gone; `rm -r {self.folder}`, then run again"
                    )
                log.writestr(zipfile.ZipInfo(panel.name), panel.read_bytes())  # a PNG is compressed already

    @torch.no_grad()
    def draw(self) -> Pixels:
        """The image grid's pixels (h, w, 3)."""
        records = self.prompts.batch(0, PROMPTS, "panel")
        cond = self.prompts.conditioning(records)
        eta = self.params.model.eta
        seed = key_seed(self.params.run.seed, "panel")
        shape = self.backbone.latent_shape()
        noise = ImageNoise(seed, [(i, 0) for i in range(PROMPTS)], shape, self.sigmas.device)
        x = sample(lambda *point: self.bank.velocity("generator", *point), noise, cond, self.sigmas, eta)
        level = torch.full((PROMPTS,), LEVEL, device=x.device)
        x_t = interpolate(x, noise.transition(len(self.sigmas)), level)
        rows = [x, self._estimate("teacher", x_t, level, cond), self._estimate("fake", x_t, level, cond)]
        captions = [f"{name}: {r['prompt']}" for name in ("generator", "teacher", "fake score") for r in records]
        return grid(torch.cat([self.backbone.decode(row) for row in rows]), PROMPTS, captions)

    def _estimate(self, role: str, x_t: Tensor, level: Tensor, cond: Conditioning) -> Tensor:
        guided = {"guidance": self.params.model.guidance, "null": self.prompts.cache.null()}
        v = self.bank.velocity(role, x_t, level, cond, **(guided if role == "teacher" else {}))  # type: ignore[arg-type]
        return x0_from_velocity(x_t, v, level)
