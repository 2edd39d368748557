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

if TYPE_CHECKING:
    from rtdmd.config import ModelParams, Params
    from rtdmd.config.results import SuiteParams
    from rtdmd.config.suites import SetParams
    from rtdmd.config.training import TrainingParams

REPOSITORY = "rehearsal/student"
RATE = 1e-3
SMALLEST = 64  # pixels: a model that draws this is not reduced
REDUCED = {
    "run.device": "cpu where there is no GPU",
    "run.threads": "1",
    "run.gpus_per_node": "null: one machine rehearses",
    "model.resolution": "a sixteenth, 32 at least, a multiple of 16; 64 and below as it is",
    "model.width": "as model.resolution",
    "model.teacher_steps": "at most 2",
    "adapter.rank": "at most 4",
    "adapter.alpha": "in proportion to the rank",
    "cache_teacher.batch_size": "at most 4",
    "train_acdmd.recipe": "custom: the section was held to it before",
    "train_acdmd.iterations": "two updates of the generator",
    "train_acdmd.generator_every": "at most 2",
    "train_acdmd.warmup": "at most 1",
    "train_acdmd.batch_size": "at most 4",
    "train_acdmd.micro_batch": "half of a process's batch where it was less than all of it",
    "train_rtdmd.recipe": "custom: the section was held to it before",
    "train_rtdmd.epochs": "2",
    "train_rtdmd.prompts_per_epoch": "at most 2",
    "train_rtdmd.group_size": "at most 2",
    "train_rtdmd.fake_batch_size": "in proportion to the rollout",
    "train_rtdmd.last_step_batch_size": "in proportion to the rollout",
    "train_rtdmd.micro_batch": "half of a process's images where it was less than all of them",
    "train_rtdmd.ema_every": "at most 2",
    "train_rtdmd.annealing.epochs": "at most 2",
    "train_rtdmd.validation.every": "at most 1",
    "train_rtdmd.validation.prompts": "at most 2",
    "train_rtdmd.validation.images": "at most 2",
    "evaluate.batch_size": "at most 4",
    "evaluate.suites.images_per_tag": "at most 1",
    "evaluate.suites.images_per_prompt": "at most 2",
    "evaluate.suites.max_prompts": "at most 2",
    "evaluate.suites.reference_images": "at most 24",
    "evaluate.suites.teacher_images": "at most 24",
    "evaluate.suites.resolution": "as model.resolution",
    "report.grid_prompts": "at most 2",
    "publish.repo_id": f"{REPOSITORY} where there is none, so that an upload can be shown",
    "publish.dry_run": "true",
}
"""Key -> what becomes of it; those of both training stages are in `REDUCED_IN_BOTH`."""
REDUCED_IN_BOTH = {
    "processes": "at most 2",
    "shard_group": "at most the processes",
    "save_every": "half of the steps at most",
    "image_log_every": "at most 1",
    "log_every": "1",
    "generator_optimizer.lr": f"{RATE:g} at least, so that the gate sees the student after so few steps",
    "fake_optimizer.lr": f"{RATE:g} at least",
    "watch.every": "at most the number of steps",
    "watch.max_prompts": "at most 2",
    "watch.images": "1",
    "watch.suites.resolution": "as model.resolution",
}
REDUCED |= {f"{stage}.{key}": to for stage in ("train_acdmd", "train_rtdmd") for key, to in REDUCED_IN_BOTH.items()}


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
    model = params.model
    adapter = params.adapter
    rank = min(adapter.rank, 4)
    changes: dict[str, Any] = {
        "run": {"device": device, "threads": 1, "gpus_per_node": None},
        "model": {
            "resolution": small_side(model.resolution),
            "width": small_width(model),
            "teacher_steps": min(model.teacher_steps, 2),
        },
        "adapter": {"rank": rank, "alpha": max(1, round(adapter.alpha * rank / adapter.rank))},
        "cache_teacher": {"batch_size": min(params.cache_teacher.batch_size, 4)},
        "train_acdmd": _stage_one(params),
        "train_rtdmd": _stage_two(params),
        "evaluate": {
            "batch_size": min(params.evaluate.batch_size, 4),
            "suites": [_suite(suite) for suite in params.evaluate.suites],
        },
        "report": {"grid_prompts": min(params.report.grid_prompts, 2)},
        "publish": {"repo_id": params.publish.repo_id or REPOSITORY, "dry_run": True},
    }
    return validate(merged(params.model_dump(mode="json"), changes), "rehearsal")


