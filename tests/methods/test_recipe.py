"""Adding a method by the recipe of docs/extending.md: one file, and everything knows it."""

from __future__ import annotations

from pathlib import Path

from tests.recipes import follow


def test_a_method_is_one_file(tmp_path: Path) -> None:
    said = follow(tmp_path, "docs/extending.md", "A method")
    assert "half-policy: the preset at half its policy weight (stage two)" in said
    assert (tmp_path / "params.yaml").read_text().count("half-policy") == 2  # in its head, and as the recipe
    assert "train_rtdmd" in said and "2 passed" in said
