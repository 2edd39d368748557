"""The models that params.yaml names, as inputs of the stages that read them.

Which folders a stage reads depends on parameters, so `dvc.yaml` cannot list them: it lists `inputs/<group>`, a folder
of links to exactly the files that are read. DVC and Snakemake follow the links, so one changed byte of any file makes
both name the stages. Beside the links `named.json` says which models they are, in the parameters' own words; it alone
stands for a model of the Hub, whose commit is pinned. The links are set when a stage starts and when Snakemake does.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from rtdmd.common.errors import UserError
from rtdmd.common.files import json_text, lock_file, write_atomic
from rtdmd.common.hub import etag
from rtdmd.common.model_files import WORLD_FOLDER, check_files, files_hash, no_folder, teacher_files
from rtdmd.common.pins import require_pin
from rtdmd.config import Params, load_params
from rtdmd.pipeline.declared import FILES
from rtdmd.published import RUNS
from rtdmd.rewards.hub import TRANSFORMERS_FILES, fetch_scorer, scorer_files

if TYPE_CHECKING:
    from rtdmd.rewards.registration import RewardParams

FOLDER = "inputs"
NAMED = "named.json"
BASES = ("teacher", "student")  # groups of one model: section model's bases
SCORED = ("train_acdmd", "train_rtdmd", "evaluate")  # stages that have scorers, and groups of their own
GROUPS = (*BASES, *SCORED)
IMPORTED = "imported"  # place of the folder that evaluate.imported names


@dataclass(frozen=True)
class ModelInput:
    """A model that params.yaml names: the group of stages that read it, its place among their links, its setting."""

    group: str
    place: str
    key: str
    name: str  # folder or Hub id, as it is written
    pin: str  # the setting of its commit
    revision: str | None  # of a Hub id
    reward: RewardParams | None = None
    maker: str = ""  # the command that makes its folder, where one does

    @property
    def label(self) -> str:
        """What resolved.json calls it: the folder, or the Hub id with its commit."""
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    def files(self, folder: Path) -> list[str]:
        """Names of the files of ``folder`` that are read. UserError where one of them is missing."""
        if self.group in BASES:
            return teacher_files(folder, self.key)
        if self.place == IMPORTED:
            return _weights_of(folder, self.key)
        field = self.place.partition(".")[2]
        patterns = TRANSFORMERS_FILES if self.reward is None else self.reward.sources[field].files
        return scorer_files(folder, self.key, patterns)


def model_inputs(params: Params, group: str | None = None) -> Iterator[ModelInput]:
    """The models of params.yaml, of one ``group`` or all; a scorer behind a socket reads its own. Group ``student`` is
    empty where the student stands on the teacher's base."""
    for base, model in zip(BASES, params.model.bases(), strict=False):
        if group in (None, base):
            yield ModelInput(base, base, model.key, model.teacher, model.pin, model.revision)
    sections: dict[str, Sequence[RewardParams]] = {"train_rtdmd": params.train_rtdmd.rewards}
    sections |= {name: judging.rewards for name, judging in params.judging.items()}
    for section, rewards in sections.items():
        if group not in (None, section.partition(".")[0]):
            continue
        for reward in rewards:
            if reward.socket is None:
                yield from _of_reward(section, reward)
    features = params.evaluate.features_model
    if group in (None, "evaluate") and features is not None:
        yield ModelInput("evaluate", "features_model", "evaluate.features_model", features, "", None)
    imported = params.evaluate.imported
    if group in (None, "evaluate") and imported is not None:
        name = params.report.experiment
        maker = f"rtdmd import FILE --out {imported}"
        if name is not None and imported == RUNS[name].imported:
            maker = f"rtdmd import --experiment {name}"
        yield ModelInput("evaluate", IMPORTED, "evaluate.imported", imported, "", None, maker=maker)


def _weights_of(folder: Path, key: str) -> list[str]:
    """Names of the files that are read of a published folder. UserError where it has no weights."""
    weights = [name for names in FILES.values() for name in names if (folder / name).is_file()]
    if not weights:
        raise UserError(f"{key}: {folder} has neither of {', '.join(name for name, *_ in FILES.values())}")
    return weights + [name for name in ("provenance.json", "gate.json") if (folder / name).is_file()]


def _of_reward(section: str, reward: RewardParams) -> Iterator[ModelInput]:
    for field, source in reward.sources.items():
        name = getattr(reward, field)
        if name is None:
            continue
        revision = getattr(reward, source.pin) if reward.is_hub_id(field) else None
        stage, _, inner = section.partition(".")  # inner: watch, whose scorers may also be the stage's own
        key = f"{section}.rewards: {reward.name}"
        place = f"{inner}/{reward.name}.{field}".removeprefix("/")
        yield ModelInput(stage, place, f"{key}: {field}", name, f"{key}: {source.pin}", revision, reward)


def is_group(dep: str) -> bool:
    """Whether a dependency of `dvc.yaml` is a folder of links to models."""
    return PurePosixPath(dep).parts[0] == FOLDER


def groups_of_run(params: Params, stage: str = "evaluate") -> tuple[str, ...]:
    """The groups of models that a run needs, one of whose stages is ``stage``: all of them; of a run of the published
    tables (report.experiment), which ends with its evaluation, those of the stages that its models come from."""
    if params.report.experiment is None:
        return GROUPS
    stages = (*params.judged_stages, "evaluate", stage)
    return tuple(group for group in GROUPS if group in (*BASES, *stages))


def require_pins(params: Params, groups: Sequence[str] = GROUPS) -> None:
    """UserError where the commit of a model of these groups is still the placeholder: what a later stage would refuse
    hours from now."""
    for model in model_inputs(params):
        if model.group in groups and model.revision is not None:
            require_pin(model.pin, model.name, model.revision)


