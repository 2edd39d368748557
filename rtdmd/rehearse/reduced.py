"""The user's params with smaller sizes: which keys, to what, and nothing else.

Names, commits, files, rewards, suites, methods, dtypes, prompt orders and modes stay. So does whether a batch is cut
into micro batches, whether processes share it, and whether an update uses all images of a rollout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rtdmd.common.pins import UNPINNED
from rtdmd.config.load import validate
from rtdmd.config.presets import merged
from rtdmd.rehearse import STAGES

if TYPE_CHECKING:
    from rtdmd.config import ModelParams, Params
    from rtdmd.config.training import TrainingParams

REPOSITORY = "rehearsal/student"
RATE = 1e-3
SMALLEST = 64  # pixels: a model that draws this is not reduced
AT_MOST = {
    "model.teacher_steps": 2,
    "adapter.rank": 4,
    "cache_teacher.batch_size": 4,
    "train_acdmd.processes": 2,
    "train_acdmd.generator_every": 2,
    "train_acdmd.warmup": 1,
    "train_acdmd.batch_size": 4,
    "train_acdmd.image_log_every": 1,
    "train_acdmd.watch.max_prompts": 2,
    "train_rtdmd.processes": 2,
    "train_rtdmd.prompts_per_epoch": 2,
    "train_rtdmd.group_size": 2,
    "train_rtdmd.ema_every": 2,
    "train_rtdmd.annealing.epochs": 2,
    "train_rtdmd.validation.every": 1,
    "train_rtdmd.validation.prompts": 2,
    "train_rtdmd.validation.images": 2,
    "train_rtdmd.image_log_every": 1,
    "train_rtdmd.watch.max_prompts": 2,
    "evaluate.batch_size": 4,
    "report.grid_prompts": 2,
}
"""Key -> the largest value that it keeps."""
SUITES_AT_MOST = {
    "images_per_tag": 1,
    "images_per_prompt": 2,
    "max_prompts": 2,
    "reference_images": 24,
    "teacher_images": 24,
}
"""The same of each suite of evaluate."""
_IN_BOTH = {
    "recipe": "custom: the section was held to it before",
    "shard_group": "at most the processes",
    "save_every": "half of the steps at most",
    "log_every": "1",
    "generator_optimizer.lr": f"{RATE:g} at least, so that the gate sees the student after so few steps",
    "fake_optimizer.lr": f"{RATE:g} at least",
    "watch.every": "at most the number of steps",
    "watch.images": "1",
    "watch.suites.resolution": "as model.resolution",
}
REDUCED = {
    "run.device": "cpu where there is no GPU",
    "run.threads": "1",
    "run.gpus_per_node": "null: one machine rehearses",
    "model.resolution": "a sixteenth, 32 at least, a multiple of 16; 64 and below as it is",
    "model.width": "as model.resolution",
    "adapter.alpha": "in proportion to the rank",
    "train_acdmd.iterations": "two updates of the generator",
    "train_acdmd.micro_batch": "half of a process's batch where it was less than all of it",
    "train_rtdmd.epochs": "2",
    "train_rtdmd.fake_batch_size": "in proportion to the rollout",
    "train_rtdmd.last_step_batch_size": "in proportion to the rollout",
    "train_rtdmd.micro_batch": "half of a process's images where it was less than all of them",
    "evaluate.suites.resolution": "as model.resolution",
    "publish.repo_id": f"{REPOSITORY} where there is none, so that an upload can be shown",
    "publish.dry_run": "true",
}
"""Key -> what becomes of it, of every key that changes."""
REDUCED |= {f"{stage}.{key}": to for stage in STAGES for key, to in _IN_BOTH.items()}
REDUCED |= {key: f"at most {most}" for key, most in AT_MOST.items()}
REDUCED |= {f"evaluate.suites.{key}": f"at most {most}" for key, most in SUITES_AT_MOST.items()}


def filled_in(params: Params) -> Params:
    """With a commit in the place of every placeholder, one for each repository."""
    tree = params.model_dump(mode="json")
    for _, section, pin in leaves(tree):
        if section[pin] == UNPINNED:
            section[pin] = hashlib.sha1(_repository_of(pin, section).encode(), usedforsecurity=False).hexdigest()
    return validate(tree, "rehearsal")


def _repository_of(pin: str, section: dict[str, Any]) -> str:
    """The repository that the ``pin`` of a section belongs to: `base_revision` to `base`, `colour_revision` to
    `colour_model`, `revision` to the model or data set itself."""
    prefix = pin.removesuffix("revision").removesuffix("_")
    names = (prefix, f"{prefix}_model") if prefix else ("teacher", "model", "repo")
    return next(str(section[name]) for name in names if section.get(name) is not None)


def leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, dictionary or list that has it, name or number there) of each value that is neither of the two."""
    numbered = isinstance(tree, list)
    for name, one in enumerate(tree) if numbered else tree.items():
        place = f"{key}[{name}]" if numbered else f"{key}.{name}".removeprefix(".")
        if isinstance(one, dict | list):
            yield from leaves(one, place)
        else:
            yield place, tree, name


