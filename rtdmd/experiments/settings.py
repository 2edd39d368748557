"""The parameters of a run: its preset, what the tables say of it, and what this cluster adds
(workflow/experiments.yaml)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rtdmd.common.errors import UserError
from rtdmd.common.section import Section, param
from rtdmd.config import NOTES, PRESETS, Params
from rtdmd.config.load import load_settings, validate
from rtdmd.config.presets import merged
from rtdmd.config.real import scorer, suite
from rtdmd.config.render import params_text
from rtdmd.experiments import RUNS, TABLES, find_run, models_of
from rtdmd.experiments._table import Run
from rtdmd.methods import find_method

LOCAL = Path("workflow/experiments.yaml")
Named = dict[str, dict[str, Any]]


class Local(Section):
    """What this cluster adds to the runs."""

    params: dict[str, Any] = param("sections laid over every run", source="ours")
    presets: Named = param("sections laid over the runs of a preset, by its name", source="ours")
    scorers: Named = param("keys of a scorer wherever it stands, by its name", source="ours")
    sources: Named = param("keys of the sources of a set of prompts, by the set's name", source="ours")
    suites: Named = param("keys of a suite of evaluation, by its name", source="ours")


def load_local(root: Path = Path(".")) -> Local:
    """workflow/experiments.yaml of ``root``. UserError where it is missing or not allowed."""
    local = load_settings(Local, root / LOCAL, str(LOCAL))
    for name in local.presets:
        if name not in PRESETS:
            raise UserError(f"{LOCAL}: presets: {name!r} is unknown; allowed: {', '.join(PRESETS)}")
    sets = list(dict.fromkeys(name for tree in PRESETS.values() for name in tree["prepare_prompts"]["sets"]))
    for name in local.sources:
        if name not in sets:
            raise UserError(f"{LOCAL}: sources: no set of prompts is named {name!r}; allowed: {', '.join(sets)}")
    return local


def run_params(run: Run, local: Local) -> Params:
    """The whole tree of a run. UserError where what is laid over the preset does not fit."""
    tree = merged(PRESETS[run.preset], evaluation(run))
    if run.method is not None:
        tree = merged(tree, find_method(run.method).changes())
    for changes in (dict(run.changes), local.params, local.presets.get(run.preset, {})):
        tree = merged(tree, changes)
    return validate(_with_keys(tree, local), f"experiment {run.name}, with {LOCAL}")


def evaluation(run: Run) -> dict[str, Any]:
    """What is judged: of each run its own models, by all figures that the tables ask of its preset, so that the runs of
    a preset share prompts and text."""
    asked: dict[str, list[str]] = {}
    keys: dict[str, Mapping[str, Any]] = {}
    for table in TABLES.values():
        if any(other.preset == run.preset for other in table.runs().values()):
            keys |= table.scorers
            for column in table.columns:
                own = asked.setdefault(column.suite, [])
                own += [] if column.score in own else [column.score]
    names = list(dict.fromkeys(name for scorers in asked.values() for name in scorers))
    return {
        "evaluate": {
            "suites": [suite(name, scorers) for name, scorers in asked.items()],
            "rewards": [scorer(name, **keys.get(name, {})) for name in names],
            "models": list(models_of(run)),
            "etas": [],
        },
    }


def _with_keys(tree: dict[str, Any], local: Local) -> dict[str, Any]:
    """``tree`` with the cluster's keys in each scorer, set of prompts and suite."""
    sets = tree["prepare_prompts"]["sets"]
    keyed = {
        name: [source | local.sources.get(name, {}) for source in sources]  # two sets may have sources of one name
        for name, sources in sets.items()
    }
    own = {
        "prepare_prompts": {"sets": keyed},
        "train_rtdmd": {"rewards": _entries(tree["train_rtdmd"]["rewards"], local.scorers)},
        "evaluate": {
            "rewards": _entries(tree["evaluate"]["rewards"], local.scorers),
            "suites": _entries(tree["evaluate"]["suites"], local.suites),
        },
    }
    return merged(tree, own)


def _entries(entries: list[dict[str, Any]], named: Named) -> list[dict[str, Any]]:
    return [entry | named.get(entry["name"], {}) for entry in entries]


def all_params(local: Local) -> dict[str, Params]:
    """The parameters of every run, by name."""
    return {name: run_params(run, local) for name, run in RUNS.items()}


def run_text(name: str, root: Path = Path(".")) -> str:
    """A run's params.yaml. UserError for an unknown run."""
    run = find_run(name)
    notes = [f"{run.about}; preset {run.preset}.", *(f"Departs: {text}." for text in run.departs)]
    return params_text(
        run_params(run, load_local(root)), f"rtdmd params --experiment {name}", notes + NOTES[run.preset]
    )
