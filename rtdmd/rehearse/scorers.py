"""Stand-ins of the scorers' models: what every source of every entry names, in the layout in which it is published.

A new scorer brings its own (`rtdmd.rewards.registration.Source.stand_in`); those of the scorers of this package take
pages and are in rtdmd/rehearse/reward_models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from rtdmd.common.errors import UserError
from rtdmd.common.model_files import WORLD_FOLDER
from rtdmd.config import Params
from rtdmd.pipeline.model_inputs import ModelInput, groups_of_run, model_inputs
from rtdmd.rehearse.reward_models.aesthetic import write_predictor
from rtdmd.rehearse.reward_models.clip import write_pickscore, write_vit_h, write_vit_l
from rtdmd.rehearse.reward_models.geneval import write_detector
from rtdmd.rehearse.reward_models.geneval2 import write_qwen3vl
from rtdmd.rehearse.reward_models.hpsv3 import write_hpsv3
from rtdmd.rehearse.reward_models.imagereward import write_bert, write_imagereward
from rtdmd.rehearse.reward_models.open_clip import write_hps
from rtdmd.rehearse.reward_models.qwenvl import write_qwen2vl
from rtdmd.rehearse.stand_in import StandIn
from rtdmd.rewards.registry import REWARDS

Writer = Callable[[Path], object]

WRITERS: Mapping[str, Mapping[str, Writer]] = {
    "clipscore": {"model": write_vit_l},
    "pickscore": {"model": write_pickscore, "base": write_vit_h},
    "hpsv2": {"model": write_hps, "base": write_vit_h},
    "aesthetic": {"model": write_predictor, "base": write_vit_l},
    "imagereward": {"model": write_imagereward, "base": write_bert},
    "hpsv3": {"model": write_hpsv3, "base": write_qwen2vl},
    "geneval": {"model": write_detector, "colour_model": write_vit_l},
    "geneval2": {"model": write_qwen3vl},
}
"""Scorer -> key of its entry -> who writes what it names."""


def writer(name: str, source: str) -> Writer:
    """Who writes a tiny model for the key ``source`` of a scorer's entry. UserError where the scorer has none."""
    own = REWARDS[name].settings.sources[source].stand_in
    found = own or WRITERS.get(name, {}).get(source)
    if found is None:
        raise UserError(
            f"rewards: {name}: {source}: rtdmd/rewards/scorers/{name}.py has no stand-in to rehearse with; give its"
            " Source a stand_in (docs/extending.md)"
        )
    return found


def stand_ins(params: Params) -> list[StandIn]:
    """Of the models of every scorer that params.yaml names, and of the model behind distances and diversity.

    One for each repository and commit, whoever names it. What needs none: the embedded world's own, a folder outside
    the checkout, which is used as it is, and what a scorer behind a socket reads.
    """
    named: dict[tuple[str, str | None], list[ModelInput]] = {}
    groups = groups_of_run(params)
    for model in model_inputs(params):
        scorer = model.reward is not None or model.place == "features_model"
        if scorer and model.group in groups and not _is_at_hand(model):
            place = model.name if model.revision is not None else PurePosixPath(model.name).as_posix()
            named.setdefault((place, model.revision), []).append(model)
    return [_stand_in(place, revision, models) for (place, revision), models in named.items()]


def _is_at_hand(model: ModelInput) -> bool:
    """Whether a folder is read where it lies."""
    path = PurePosixPath(model.name)
    outside = path.is_absolute() or ".." in path.parts
    return model.revision is None and (outside or path.is_relative_to(WORLD_FOLDER))


def _stand_in(place: str, revision: str | None, models: list[ModelInput]) -> StandIn:
    wanted = {_writer_of(model) for model in models}
    # a repository that two keys take for different models: whole models first, then what asks for another configuration
    writers = sorted(wanted, key=lambda one: (one is write_vit_h, one.__module__, one.__name__))

    def write(folder: Path) -> None:
        for one in writers:
            one(folder)

    readers = ", ".join(dict.fromkeys(PurePosixPath(model.place).name.partition(".")[0] for model in models))
    departs = f"its weights are random and tiny: no score, second or GiB of {readers} is foretold"
    return StandIn(place, revision, "model", False, write, departs)


def _writer_of(model: ModelInput) -> Writer:
    if model.reward is None:
        return write_vit_l
    return writer(model.reward.name, model.place.partition(".")[2])
