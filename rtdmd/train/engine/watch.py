"""The student's scores on held-out prompts while it trains (section `watch` of a training stage).

An evaluation samples the EMA generator as `rtdmd evaluate` samples the student: the same noise by prompt, few steps, no
guidance. Its figures go to the journal, to the trackers and to watched.csv, what the world's verifier read to
watched_parses.csv, and nothing anywhere else: every draw is keyed, so a run that is watched leaves the same weights and
curves as one that is not. They are part of a step's line in the journal, so that a killed run ends with the same rows
as one that ran through.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rtdmd.backbones.sampling import ImageNoise
from rtdmd.backbones.sizes import sized_backbone, suite_sizes
from rtdmd.prompts.records import by_tag, first_prompts, read_set
from rtdmd.rewards.reward_models import CPU, load_rewards
from rtdmd.train.engine.journal import WATCH_SECONDS, write_curves
from rtdmd.train.engine.student_images import ema_weights, student_images
from rtdmd.train.engine.watched_parses import keep_parses, read_images, write_watched_parses
from rtdmd.train.losses import micro_batches
from rtdmd.world.verifier import VERIFIER

if TYPE_CHECKING:
    from rtdmd.conditioning.text_cache import TextCache
    from rtdmd.config import RewardParams
    from rtdmd.pipeline.stage import Stage
    from rtdmd.prompts.records import Prompt
    from rtdmd.rewards.reward_models import Batch, RewardModels
    from rtdmd.train.engine.journal import Journal
    from rtdmd.train.engine.protocols import Trainer
    from rtdmd.train.engine.watched_parses import Row

AHEAD = 2  # batches that may wait for a slow scorer
START = "watch_start/"  # before the first step
DONE = "watch/"  # after a step


@dataclass(frozen=True)
class WatchedSuite:
    """A suite as it is drawn each time: images of prompts by index, of latents ``shape`` (C, H, W) over levels
    ``sigmas`` (K+1,)."""

    name: str
    drawn: Sequence[tuple[Prompt, int]]
    reward_models: RewardModels
    shape: tuple[int, int, int]
    sigmas: Tensor


@dataclass
class Watch:
    """The evaluations during a run; without ``suites`` there is none."""

    every: int
    trainer: Trainer
    cache: TextCache
    seed: int
    micro_batch: int
    run_dir: Path
    suites: Sequence[WatchedSuite] = ()
    _read: list[Row] = field(default_factory=list, init=False)  # of this process's images of the evaluation under way
    _seconds: float = field(default=0.0, init=False)  # of evaluations since the last line of the journal

    @staticmethod
    def open(stage: Stage, trainer: Trainer, cache: TextCache) -> Watch:
        """The watch of an open training stage, its scorers loaded and tried. UserError where one of them cannot be had,
        or a suite has no prompt or a size that the model cannot draw."""
        section = getattr(stage.params, stage.name)
        p = section.watch
        watch = Watch(p.every, trainer, cache, stage.seed, section.micro_batch, stage.run_dir)
        if not p.every:
            return watch
        model = stage.params.model
        device = trainer.ranks.device
        sizes = {model.resolution: (trainer.backbone.latent_shape(), trainer.sigmas)}
        for key, resolution in suite_sizes(stage.params, f"{stage.name}.watch"):
            if resolution not in sizes:
                sized = sized_backbone(model, resolution, key, stage.root)
                sizes[resolution] = (sized.latent_shape(), sized.sigmas(model.num_steps).to(device))
        reward_models = load_rewards([waiting(spec) for spec in p.rewards], device, stage.root)
        path = stage.input("results/prepare_prompts/eval.jsonl")
        suites = []
        for suite in p.suites:
            prompts = first_prompts(read_set(path, suite.prompts), p.max_prompts)
            in_turn = [prompt for own in by_tag(prompts) for prompt in own]
            specs = suite.scorers(p.rewards)
            for spec in specs:
                spec.require_scorable([one.prompt for one in in_turn], [one.metadata for one in in_turn])
            scorers = reward_models.only([spec.name for spec in specs])
            shape, sigmas = sizes[suite.resolution or model.resolution]
            drawn = [(prompt, index) for prompt in in_turn for index in range(p.images)]
            suites.append(WatchedSuite(suite.name, drawn, scorers, shape, sigmas))
        watch.suites = suites
        return watch

    def before(self, step: int) -> dict[str, float]:
        """Before the first step: the figures of the student that the stage starts from."""
        return self._evaluate(START, 0) if self.suites and step == 0 else {}

    def after(self, done: int) -> dict[str, float]:
        """After ``done`` steps: the figures where an evaluation is due, and how long it took."""
        found = self._evaluate(DONE, done) if self.suites and done % self.every == 0 else {}
        if self._seconds:
            found[WATCH_SECONDS] = self._seconds
            self._seconds = 0.0
        return found

    def _evaluate(self, prefix: str, number: int) -> dict[str, float]:
        began = time.perf_counter()
        self._read = []
        found = {f"{prefix}{name}": value for name, value in self.measure().items()}
        parts = self.trainer.ranks.all_gather_object(self._read)
        if self.trainer.ranks.main:
            keep_parses(self.run_dir, number, [row for part in parts for row in part])
        self._seconds += time.perf_counter() - began
        return found

    def measure(self) -> dict[str, float]:
        """``<suite>/<scorer>``: the EMA generator's mean score over tags, the same in every process."""
        ranks = self.trainer.ranks
        found = dict[str, float]()
        for suite in self.suites:
            own = ranks.local_shard(len(suite.drawn))
            scores = {name: torch.empty(0) for name in suite.reward_models.rewards}
            with ranks.sync_errors(), ema_weights(self.trainer.ema):
                if len(own):
                    with suite.reward_models.scoring(self._images(suite, own), ahead=AHEAD) as scoring:
                        scores = scoring.scores(CPU)
            tags = [prompt.tag for prompt, _ in suite.drawn]
            for name, score in scores.items():
                found[f"{suite.name}/{name}"] = tag_mean(ranks.all_gather(score), tags)
        return found

    def _images(self, suite: WatchedSuite, own: range) -> Iterator[Batch]:
        """The images of this process's share of a suite's prompts, as scorers take them."""
        for rows in micro_batches(len(own), self.micro_batch):
            drawn = suite.drawn[own[rows].start : own[rows].stop]
            prompts = [prompt for prompt, _ in drawn]
            keys = [(prompt.id, index) for prompt, index in drawn]
            noise = ImageNoise(self.seed, keys, suite.shape, self.trainer.ranks.device)
            cond = self.cache.of(prompt.prompt for prompt in prompts)
            images = student_images(self.trainer, noise, cond, suite.sigmas)
            if VERIFIER in suite.reward_models.rewards:
                self._read += read_images(suite.name, drawn, images)
            yield images, [prompt.prompt for prompt in prompts], [prompt.metadata for prompt in prompts]


