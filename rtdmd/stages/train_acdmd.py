"""`rtdmd train_acdmd`: stage one, Ambient-Consistent Distribution Matching Distillation (`rtdmd.train.acdmd`).

Reads the teacher, the text cache, the training prompts and, where the stage is watched, the evaluation's and the
scorers; writes the EMA generator, the fake score, curves and what the watch saw.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rtdmd.backbones import load_backbone
from rtdmd.pipeline.stage import Stage
from rtdmd.train.acdmd import NAME, AcdmdTrainer
from rtdmd.train.distributed.ranks import Ranks, open_stage_on_all_ranks
from rtdmd.train.engine.image_log import ImageLog
from rtdmd.train.engine.journal import write_curves
from rtdmd.train.engine.loop import Loop
from rtdmd.train.engine.preflight import check_machine, preflight
from rtdmd.train.engine.trackers import RunningTracker, start_trackers
from rtdmd.train.engine.watch import Watch, write_watched
from rtdmd.train.losses import Draws
from rtdmd.train.prompts import TrainingPrompts


def run(root: Path = Path(".")) -> None:
    """Run the stage in ``root``."""
    with (
        open_stage_on_all_ranks(NAME, root) as (stage, ranks),
        start_trackers(stage.run_dir, stage.values, ranks) as trackers,
    ):
        check_machine(stage, ranks)
        train(stage, ranks, trackers)


def train(stage: Stage, ranks: Ranks, trackers: Sequence[RunningTracker]) -> None:
    """Train generator and fake score, resuming from the run folder where it holds a checkpoint."""
    params = stage.params
    p = stage.params.train_acdmd
    with ranks.sync_errors():
        prompts = TrainingPrompts.open(stage, ranks.device, p)
        drawn = p.image_log_every > 0 or p.watch.every > 0
        backbone = load_backbone(params.model, text=False, vae=drawn, device=ranks.device, root=stage.root)
        trainer = AcdmdTrainer(params, backbone, prompts.cache.null(), ranks)
        watch = Watch.open(stage, trainer, prompts.cache)
    if p.iterations == 0 and ranks.main:
        print(
            f"{NAME}: iterations: 0, nothing is trained: the student is {params.model.of_student().teacher} itself",
            file=sys.stderr,
        )
    if trainer.adapters.full and ranks.main:
        print(f"{NAME}: {trainer.adapters.cost()}", file=sys.stderr)
    if p.sharding != "none":
        trainer.adapters.shard(ranks, p.base_shards(ranks.world))
    learners = {"generator": trainer.generator, **trainer.fakes}
    image_log = ImageLog(p.image_log_every, stage.run_dir, params, trainer.adapters, backbone, prompts, trainer.sigmas)
    loop = Loop(
        stage.run_dir,
        p.iterations,
        p.save_every,
        p.log_every,
        learners,
        NAME,
        "iteration",
        ranks,
        p.keep,
        trackers=trackers,
    )
    preflight(stage, ranks, [trainer.generator, trainer.fakes["fake"]], p.keep)
    local = ranks.local_shard(p.batch_size)

    for step in loop:
        cond = prompts.conditioning(prompts.batch(step, p.batch_size, NAME)[local.start : local.stop])
        draws = Draws(stage.seed, NAME, step, tuple(local), backbone.latent_shape(), ranks.device)
        try:
            values = watch.before(step) | trainer.step(cond, draws)
            loop.log(step, values | watch.after(step + 1), images=p.batch_size)
            if ranks.main:
                image_log.after(step + 1)
        except FloatingPointError as error:
            raise loop.fault(step, error) from error

    if ranks.main:
        trainer.write_outputs(stage)
        write_curves(loop.rows, stage.output("curves.csv"), first=[loop.unit])
        write_watched(loop.journal, stage)
        image_log.write(len(loop.journal.lines), stage.output("image_log.zip"))
