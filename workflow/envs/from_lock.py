"""Write workflow/envs/python.yaml from requirements.lock: `make lock` does, and a test holds the two in step.

A job under `snakemake --software-deployment-method conda` runs in this environment; the code is that of the folder
(`python -m rtdmd`), so the package itself is not installed.
"""

from __future__ import annotations

from pathlib import Path

HEAD = """\
# Generated from requirements.lock by `make lock`. For Snakemake with conda: docs/configuration.md.
channels: [conda-forge]
dependencies:
  - python=3.11
  - git
  - make
  - pip
  - pip:
"""


def pins(lock: str) -> list[str]:
    """The pinned packages of a lock file's text."""
    return [line.strip() for line in lock.splitlines() if line.strip() and not line.startswith("#")]


def environment(lock: str) -> str:
    """The conda environment as text."""
    return HEAD + "".join(f"      - {pin}\n" for pin in pins(lock))


if __name__ == "__main__":
    root = Path(__file__).parents[2]
    text = environment((root / "requirements.lock").read_text(encoding="utf-8"))
    (root / "workflow" / "envs" / "python.yaml").write_text(text, encoding="utf-8")
