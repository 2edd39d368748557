"""Adding a backbone by the recipe of docs/extending.md: one file, and its entry beside the tests."""

from __future__ import annotations

from pathlib import Path

from tests.recipes import follow


def test_a_backbone_is_one_file(tmp_path: Path) -> None:
    said = follow(tmp_path, "docs/extending.md", "A backbone")
    assert "family: mine" in (tmp_path / "params.yaml").read_text()
    assert "train_rtdmd" in said and " passed" in said and "failed" not in said
