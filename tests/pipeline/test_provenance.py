"""The commit that a page names: the last one behind it, before and after its results are committed."""

from pathlib import Path

from rtdmd.pipeline.provenance import last_commit
from tests.workflow.checkout import commit, git


def test_the_commit_is_that_of_the_paths_and_results_do_not_move_it(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1")
    assert last_commit(tmp_path, ["code"]) is None
    git(tmp_path, "init", "--quiet")
    assert last_commit(tmp_path, ["code"]) is None
    commit(tmp_path, "code")
    first = git(tmp_path, "rev-parse", "HEAD").strip()
    (tmp_path / "results.json").write_text("{}")
    commit(tmp_path, "results")
    assert git(tmp_path, "rev-parse", "HEAD").strip() != first
    assert last_commit(tmp_path, ["code"]) == first
    (tmp_path / "code" / "b.py").write_text("2")
    assert last_commit(tmp_path, ["code"]) == f"{first}+changes"
    assert last_commit(tmp_path, ["code/a.py"]) == first
