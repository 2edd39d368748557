"""What the engines know of the stages: the rules mirror dvc.yaml, and dvc.yaml's code dependencies cover the
imports."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rtdmd.common.files import write_atomic
from rtdmd.config import load_params
from rtdmd.config.families import FAMILIES
from rtdmd.pipeline.dvc_yaml import covers, read_pipeline
from rtdmd.pipeline.engines import load_jobs

PIPELINE = read_pipeline(Path("."))

# Read by every stage; a change in them changes no figure, or is seen through params.yaml.
HARNESS = {
    "rtdmd/__init__.py",
    "rtdmd/pipeline/dvc_cache.py",
    "rtdmd/pipeline/dvc_repo.py",
    "rtdmd/common/digests.py",
    "rtdmd/common/errors.py",
    "rtdmd/common/files.py",
    "rtdmd/common/hub.py",
    "rtdmd/common/lazy_tensors.py",
    "rtdmd/common/model_files.py",
    "rtdmd/common/parsing.py",
    "rtdmd/common/yaml_text.py",
    "rtdmd/pipeline/dvc_yaml.py",
    "rtdmd/pipeline/declared.py",
    "rtdmd/common/discovery.py",
    "rtdmd/common/progress.py",
    "rtdmd/common/section.py",
    "rtdmd/common/hub_names.py",
    "rtdmd/common/processes.py",
    "rtdmd/pipeline/model_inputs.py",
    "rtdmd/pipeline/provenance.py",
    "rtdmd/common/signals.py",
    "rtdmd/pipeline/stage.py",
    "rtdmd/train/engine/trackers.py",
    "rtdmd/train/engine/tracker_kinds.py",
}


def modules_imported(path: Path) -> set[str]:
    """Files of this package that `path` imports, anywhere in it, type checking apart, and data beside it that it
    names."""
    if path.suffix != ".py":
        return set()
    names: set[str] = set()
    data: set[str] = set()
    tree = ast.parse(path.read_text())
    typing_only = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
    skipped = {id(inner) for node in typing_only for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rtdmd"):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("rtdmd")}
        elif isinstance(node, ast.Constant) and re.fullmatch(r"rtdmd(\.\w+)+", str(node.value)):
            name = str(node.value)  # of a module that import_module gets, or of a folder whose files are discovered
            names |= {name, *(f"{name}.{file.stem}" for file in Path(name.replace(".", "/")).glob("*.py"))}
        elif isinstance(node, ast.Constant) and re.fullmatch(r"\w+\.(md|json)", str(node.value)):
            beside = path.with_name(str(node.value))
            data |= {beside.as_posix()} if beside.is_file() else set()
    candidates = {Path(name.replace(".", "/")) for name in names}
    files = {path.with_suffix(".py") for path in candidates} | {path / "__init__.py" for path in candidates}
    return data | {file.as_posix() for file in files if file.is_file() and says_something(file)}


def says_something(path: Path) -> bool:
    """False for a file that holds its docstring and nothing else."""
    return len(ast.parse(path.read_text()).body) > 1


def closure(path: str) -> set[str]:
    """`path` and all that it imports, the harness and the configuration apart."""
    found, todo = set(), {path}
    while todo:
        current = todo.pop()
        if current in found or current in HARNESS or covers("rtdmd/config", current):
            continue
        found.add(current)
        todo |= modules_imported(Path(current))
        if current == "rtdmd/backbones/__init__.py":  # which imports a family's file by its name
            todo |= {f"rtdmd/backbones/{family}.py" for family in FAMILIES}
    return found


@pytest.mark.parametrize("name", PIPELINE)
def test_code_dependencies_cover_the_imports(name: str) -> None:
    deps = [dep for dep in PIPELINE[name].deps if covers("rtdmd", dep)]
    imported = closure(f"rtdmd/stages/{name}.py")
    missing = sorted(file for file in imported if not any(covers(dep, file) for dep in deps))
    assert not missing, f"dvc.yaml: add these to the deps of {name}"
    idle = [dep for dep in deps if not any(covers(dep, file) for file in imported)]
    assert not idle, f"dvc.yaml: stage {name} does not import these"


@pytest.mark.parametrize("name", PIPELINE)
def test_outputs_are_files_of_the_stages_own_folder_and_settings_among_them(name: str) -> None:
    assert f"results/{name}/resolved.json" in PIPELINE[name].outs
    assert all(covers(f"results/{name}", out) and Path(out).suffix for out in PIPELINE[name].outs)


def test_rules_take_files_and_values_from_dvc() -> None:
    jobs = load_jobs(load_params())
    assert list(jobs) == list(PIPELINE)
    for name, job in jobs.items():
        assert sorted(job.outputs) == sorted(PIPELINE[name].outs)
        assert not [path for path in job.inputs if "__pycache__" in path]
        assert all(any(covers(dep, path) for dep in PIPELINE[name].deps) for path in job.inputs)
    flow = {path for path in jobs["train_acdmd"].inputs if covers("rtdmd/flow", path)}
    assert flow == {path.as_posix() for path in Path("rtdmd/flow").rglob("*.py")}


def test_a_plan_with_a_space_and_an_apostrophe_in_its_name_is_one_word_of_each_command(tmp_path: Path) -> None:
    plan = tmp_path / "somebody's plan.yaml"
    text = Path("workflow/sweep.yaml").read_text().replace("folder: .rtdmd/sweep", f"folder: {tmp_path}/a folder")
    plan.write_text(text)
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--config", f"sweep={plan}"]
    done = subprocess.run([*command, "--", "sweep", "sweep_variance"], capture_output=True, text=True, check=True)
    lines = [line.removeprefix("Shell command: ") for line in (done.stdout + done.stderr).splitlines()]
    words = [shlex.split(line.strip("()")) for line in lines if line.startswith("(")]
    plans = [line[line.index("--plan") + 1].rstrip(")") for line in words if "--plan" in line]
    assert set(plans) == {str(plan)} and len(plans) > 90
    (variance,) = (line for line in words if "variance" in line)
    assert variance[:3] == ["cd", f"{tmp_path}/a folder/base-0", "&&"]
    assert variance[variance.index("--out") + 1] == "$OLDPWD/results/comparison/variance.csv)"


def test_another_seed_is_run_where_there_is_a_page_of_fewer(tmp_path: Path) -> None:
    """Snakemake does not remake a page that exists because an input is missing; the rule's params tell it."""
    plan, folder, page = tmp_path / "plan.yaml", tmp_path / "runs", tmp_path / "page"
    own = {"folder": str(folder), "page": str(page), "seeds": [0, 1], "methods": ["rtdmd"], "shares": {}}
    plan.write_text(yaml.safe_dump(yaml.safe_load(Path("workflow/sweep.yaml").read_text()) | own))
    for name in ("teacher-0/run.json", "base-0/run.json", "rtdmd-0/run.json"):
        write_atomic(folder / name, "{}")
    for name in ("index.html", "table.csv", "runs.csv", "contact_sheet.png"):
        write_atomic(page / name, "")
    command = [sys.executable, "-m", "snakemake", "sweep", "--cores", "1", "--config", f"sweep={plan}"]

    def jobs(seeds: int, how: str) -> set[str]:
        done = subprocess.run([*command, f"seeds={seeds}", how], capture_output=True, text=True, check=True)
        return set(re.findall(r"^(sweep_\w+) +\d+$", done.stdout + done.stderr, re.MULTILINE))

    jobs(1, "--touch")  # as if they had just been made
    assert jobs(1, "--dry-run") == set()
    assert jobs(2, "--dry-run") == {"sweep_base", "sweep_method", "sweep_gather"}