def check_local(root: Path, params: Params, groups: Sequence[str] = GROUPS) -> None:
    """UserError where a file of any local model that params.yaml names is missing or damaged, as far as its header
    tells, where the student's base does not fit the teacher's, or where the teacher cannot draw at a suite's
    resolution: what another stage would find hours from now. groups: as in `set_links`."""
    from rtdmd.backbones import require_student
    from rtdmd.backbones.sizes import folder_configs, require_suites, suite_sizes

    for model in model_inputs(params):
        if model.revision is None and (model.group in groups or not _is_to_come(root, model)):
            folder = _local(root, model)
            check_files(folder, model.files(folder), model.key)
    if not any(base.is_hub_id for base in params.model.bases()):  # nothing is downloaded to tell
        require_student(params.model, root)
        if list(suite_sizes(params)):
            folder = root / params.model.teacher
            require_suites(params, folder_configs(folder, params.model.key), params.model.teacher)


def _is_to_come(root: Path, model: ModelInput) -> bool:
    """Whether a scorer's folder is not there yet: the presets name places where their user will put it."""
    scorer = model.group not in BASES and model.place != IMPORTED
    return scorer and not model.name.startswith(WORLD_FOLDER) and not (root / model.name).exists()


def set_links(root: Path, params: Params, groups: Sequence[str] = GROUPS) -> None:
    """Make the folders of links in ``root`` say what params.yaml names. UserError where a folder or a file of it is
    missing; nothing that is no link of ours is removed.

    groups: a scorer of any other may be missing as a whole. None of them for a look at a preset before its folders are
    filled: the first stage that reads a model refuses it.
    """
    wanted: dict[str, dict[str, Path | str]] = {group: {} for group in GROUPS}
    named: dict[str, dict[str, dict[str, str | None]]] = {group: {} for group in wanted}
    for model in model_inputs(params):
        named[model.group][model.key] = {"name": model.name, "revision": model.revision}
        if model.revision is None and (model.group in groups or not _is_to_come(root, model)):
            for file in model.files(_local(root, model)):
                wanted[model.group][f"{model.place}/{file}"] = root / model.name / file
    with lock_file(root / ".rtdmd" / "locks" / FOLDER) as lock:  # stages that start together all set them
        fcntl.flock(lock, fcntl.LOCK_EX)
        for group, links in wanted.items():
            _set_group(root, root / FOLDER / group, links | {NAMED: json_text(named[group])})


def _local(root: Path, model: ModelInput) -> Path:
    folder = root / model.name
    if not folder.is_dir() and model.maker:
        raise UserError(f"{model.key}: there is no folder {model.name}; `{model.maker}` makes it, in the root folder")
    if not folder.is_dir():
        raise UserError(f"{model.key}: {no_folder(folder)}")
    return folder


def _set_group(root: Path, folder: Path, wanted: dict[str, Path | str]) -> None:
    """Write what differs, remove the links that are not wanted, what a killed process left, and empty folders."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.rglob("*"), reverse=True):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            if name not in wanted:
                path.unlink()
        elif path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif name.startswith(f".{NAMED}."):  # half of it, by a process that was killed
            path.unlink()
        elif name != NAMED:
            raise UserError(f"{path} is not a link; {FOLDER}/ is kept by the stages: move that file elsewhere")
    for name, what in wanted.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(what, str):
            if not path.is_file() or path.read_text(encoding="utf-8") != what:
                write_atomic(path, what)
        else:
            _link(root, path, what)


def _link(root: Path, path: Path, target: Path) -> None:
    """A link at ``path``, relative where the target is written as a path inside ``root``."""
    inside = Path(os.path.relpath(target, root)).parts[0] != ".."
    text = os.path.relpath(target, path.parent) if inside else str(target.absolute())
    if path.is_symlink() and str(path.readlink()) == text:
        return
    new = path.with_name(f".{path.name}.new-{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(text)
    new.replace(path)


def hash_models(root: Path, params: Params, group: str) -> dict[str, str]:
    """Hash by label of the models of a ``group``: of a folder, the hash of the files that are read; of a Hub
    repository, downloaded first, that of what the Hub calls them (sha256 of weights), so that nothing large is read.
    UserError where a file is missing or damaged.
    """
    folders: dict[str, Path] = {}
    files: dict[str, set[str]] = {}
    for model in model_inputs(params, group):
        folder = _fetched(model, params) if model.revision is not None else _local(root, model)
        names = model.files(folder)
        check_files(folder, names, model.key)
        folders[model.label] = folder
        files.setdefault(model.label, set()).update(names)
    return {label: files_hash(folder, files[label], root, etag) for label, folder in folders.items()}


def _fetched(model: ModelInput, params: Params) -> Path:
    if model.reward is None:
        from rtdmd.backbones.hub import fetch_base

        base = params.model if model.group == "teacher" else params.model.of_student()
        return fetch_base(base, text=True, vae=True)
    return fetch_scorer(model.reward, model.place.partition(".")[2])


def folders_here(root: Path) -> dict[str, str]:
    """Hash by name of the local models that ``root/params.yaml`` names, as resolved.json has them; those that are
    missing or damaged are left out."""
    if not (root / "params.yaml").is_file():
        return {}
    try:
        params = load_params(root / "params.yaml")
    except UserError:  # of another version: nothing to compare with
        return {}
    found: dict[str, str] = {}
    for group in GROUPS:
        if any(model.revision is not None for model in model_inputs(params, group)):
            continue  # pinned by a commit: nothing is fetched to tell
        try:
            found |= hash_models(root, params, group)
        except UserError:  # whoever asks compares, and finds nothing to compare with
            continue
    return found
