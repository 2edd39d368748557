"""What rewards and the order of prompts need of the prompts, compared with what their sources can ever have.

`rtdmd params check`, Snakemake's start and the stages themselves say it: without this the first score, hours later,
would. A file may hold any metadata and tags, unless it is a .txt, which has a prompt per line and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from rtdmd.common.errors import UserError
from rtdmd.config.tree import Params
from rtdmd.prompts.registration import FileParams, SourceParams
from rtdmd.prompts.registry import SOURCES
from rtdmd.rewards.registration import RewardParams

Sets = Mapping[str, Sequence[SourceParams]]


def scored_sets(params: Params, only: str | None = None) -> Iterator[tuple[str, str, Sequence[RewardParams]]]:
    """Of every list of rewards that scores a set of prompts, of all stages or of the stage ``only``: the setting that
    has it, the set, the rewards."""
    if only in (None, "train_rtdmd"):
        yield "train_rtdmd.rewards", params.train_rtdmd.prompts, params.train_rtdmd.rewards
    for section, judging in params.judging.items():
        if only not in (None, section.partition(".")[0]):
            continue
        for suite in judging.suites:
            yield f"{section}.suites: {suite.name}: rewards", suite.prompts, suite.scorers(judging.rewards)


def check_prompts(params: Params, only: str | None = None) -> None:
    """UserError for a reward or an order that the prompts cannot serve, of all stages or of the stage ``only``."""
    one = params.train_acdmd
    two = params.train_rtdmd
    sets = params.prepare_prompts.sets
    if only in (None, "train_acdmd"):
        _check_order("train_acdmd.prompt_order", one.prompt_order, one.prompts, sets)
    if only in (None, "train_rtdmd"):
        _check_order("train_rtdmd.prompt_order", two.prompt_order, two.prompts, sets)
    for key, name, rewards in scored_sets(params, only):
        _check_rewards(key, rewards, name, sets)


def _check_rewards(key: str, rewards: Sequence[RewardParams], name: str, sets: Sets) -> None:
    """UserError for the first reward that cannot score the prompts of one of the sources of the set ``name``, whatever
    is in its file."""
    for reward in rewards:
        if not (reward.needs_metadata or reward.needs_text):
            continue
        for number, source in enumerate(sets[name]):
            if not _can_serve(source, reward):
                needed = "metadata" if reward.needs_metadata else "a quoted text"
                makers = ", ".join(name for name, one in SOURCES.items() if reward.name in one.provides)
                raise UserError(
                    f"params.yaml: {key}: {reward.name} needs {needed}, which prepare_prompts.sets.{name}[{number}]"
                    f" ({_called(source)}) never has; allowed: without {reward.name}, or prompts of {makers}, or of a"
                    " .jsonl file that has it (docs/configuration.md)"
                )


def _check_order(key: str, order: str, name: str, sets: Sets) -> None:
    """UserError where the prompts of the set ``name`` should come by tag, and a source of them never has tags."""
    if order != "by_tag":
        return
    for number, source in enumerate(sets[name]):
        if _bare(source) and not SOURCES[source.name].sets_tags:
            raise UserError(
                f"params.yaml: {key}: by_tag needs tags, which prepare_prompts.sets.{name}[{number}]"
                f" ({_called(source)}) never has; allowed: uniform, or prompts with tags (docs/configuration.md)"
            )


def _can_serve(source: SourceParams, reward: RewardParams) -> bool:
    if reward.name in SOURCES[source.name].provides:
        return True
    return isinstance(source, FileParams) and (reward.needs_text or not _bare(source))


def _bare(source: SourceParams) -> bool:
    """Whether it is a file of prompts alone."""
    return isinstance(source, FileParams) and PurePosixPath(source.path).suffix == ".txt"


def _called(source: SourceParams) -> str:
    return f"{source.name}, {source.path}" if isinstance(source, FileParams) else source.name
