"""The command line: quick to answer, one line and exit code 2 for what the user can mend."""

import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from rtdmd.cli import build_parser, main, stage_titles
from rtdmd.common.signals import Stopped
from rtdmd.config import RECIPES, parse_params, preset
from rtdmd.config.render import params_text, schema_text
from rtdmd.pipeline.dvc_yaml import read_pipeline
from tests.workspace import REPOSITORY


def test_help_answers_at_once_and_imports_nothing_heavy() -> None:
    """Of what is installed only PyYAML, which reads the stages' names."""
    program = (
        "import sys; before = set(sys.modules); from rtdmd.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert imported & packages_distributions().keys() - {"rtdmd"} == {"yaml"}


def test_commands_are_the_stages_of_dvc_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    titles = stage_titles(Path("."))
    assert titles == {name: stage.description for name, stage in read_pipeline(Path(".")).items()}
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    places = [said.index(f"{name} {text}") for name, text in titles.items()]
    assert places == sorted(places)
    for name in titles:
        assert build_parser().parse_args([name]).command == name
        assert Path(f"rtdmd/stages/{name}.py").is_file()


def test_elsewhere_a_stage_says_where_it_runs_and_other_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(stage_titles(Path(".")))
    monkeypatch.chdir(tmp_path)
    assert list(stage_titles(tmp_path)) == names
    assert main(["evaluate"]) == 2
    assert "dvc.yaml: no such file; run this command in the repository's root folder" in capsys.readouterr().err
    assert main(["params", "world"]) == 0


def test_wrong_params_end_with_one_line_and_code_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "dvc.yaml").write_text(Path("dvc.yaml").read_text())
    text = params_text(preset("world"), "a test").replace("seed: 0", "sed: 0")
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    for command in (["prepare_prompts"], ["params", "check"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith("rtdmd: params.yaml: run.sed: unknown key (value 0); allowed: seed, threads, device")
        assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dvc.yaml", "params.yaml"]


def test_params_and_schema_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").symlink_to(REPOSITORY / "data")  # `params check` looks at the models that are named
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(params_text(preset("world"), "a test"))
    assert main(["params", "smoke"]) == 0
    assert parse_params(capsys.readouterr().out) == preset("smoke")
    assert main(["params", "world", "--recipe", "published"]) == 0
    assert parse_params(capsys.readouterr().out) == preset("world", RECIPES["published"])
    for recipe, lengths in {"published": (10, 7), "corrected": (4, 2)}.items():
        assert main(["params", "smoke", "--recipe", recipe]) == 0  # long enough for the recipe's own intervals
        own = parse_params(capsys.readouterr().out)
        assert own.train_rtdmd.recipe == recipe
        assert (own.train_acdmd.iterations, own.train_rtdmd.epochs) == lengths
    assert main(["params", "check"]) == 0
    capsys.readouterr()
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == schema_text()


def test_a_file_that_the_system_refuses_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dvc.yaml").write_text(Path("dvc.yaml").read_text())
    (tmp_path / "params.yaml").symlink_to(tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    assert main(["params", "check"]) == 2
    says = "rtdmd: params.yaml: cannot be read (Too many levels of symbolic links); `rtdmd params world > params.yaml`"
    assert capsys.readouterr().err.startswith(says)

    def refused(_: object) -> int:
        raise NotADirectoryError(20, "Not a directory", "results/evaluate")

    monkeypatch.setattr("rtdmd.cli._params", refused)
    assert main(["params", "check"]) == 1
    assert capsys.readouterr().err == "rtdmd params: results/evaluate: Not a directory\n"


@pytest.mark.parametrize(("words", "asked"), [([], "without a name"), (["gdmd"], "gdmd"), (["gdmd", "99"], "gdmd 99")])
def test_a_run_of_the_sweep_that_is_not_planned_is_told_what_is(
    words: list[str], asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert main(["sweep", "run", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"rtdmd: sweep run {asked}: not in workflow/sweep.yaml; its runs are teacher, base, ")
    assert said.count("\n") == 1


ANEW = "the same command starts anew"
CHECKPOINT = "the same command goes on from its last checkpoint"
GOES_ON = "the same command goes on where it stopped"


@pytest.mark.parametrize(
    ("command", "module", "then"),
    [
        ("prepare_prompts", "rtdmd.stages.prepare_prompts", ANEW),
        ("cache_teacher", "rtdmd.stages.cache_teacher", GOES_ON),
        ("train_acdmd", "rtdmd.stages.train_acdmd", CHECKPOINT),
        ("train_rtdmd", "rtdmd.stages.train_rtdmd", CHECKPOINT),
        ("evaluate", "rtdmd.stages.evaluate", ANEW),
        ("plan", "rtdmd.commands.plan", ANEW),
        ("reproduce", "rtdmd.commands.reproduce", ANEW),
        ("upload", "rtdmd.commands.upload", GOES_ON),
        ("sweep run base 0", "rtdmd.commands.sweep", GOES_ON),
        ("sweep gather", "rtdmd.commands.sweep", ANEW),
        ("experiments --run sd35m train_rtdmd", "rtdmd.commands.experiments", CHECKPOINT),
        ("experiments --run sd35m evaluate", "rtdmd.commands.experiments", ANEW),
        ("experiments --check table_2", "rtdmd.commands.experiments", ANEW),
        ("world teacher", "rtdmd.commands.world", CHECKPOINT),
        ("world clip", "rtdmd.commands.world", ANEW),
    ],
)
def test_a_stopped_command_says_what_it_does_next_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, module: str, then: str
) -> None:
    words = command.split()
    for stop, code, how in (
        (KeyboardInterrupt(), 130, "stopped"),
        (Stopped("stopped by SIGTERM"), 75, "stopped by SIGTERM"),
    ):

        def end(*_: object, stop: BaseException = stop) -> None:
            raise stop

        monkeypatch.setattr(f"{module}.run", end)
        assert main(words) == code
        assert capsys.readouterr().err == f"rtdmd {words[0]}: {how}; {then}\n"


def test_a_reproduction_that_is_stopped_names_the_folder_in_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_: object, __: Path, folder: Path) -> None:
        folder.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("rtdmd.commands.reproduce._reproduce", stop)
    into = tmp_path / "run"
    assert main(["reproduce", "--into", str(into)]) == 130
    assert capsys.readouterr().err == f"rtdmd reproduce: stopped; `rm -r {into}`, then the same command starts anew\n"