def waiting(spec: RewardParams) -> RewardParams:
    """The scorer's entry, its weights off the device between two evaluations, where it has weights in this process."""
    return spec.model_copy(update={"offload": bool(spec.sources) and spec.socket is None})


def tag_mean(scores: Tensor, tags: Sequence[str | None]) -> float:
    """Mean over tags of the means of scores (N,) within each tag, as the evaluation has it."""
    own: dict[str | None, list[float]] = {}
    for score, tag in zip(scores.double().tolist(), tags, strict=True):
        own.setdefault(tag, []).append(score)
    return fmean(fmean(values) for values in own.values())


def watched_rows(journal: Journal) -> list[dict[str, Any]]:
    """A row per evaluation: after how many steps, and its figures as ``<suite>/<scorer>``."""
    rows = []
    for step in journal.steps():
        for prefix, number in ((START, 0), (DONE, step[journal.unit])):
            own = {name.removeprefix(prefix): value for name, value in step.items() if name.startswith(prefix)}
            if own:
                rows.append({journal.unit: number, **own})
    return rows


def write_watched(journal: Journal, stage: Stage) -> None:
    """The stage's watched.csv and watched_parses.csv; their heads alone where the run was not watched."""
    rows = watched_rows(journal)
    write_curves(rows, stage.output("watched.csv"), first=[journal.unit])
    numbers = [int(row[journal.unit]) for row in rows]
    write_watched_parses(stage.run_dir, journal.unit, numbers, stage.output("watched_parses.csv"))
