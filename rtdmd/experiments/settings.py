"""The parameters of a run: its preset, what the tables say of it, and what this cluster adds
(workflow/experiments.yaml)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from rtdmd.common.errors import UserError
from rtdmd.common.pins import UNPINNED
from rtdmd.common.section import Section, param
from rtdmd.config import NOTES, PRESETS, Params
from rtdmd.config.load import load_settings, validate
from rtdmd.config.presets import merged
from rtdmd.config.real import scorer, suite
from rtdmd.config.render import params_text
from rtdmd.config.results import ModelName
from rtdmd.methods import find_method
from rtdmd.pipeline.to_fill_in import commits_to_fill_in, fill_in_lines
from rtdmd.published import RUNS, TABLES, find_run
from rtdmd.published.table import Run

LOCAL = Path("workflow/experiments.yaml")
CHECKPOINTS = tuple(name for name, run in RUNS.items() if run.checkpoint is not None)
"""The runs that judge a published checkpoint."""
Named = dict[str, dict[str, Any]]


class CheckpointFiles(Section):
    """Where a published checkpoint comes from, and where `rtdmd import --experiment` puts it."""

    revision: str = param("commit of its Hub repository that you trust", source="Hugging Face Hub", default=UNPINNED)
    path: str | None = param("folder with the files of that repository; null: download", source="ours", default=None)
    folder: str | None = param("the imported one; null: models/<run>", source="ours", default=None)


class Local(Section):
    """What this cluster adds to the runs."""

    params: dict[str, Any] = param("sections laid over every run", source="ours")
    presets: Named = param("sections laid over the runs of a preset, by its name", source="ours")
    scorers: Named = param("keys of a scorer wherever it stands, by its name", source="ours")
    sources: Named = param("keys of the sources of a set of prompts, by the set's name", source="ours")
    suites: Named = param("keys of a suite of evaluation, by its name", source="ours")
    checkpoints: dict[str, CheckpointFiles] = param("where a published checkpoint is, by its run", source="ours")

    def checkpoint(self, run: Run) -> CheckpointFiles:
        return self.checkpoints.get(run.name, CheckpointFiles())

    def imported(self, run: Run) -> str | None:
        """The folder of the imported checkpoint that a run judges; None for any other run."""
        return run.imported and (self.checkpoint(run).folder or run.imported)


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
    for name in local.checkpoints:
        if name not in CHECKPOINTS:
            raise UserError(f"{LOCAL}: checkpoints: {name!r} is unknown; allowed: {', '.join(CHECKPOINTS)}")
    return local


def models_of(run: Run) -> tuple[str, ...]:
    """The models of a run that any table's row asks for, in the order of evaluation."""
    asked = {row.model for table in TABLES.values() for row in table.rows if row.run == run}
    return tuple(name for name in get_args(ModelName) if name in asked)


def run_params(run: Run, local: Local) -> Params:
    """The whole tree of a run. UserError where what is laid over the preset does not fit."""
    tree = merged(PRESETS[run.preset], evaluation(run))
    if run.rewards is not None:
        kept = [entry for entry in tree["train_rtdmd"]["rewards"] if entry["name"] in run.rewards]
        tree = merged(tree, {"train_rtdmd": {"rewards": kept}})
    if run.method is not None:
        tree = merged(tree, find_method(run.method).changes())
    for changes in (dict(run.changes), local.params, local.presets.get(run.preset, {})):
        tree = merged(tree, changes)
    own = {"evaluate": {"imported": local.imported(run)}, "report": {"experiment": run.name}}
    return validate(_with_keys(merged(tree, own), local), f"experiment {run.name}, with {LOCAL}")


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
    keyed = {}
    for name, sources in sets.items():  # two sets may have sources of one name
        keyed[name] = [source | local.sources.get(name, {}) for source in sources]
    watched = {
        stage: {"watch": {"rewards": _entries(tree[stage]["watch"]["rewards"], local.scorers)}}
        for stage in ("train_acdmd", "train_rtdmd")
    }
    trained = {"train_rtdmd": {"rewards": _entries(tree["train_rtdmd"]["rewards"], local.scorers)}}
    own = merged(watched, trained) | {
        "prepare_prompts": {"sets": keyed},
        "evaluate": {
            "rewards": _entries(tree["evaluate"]["rewards"], local.scorers),
            "suites": _entries(tree["evaluate"]["suites"], local.suites),
        },
    }
    return merged(tree, own)


def _entries(entries: list[dict[str, Any]], named: Named) -> list[dict[str, Any]]:
    return [entry | named.get(entry["name"], {}) for entry in entries]


def all_params(local: Local) -> dict[str, Params]:
    return {name: run_params(run, local) for name, run in RUNS.items()}


def run_text(name: str, root: Path = Path(".")) -> str:
    """A run's params.yaml. UserError for an unknown run."""
    run = find_run(name)
    local = load_local(root)
    params = run_params(run, local)
    notes = [f"{run.about}; preset {run.preset}.", *(f"Departs: {text}." for text in run.departs), *NOTES[run.preset]]
    commits = commits_to_fill_in(params)
    own = local.checkpoint(run)
    if run.checkpoint is not None and own.path is None and own.revision == UNPINNED:
        commits[run.checkpoint.repository] = [f"checkpoints: {name}: revision"]
    notes += fill_in_lines(f"Commits that {LOCAL} lacks, a scorer's by its name, a model's under presets:", commits)
    return params_text(params, f"rtdmd params --experiment {name}", notes)