def reduced(params: Params, device: str) -> Params:
    """``params`` with the keys of `REDUCED` made small; device: where this machine computes."""
    tree = params.model_dump(mode="json")
    for key, section, name in leaves(tree):
        if key in AT_MOST:
            section[name] = min(section[name], AT_MOST[key])
    for suite in tree["evaluate"]["suites"]:
        suite["max_prompts"] = suite["max_prompts"] or SUITES_AT_MOST["max_prompts"]
        suite |= {key: min(suite[key], most) for key, most in SUITES_AT_MOST.items() if suite[key] is not None}
    watched = [suite for stage in STAGES for suite in tree[stage]["watch"]["suites"]]
    for suite in [*tree["evaluate"]["suites"], *watched]:
        suite["resolution"] = suite["resolution"] and small_side(suite["resolution"])
    alpha = round(params.adapter.alpha * tree["adapter"]["rank"] / params.adapter.rank)
    changes: dict[str, Any] = {
        "run": {"device": device, "threads": 1, "gpus_per_node": None},
        "model": {"resolution": small_side(params.model.resolution), "width": small_width(params.model)},
        "adapter": {"alpha": max(1, alpha)},
        "train_acdmd": _stage_one(params, tree["train_acdmd"]),
        "train_rtdmd": _stage_two(params, tree["train_rtdmd"]),
        "publish": {"repo_id": params.publish.repo_id or REPOSITORY, "dry_run": True},
    }
    return validate(merged(tree, changes), "rehearsal")


def with_processes(params: Params, count: int) -> Params:
    """Both training stages in so many processes. UserError where a batch or rollout cannot be shared by them."""
    changes = {"run": {"gpus_per_node": None}} | {stage: {"processes": count} for stage in STAGES}
    return validate(merged(params.model_dump(mode="json"), changes), f"--processes {count}")


def small_side(resolution: int) -> int:
    """The side [pixels] that an image of ``resolution`` is rehearsed at."""
    return resolution if resolution <= SMALLEST else 16 * max(2, round(resolution / 256))


def small_width(model: ModelParams) -> int | None:
    """The width at which an image that is not square is rehearsed; None where it is square then."""
    if model.width is None or small_side(model.width) == small_side(model.resolution):
        return None
    return small_side(model.width)


def _stage_one(params: Params, small: dict[str, Any]) -> dict[str, Any]:
    """What changes beside ``small``, the stage's section with what `AT_MOST` makes of it."""
    stage = params.train_acdmd
    iterations = 2 * small["generator_every"] if stage.iterations else 0
    shares = stage.batch_size // stage.processes, small["batch_size"] // small["processes"]
    return {
        "iterations": iterations,
        "micro_batch": _micro_batch(stage.micro_batch, *shares),
        **_both(stage, small["processes"], iterations),
    }


def _stage_two(params: Params, small: dict[str, Any]) -> dict[str, Any]:
    stage = params.train_rtdmd
    epochs = 2
    processes = small["processes"]
    images = small["prompts_per_epoch"] * small["group_size"]
    before = stage.prompts_per_epoch * stage.group_size
    return {
        "epochs": epochs,
        "fake_batch_size": max(processes, stage.fake_batch_size * images // before),
        "last_step_batch_size": max(processes, stage.last_step_batch_size * images // before),
        "micro_batch": _micro_batch(stage.micro_batch, before // stage.processes, images // processes),
        **_both(stage, processes, epochs),
    }


def _both(stage: TrainingParams, processes: int, steps: int) -> dict[str, Any]:
    return {
        "recipe": "custom",
        "shard_group": stage.base_shards(processes) if stage.sharding == "hybrid" else None,
        "save_every": min(stage.save_every, max(1, steps // 2)),
        "log_every": 1,
        "generator_optimizer": {"lr": max(stage.generator_optimizer.lr, RATE)},
        "fake_optimizer": {"lr": max(stage.fake_optimizer.lr, RATE)},
        "watch": {"every": min(stage.watch.every, steps), "images": 1},
    }


def _micro_batch(before: int, of_process: int, now: int) -> int:
    """Half of what a process has now, where it was less than all that it had; else all."""
    return max(1, now // 2) if before < of_process else max(1, now)