def with_processes(params: Params, count: int) -> Params:
    """Both training stages in so many processes. UserError where a batch or rollout cannot be shared by them."""
    stages = {stage: {"processes": count} for stage in ("train_acdmd", "train_rtdmd")}
    changes = {"run": {"gpus_per_node": None}, **stages}
    return validate(merged(params.model_dump(mode="json"), changes), f"--processes {count}")


def small_side(resolution: int) -> int:
    """The side [pixels] that an image of ``resolution`` is rehearsed at."""
    return resolution if resolution <= SMALLEST else 16 * max(2, round(resolution / 256))


def small_width(model: ModelParams) -> int | None:
    """The width at which an image that is not square is rehearsed; None where it is square then."""
    if model.width is None or small_side(model.width) == small_side(model.resolution):
        return None
    return small_side(model.width)


def _stage_one(params: Params) -> dict[str, Any]:
    stage = params.train_acdmd
    every = min(stage.generator_every, 2)
    iterations = 2 * every if stage.iterations else 0
    processes = min(stage.processes, 2)
    batch = min(stage.batch_size, 4)
    return {
        "recipe": "custom",
        "iterations": iterations,
        "generator_every": every,
        "warmup": min(stage.warmup, 1),
        "batch_size": batch,
        "micro_batch": _micro_batch(stage.micro_batch, stage.batch_size // stage.processes, batch // processes),
        **_both(stage, processes, iterations),
    }


def _stage_two(params: Params) -> dict[str, Any]:
    stage = params.train_rtdmd
    epochs = 2
    processes = min(stage.processes, 2)
    prompts = min(stage.prompts_per_epoch, 2)
    group = min(stage.group_size, 2)
    images = prompts * group
    before = stage.prompts_per_epoch * stage.group_size
    validation = stage.validation
    return {
        "recipe": "custom",
        "epochs": epochs,
        "prompts_per_epoch": prompts,
        "group_size": group,
        "fake_batch_size": max(processes, stage.fake_batch_size * images // before),
        "last_step_batch_size": max(processes, stage.last_step_batch_size * images // before),
        "micro_batch": _micro_batch(stage.micro_batch, before // stage.processes, images // processes),
        "ema_every": min(stage.ema_every, 2),
        "annealing": {"epochs": min(stage.annealing.epochs, 2)},
        "validation": {
            "every": min(validation.every, 1),
            "prompts": min(validation.prompts, 2),
            "images": min(validation.images, 2),
        },
        **_both(stage, processes, epochs),
    }


def _both(stage: TrainingParams, processes: int, steps: int) -> dict[str, Any]:
    return {
        "processes": processes,
        "shard_group": stage.base_shards(processes) if stage.sharding == "hybrid" else None,
        "save_every": min(stage.save_every, max(1, steps // 2)),
        "image_log_every": min(stage.image_log_every, 1),
        "log_every": 1,
        "generator_optimizer": {"lr": max(stage.generator_optimizer.lr, RATE)},
        "fake_optimizer": {"lr": max(stage.fake_optimizer.lr, RATE)},
        "watch": {
            "every": min(stage.watch.every, steps),
            "max_prompts": min(stage.watch.max_prompts, 2),
            "images": 1,
            "suites": [_small_set(suite) for suite in stage.watch.suites],
        },
    }


def _micro_batch(before: int, of_process: int, now: int) -> int:
    """Half of what a process has now, where it was less than all that it had; else all."""
    return max(1, now // 2) if before < of_process else max(1, now)


def _small_set(suite: SetParams) -> dict[str, Any]:
    tree: dict[str, Any] = suite.model_dump(mode="json", exclude_unset=True)
    if suite.resolution is not None:
        tree["resolution"] = small_side(suite.resolution)
    return tree


def _suite(suite: SuiteParams) -> dict[str, Any]:
    tree = _small_set(suite)
    tree["max_prompts"] = min(suite.max_prompts or 2, 2)
    if suite.images_per_tag is not None:
        tree["images_per_tag"] = 1
    if suite.images_per_prompt is not None:
        tree["images_per_prompt"] = min(suite.images_per_prompt, 2)
    if suite.reference_images is not None:
        tree["reference_images"] = min(suite.reference_images, 24)
    if suite.teacher_images is not None:
        tree["teacher_images"] = min(suite.teacher_images, 24)
    return tree
