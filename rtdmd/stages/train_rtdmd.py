"""`rtdmd train_rtdmd`: stage two, reward-tilted distribution matching (`rtdmd.train.rtdmd`).

Reads stage one's generator and fake score, the teacher, the text cache and the rewards; writes the averaged stage-two
adapter, which sits on top of stage one's, the curves, what the watch saw, and what the scorers were.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rtdmd.backbones import load_backbone
from rtdmd.backbones.protocol import Conditioning
from rtdmd.pipeline.stage import Stage
from rtdmd.rewards.reward_models import load_rewards
from rtdmd.train.adapters import merge_stage_one
from rtdmd.train.distributed.ranks import Ranks, open_stage_on_all_ranks
from rtdmd.train.engine.diagnostics import require_signal
from rtdmd.train.engine.image_log import ImageLog
from rtdmd.train.engine.journal import write_curves
from rtdmd.train.engine.loop import Loop, Stateful
from rtdmd.train.engine.preflight import check_machine, preflight
from rtdmd.train.engine.trackers import RunningTracker, start_trackers
from rtdmd.train.engine.validation import Validation
from rtdmd.train.engine.watch import Watch, write_watched
from rtdmd.train.losses import Draws
from rtdmd.train.prompts import TrainingPrompts
from rtdmd.train.rtdmd import NAME, RtdmdTrainer, open_adapters
from rtdmd.train.student_record import read_student


def run(root: Path = Path(".")) -> None:
    """Run the stage in ``root``."""
    with (
        open_stage_on_all_ranks(NAME, root) as (stage, ranks),
        start_trackers(stage.run_dir, stage.values, ranks) as trackers,
    ):
        check_machine(stage, ranks)
        train(stage, ranks, trackers)


def open_trainer(stage: Stage, ranks: Ranks, null: Conditioning) -> RtdmdTrainer:
    """The trainer of a run: stage one's generator frozen below a new adapter (``stage_one_adapters``), stage one's fake
    score, which goes on or is below a new one too (``fake_adapter``), and the rewards."""
    params = stage.params
    backbone = load_backbone(params.model, text=False, vae=True, device=ranks.device, root=stage.root)
    adapters = open_adapters(params, backbone)
    for adapter, name in (("acdmd", "generator"), ("fake", "fake")):
        path = f"results/train_acdmd/{name}.safetensors"
        tensors = read_student(stage.input(path), params, path)
        adapters.load(adapter, tensors, path)
        if adapter == "acdmd" and adapters.full:
            adapters.load("rtdmd", tensors, path)
    merge_stage_one(adapters, params)
    rewards = load_rewards(params.train_rtdmd.rewards, ranks.device, stage.root)
    return RtdmdTrainer(params, backbone, rewards, null, ranks, adapters)


def train(stage: Stage, ranks: Ranks, trackers: Sequence[RunningTracker]) -> None:
    """Reinforce the stage-one generator, resuming from the run folder where it holds a checkpoint."""
    p = stage.params.train_rtdmd
    validation_prompts = p.validation.prompts if p.validation.every else 0
    with ranks.sync_errors():
        prompts = TrainingPrompts.open(stage, ranks.device, p, validation_prompts)
        records = prompts.records + prompts.validation_prompts
        for reward in p.rewards:
            reward.require_scorable([one["prompt"] for one in records], [one["metadata"] for one in records])
        trainer = open_trainer(stage, ranks, prompts.cache.null())
        watch = Watch.open(stage, trainer, prompts.cache)
    adapters = trainer.adapters
    backbone = trainer.backbone
    if adapters.full and ranks.main:
        print(f"{NAME}: {adapters.cost()}", file=sys.stderr)
    if p.sharding != "none":
        adapters.shard(ranks, p.base_shards(ranks.world))
    held_out = prompts.conditioning(prompts.validation_prompts) if validation_prompts else None
    validation = Validation(p.validation, trainer, prompts.validation_prompts, held_out)
    saved: dict[str, Stateful] = dict(trainer.learners)
    saved |= {"validation": validation} if validation_prompts else {}
    image_log = ImageLog(p.image_log_every, stage.run_dir, stage.params, adapters, backbone, prompts, trainer.sigmas)
    loop = Loop(
        stage.run_dir,
        p.epochs,
        p.save_every,
        p.log_every,
        saved,
        NAME,
        "epoch",
        ranks,
        p.keep,
        should_stop=validation.should_stop,
        trackers=trackers,
    )
    preflight(stage, ranks, list(trainer.learners.values()), p.keep)
    local = ranks.local_shard(p.prompts_per_epoch)
    images = tuple(range(local.start * p.group_size, local.stop * p.group_size))

    for step in loop:
        chosen = prompts.batch(step, p.prompts_per_epoch, NAME)[local.start : local.stop]
        records = [record for record in chosen for _ in range(p.group_size)]
        draws = Draws(stage.seed, NAME, step, images, backbone.latent_shape(), ranks.device)
        try:
            values = watch.before(step) | validation.before(step)
            values |= trainer.step(prompts.conditioning(chosen).to("cpu"), records, draws)
            values |= validation.after(step + 1) | watch.after(step + 1)
            loop.log(step, values, images=p.prompts_per_epoch * p.group_size)
            with ranks.sync_errors():
                if ranks.main:
                    require_signal(loop.journal, p)
                    image_log.after(step + 1)
        except FloatingPointError as error:
            raise loop.fault(step, error) from error

    if ranks.main:
        trainer.write_outputs(stage, validation.restore_best())
        write_curves(loop.rows, stage.output("curves.csv"))
        write_watched(loop.journal, stage)
        image_log.write(len(loop.journal.lines), stage.output("image_log.zip"))
