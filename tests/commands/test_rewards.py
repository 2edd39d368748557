"""`rtdmd rewards serve`: which entry of a scorer answers."""

from __future__ import annotations

import pytest

from rtdmd.commands.rewards import served_entry
from rtdmd.common.errors import UserError
from rtdmd.config import Params, preset
from rtdmd.config.load import validate


def with_sockets(name: str, socket: str, evaluations: str) -> Params:
    """SD3.5-M's params with a socket for a scorer wherever it is named, and another one for the evaluation's."""
    tree = preset("sd35m").model_dump(mode="json")
    sections = [tree["train_rtdmd"], tree["evaluate"], tree["train_acdmd"]["watch"], tree["train_rtdmd"]["watch"]]
    for section in sections:
        for entry in section["rewards"]:
            if entry["name"] == name:
                entry["socket"] = evaluations if section is tree["evaluate"] else socket
                entry["offload"] = None
    return validate(tree, "test")


def test_one_process_serves_the_training_and_those_that_only_judge() -> None:
    """The published settings back-propagate PickScore through another resizing than the evaluation names."""
    params = with_sockets("pickscore", "pick.sock", "pick.sock")
    trained = next(entry for entry in params.train_rtdmd.rewards if entry.name == "pickscore")
    judging = next(entry for entry in params.evaluate.rewards if entry.name == "pickscore")
    assert trained.model_dump(exclude={"weight"}) != judging.model_dump(exclude={"weight"})
    assert served_entry(params, "pickscore") == trained.model_copy(update={"weight": 1.0})


def test_entries_that_score_differently_are_not_served_by_one() -> None:
    with pytest.raises(
        UserError, match=r"^params\.yaml has 2 rewards named 'pickscore' with a socket; to serve one, give it one$"
    ):
        served_entry(with_sockets("pickscore", "pick.sock", "other.sock"), "pickscore")
    with pytest.raises(UserError, match=r"^params\.yaml has 0 rewards named 'hpsv2' with a socket"):
        served_entry(preset("sd35m"), "hpsv2")
