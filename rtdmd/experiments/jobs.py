"""The stages of the runs as jobs: who owns what several runs share, and one job in its run's folder.

A run has a folder as one of the sweep has: a small repository of its own. What two runs would compute alike (the same
parameters of a stage, and of all that it reads) belongs to the first of them, and the others link to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from rtdmd.common.digests import share_digests
from rtdmd.common.errors import UserError
from rtdmd.common.files import hash_of, read_json, write_json
from rtdmd.config import Params
from rtdmd.config.render import params_text
from rtdmd.experiments import find_table
from rtdmd.experiments.settings import Local, all_params, load_local
from rtdmd.experiments.written import committed
from rtdmd.pipeline.dvc_yaml import params_values, read_pipeline
from rtdmd.pipeline.model_inputs import model_inputs
from rtdmd.plan.resources import on_nodes, plan_resources
from rtdmd.published.figures import Cell, cells_of
from rtdmd.published.table import Row, Table
from rtdmd.study.workspace import TRAINED, link, pipeline_text, write_new

FOLDER = ".rtdmd/experiments"
DONE = ".rtdmd/done"
METRICS = "results/evaluate/metrics.json"
STAGES = ("prepare_prompts", "cache_teacher", "train_acdmd", "train_rtdmd", "evaluate")
LIGHT = {"mem_mb": 1000, "runtime": 5, "gpu": 0}  # of the one stage that computes nothing
ASKED = ("mem_mb", "runtime", "gpu", "nodes", "gres", "tasks")  # of Snakemake, where a job needs them
Job = tuple[str, str]  # run and stage


@dataclass(eq=False)
class Jobs:
    """All runs of all tables in the repository at ``root``."""

    root: Path
    local: Local

    @staticmethod
    def of(root: Path = Path(".")) -> Jobs:
        """With workflow/experiments.yaml of ``root``; UserError where it is missing or not allowed."""
        return Jobs(root, load_local(root))

    @cached_property
    def params(self) -> dict[str, Params]:
        return all_params(self.local)

    @cached_property
    def keys(self) -> dict[Job, str]:
        """What tells the results of two jobs apart: the parameters of the stage, and of all that it reads."""
        pipeline = read_pipeline(self.root)
        found = {}
        for run, params in self.params.items():
            tree = params.model_dump(mode="json")
            key = ""
            for stage in stages_of(params):
                key = hash_of({"read": key, "params": params_values(tree, pipeline[stage].params)})
                found[run, stage] = key
        return found

    @cached_property
    def owners(self) -> dict[Job, str]:
        """Which run a stage of a run belongs to."""
        first: dict[tuple[str, str], str] = {}
        return {(run, stage): first.setdefault((stage, key), run) for (run, stage), key in self.keys.items()}

    def place(self, run: str) -> Path:
        return self.root / FOLDER / run

    def done(self, run: str, stage: str) -> Path:
        """The file that says that a job is done."""
        return self.place(run) / DONE / f"{stage}.json"

    def reads(self, run: str, stage: str) -> list[Job]:
        """The jobs whose results a job reads."""
        own = stages_of(self.params[run])
        return [(self.owners[run, before], before) for before in own[: own.index(stage)]]

    def of_table(self, table: str) -> list[Job]:
        """The jobs at whose end all figures of a table are there."""
        return [(self.owners[run, "evaluate"], "evaluate") for run in find_table(table).runs()]

    def require(self, runs: Iterable[str]) -> None:
        """UserError where the checkpoint that one of these runs judges has not been imported."""
        for run in runs:
            folder = self.params[run].evaluate.imported
            if folder is not None and not (self.root / folder).is_dir():
                raise UserError(
                    f"experiment {run}: there is no folder {folder}; `rtdmd import --experiment {run}` makes it"
                )

    def files(self, jobs: Sequence[Job]) -> list[str]:
        return [str(self.done(run, stage)) for run, stage in jobs]

    @cache  # noqa: B019  # as long as the workflow reads its rules
    def run_resources(self, run: str) -> dict[str, dict[str, int]]:
        """Memory, time and GPUs of a run's stages that compute, from its plan."""
        return plan_resources(self.params[run], self.root)

    def resources(self, run: str, stage: str) -> dict[str, Any]:
        """What one job asks for, by the names in `ASKED`: memory [MB] and time [min], its GPUs or its nodes."""
        if stage == "prepare_prompts":
            return LIGHT
        return on_nodes({"gpu": 0} | self.run_resources(run)[stage], self.params[run], stage)

    def threads(self, run: str, stage: str) -> int:
        """Threads of one job on each of its nodes: those of a process, times the processes there."""
        params = self.params[run]
        if stage == "prepare_prompts":
            return 1
        return params.run.threads * params.layout(stage)[1]

    def lay(self, run: str) -> Path:
        """Make or refresh the folder of a run; nothing that a stage wrote is touched."""
        params = self.params[run]
        folder = self.place(run)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("rtdmd", "data", *local_folders(params)):
            link(folder / name, self.root / name)
        share_digests(folder, self.root)
        for stage in stages_of(params):
            self._set_owner(folder / "results" / stage, self.place(self.owners[run, stage]) / "results" / stage)
        write_new(folder / "params.yaml", params_text(params, f"rtdmd params --experiment {run}"))
        write_new(folder / "dvc.yaml", pipeline_of(self.root, params))
        return folder

    @staticmethod
    def _set_owner(path: Path, target: Path) -> None:
        """Results at ``path`` that are those at ``target``: the same folder, or a link to it."""
        if path == target:
            if path.is_symlink():
                path.unlink()
        elif path.is_dir() and not path.is_symlink():
            raise UserError(f"{path}: these results are now those of {target}; move them there, or remove them")
        else:
            link(path, target)

    def run(self, run: str, stage: str) -> Path:
        """Run one job, unless its results are those of these parameters, this data and this code; returns the file that
        says that it is done. A killed training goes on from its checkpoint."""
        from rtdmd.study.run import is_current

        self.require([run])
        folder = self.lay(run)
        if not is_current(folder, self.params[run], stage):
            import_module(f"rtdmd.stages.{stage}").run(folder)
        write_json(self.done(run, stage), {"run": run, "stage": stage, "key": self.keys[run, stage]})
        return self.done(run, stage)

    def cells(self, table: Table) -> list[Cell]:
        """Every cell of a table, with our figures where the run has been evaluated with the parameters it has now."""
        return cells_of(table, self._metrics)

    def _metrics(self, row: Row) -> Mapping[str, Any] | None:
        if row.run is None or not self.is_evaluated(row.run.name):
            return None
        metrics: Mapping[str, Any] = read_json(self.place(self.owners[row.run.name, "evaluate"]) / METRICS)
        return metrics

    def is_evaluated(self, run: str) -> bool:
        """Whether the figures of a run are there, with the parameters that it has now."""
        path = self.done(self.owners[run, "evaluate"], "evaluate")
        return path.is_file() and bool(read_json(path)["key"] == self.keys[run, "evaluate"])


def stages_of(params: Params) -> tuple[str, ...]:
    """The stages that the models of a run need, in their order."""
    return tuple(stage for stage in STAGES if stage not in TRAINED or stage in params.judged_stages)


def local_folders(params: Params) -> list[str]:
    """The folders of the repository in which the local models of a run lie."""
    names = (PurePosixPath(model.name) for model in model_inputs(params) if model.revision is None)
    tops = dict.fromkeys(name.parts[0] for name in names if not name.is_absolute())
    return [top for top in tops if top not in ("..", "data")]


def pipeline_of(root: Path, params: Params) -> str:
    """The text of dvc.yaml for a run: the committed one, whatever lies in ``root`` now, with the grids of the run's
    models alone. UserError where Git cannot tell it."""
    return pipeline_text(committed(root, "dvc.yaml"), params.evaluate.models)
