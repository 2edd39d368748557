"""The table at the end of a rehearsal: what each stage exercised, and what stays unproved."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rtdmd.common.columns import table
from rtdmd.common.files import read_json
from rtdmd.config import Params
from rtdmd.rehearse.hub import Hub
from rtdmd.rehearse.hub_store import DATASETS
from rtdmd.rehearse.stand_in import StandIn


class Row(NamedTuple):
    """One stage: what it did, wall time and time of processors [s], and the largest memory of its processes together
    [MB]; None: not measured."""

    stage: str
    exercised: str
    seconds: float | None
    cpu: float | None
    megabytes: float | None


def measured(folder: Path, stage: str) -> tuple[float, float | None, float | None] | None:
    """Wall time [s], time of processors [s] and peak memory [MB] of a stage as Snakemake measured it; None where the
    stage did not run."""
    path = folder / "benchmarks" / f"{stage}.tsv"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as file:
        last = list(csv.DictReader(file, delimiter="\t"))[-1]
    return float(last["s"]), _number(last["cpu_time"]), _number(last["max_rss"])


def _number(text: str) -> float | None:
    """A figure of Snakemake's, which writes `-` or `NA` for what ended before it looked."""
    return None if text in ("-", "NA") else float(text)


def exercised(params: Params, folder: Path) -> dict[str, str]:
    """By stage, what the reduced ``params`` had it do, in a few words."""
    one = params.train_acdmd
    two = params.train_rtdmd
    judged = params.evaluate
    sides = sorted({suite.resolution or params.model.resolution for suite in judged.suites})
    summary = folder / "results/prepare_prompts/summary.json"
    files = read_json(summary)["files"] if summary.is_file() else {}
    prompts = ", ".join(f"{made['prompts']} in {name}" for name, made in files.items())
    bases = "teacher and student's base" if params.model.student is not None else "teacher"
    return {
        "prepare_prompts": f"{_count(len(params.training_sets), 'set')} to train on,"
        f" {_count(len(params.evaluation_sets), 'set')} to judge on: {prompts}",
        "cache_teacher": f"text encoders, {params.cache_teacher.mode.replace('_', ' ')}",
        "train_acdmd": f"{bases}; {one.iterations} updates of {one.batch_size} prompts, the generator's every"
        f" {one.generator_every}{_apart(one.processes, one.sharding)}",
        "train_rtdmd": f"{_count(len(two.rewards), 'reward')} ({', '.join(r.name for r in two.rewards)});"
        f" {two.epochs} rollouts of {two.prompts_per_epoch} x {two.group_size} images"
        f"{_apart(two.processes, two.sharding)}",
        "evaluate": f"{_count(len(judged.models), 'model')} on {_count(len(judged.suites), 'suite')} by"
        f" {_count(len(judged.rewards), 'scorer')}, {' and '.join(map(str, sides))} pixels",
        "report": "the page",
        "publish": f"format {params.publish.format}: card, gate in a fresh process of plain diffusers",
        "upload": f"shown for {params.publish.repo_id}, nothing sent",
    }


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _apart(processes: int, sharding: str) -> str:
    shared = ", base sharded" if sharding != "none" else ""
    return "" if processes == 1 else f"; {processes} processes{shared}"


def table_text(rows: Sequence[Row]) -> str:
    """Columns aligned: stage, what was exercised, time, time of processors, peak memory."""
    cells = [("stage", "exercised", "time", "CPU", "peak memory")]
    for row in rows:
        memory = None if row.megabytes is None else row.megabytes / 1000
        figures = (_figure(row.seconds, ".0f", "s"), _figure(row.cpu, ".0f", "s"), _figure(memory, ".2f", "GB"))
        cells.append((row.stage, row.exercised, *figures))
    cpu = sum(row.cpu for row in rows if row.cpu is not None)
    seconds = sum(row.seconds for row in rows if row.seconds is not None)
    cells.append(("all", "", _figure(seconds, ".0f", "s"), _figure(cpu, ".0f", "s"), ""))
    return table(cells, left=(0, 1))


def _figure(value: float | None, form: str, unit: str) -> str:
    return "-" if value is None else f"{value:{form}} {unit}"


def downloads_text(hub: Hub) -> str:
    """What a real run would fetch: files by repository, and those that were sent more than once."""
    if not hub.fetched:
        return "downloads: none"
    by_repo = Counter(fetch.repo for fetch in hub.fetched)
    lying = {repo: sum(len(files) for _, _, files in hub.repos[repo].commits.values()) for repo in by_repo}
    repos = ", ".join(
        f"{repo.removeprefix(DATASETS)} {count} of {lying[repo]}" for repo, count in sorted(by_repo.items())
    )
    lines = [f"downloads: {by_repo.total()} files of {len(by_repo)} repositories ({repos})"]
    lines += [f"  {one.path} of {one.repo} was fetched {n} times" for one, n in sorted(hub.fetched.items()) if n > 1]
    never = sorted(set(hub.repos) - set(by_repo))
    lines += [f"  {repo} was never read" for repo in never]
    return "\n".join(lines)


def unproved_text(stand_ins: Iterable[StandIn], used: Sequence[str]) -> str:
    """What stays open without the real files: one line for each stand-in."""
    lines = ["unproved without the real files:"]
    lines += [f"  {one.repo}: {one.departs}" for one in stand_ins if one.repo not in used]
    return "\n".join(lines)


def silent_text(params: Params, folder: Path) -> str:
    """A line where the policy gradient ran on advantages that were all zero: a stand-in's random scores may be equal
    for every image of a prompt, as counts of objects are, and say nothing about those of the real scorer. Else none."""
    curves = folder / "results/train_rtdmd/curves.csv"
    if params.train_rtdmd.weights.policy == 0 or not curves.is_file():
        return ""
    with curves.open(encoding="utf-8") as file:
        if any(float(row["advantage_std"]) for row in csv.DictReader(file)):
            return ""
    seen = [reward.name for reward in params.train_rtdmd.rewards if reward.policy is not False]
    return (
        f"\n  the policy gradient: the stand-ins of {', '.join(seen)} distinguished no two images of a prompt, so every"
        " advantage was zero"
    )


def access_text(stand_ins: Iterable[StandIn], *, has_token: bool) -> str:
    """The gated repositories and the pages on which to ask for access. has_token: whether a token of the Hub is set on
    this machine; what it may read the Hub alone can say."""
    token = (
        "a token is set here; what it may read was not asked" if has_token else "no token is set here: `hf auth login`"
    )
    lines = [f"to ask for before the real run ({token}):"]
    lines += [
        f"  {one.repo} is gated: accept its terms on https://huggingface.co/{one.repo}"
        for one in stand_ins
        if one.gated
    ]
    return "\n".join(lines)