def test_a_mistake_in_the_plan_of_the_sweep_or_the_world_stops_only_these(tmp_path: Path) -> None:
    """The main run reads neither; whoever asks for them is told."""
    (tmp_path / "plan.yaml").write_text(Path("workflow/sweep.yaml").read_text().replace("budget:", "budgets:"))
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--dry-run",
        "--cores",
        "1",
        "--config",
        f"sweep={tmp_path}/plan.yaml",
    ]
    subprocess.run([*command, "--", "report"], capture_output=True, check=True)
    done = subprocess.run([*command, "--", "sweep"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert f"\n{tmp_path}/plan.yaml: budgets: unknown key" in said
    assert "Traceback" not in said and "InputFunctionException" not in said


def test_snakefile_is_short() -> None:
    """`make lint` lints and formats it and the rules."""
    assert len(Path("Snakefile").read_text().splitlines()) < 40


def test_a_start_of_snakemake_imports_no_torch() -> None:
    """What the rules import at every start: torch alone would be two seconds of each."""
    rules = "".join(path.read_text() for path in Path("workflow/rules").glob("*.smk"))
    modules = set(re.findall(r"^from ((?:rtdmd|tools)[\w.]*) import", rules, re.MULTILINE))
    assert {"rtdmd.pipeline.engines", "rtdmd.plan.resources", "rtdmd.experiments.jobs"} <= modules
    code = f"import sys, {', '.join(sorted(modules))}; print(sorted({{'numpy', 'torch'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
