"""Every scorer of the registry on a tiny model in its published layout, as `rtdmd rehearse` makes it."""

from __future__ import annotations

from pathlib import Path

from rtdmd.config import RewardParams, reward_params
from rtdmd.rehearse.scorers import writer
from rtdmd.rewards.registry import REWARDS


def entry(name: str, folder: Path) -> RewardParams:
    """The params entry of a scorer whose files are written below ``folder``, a folder for each source."""
    sources = {source: folder / source for source in REWARDS[name].settings.sources}
    for source, place in sources.items():
        writer(name, source)(place)
    named = {source: str(place) for source, place in sources.items()}
    return reward_params(name=name, **named, **REWARDS[name].example)
