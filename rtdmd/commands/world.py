"""`rtdmd world <part>`: pre-train one part of the embedded world; `make world` runs them all, `assemble` last.

Parts, their order and their settings: tools/world, data/world/params.yaml.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rtdmd.common.checkout import tool
from rtdmd.common.errors import UserError

ASSEMBLE = "assemble"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which part."""
    parser.add_argument("part", help=f"text, vae, clip, teacher, or {ASSEMBLE}: pin the parts under data/world")


def run(arguments: argparse.Namespace, root: Path = Path(".")) -> None:
    """Train the part. UserError for one that the world does not have."""
    parts = [*tool("world", "world").PARTS, ASSEMBLE]
    if arguments.part not in parts:
        raise UserError(f"world {arguments.part}: no such part; allowed: {', '.join(parts)}")
    tool(f"world.{arguments.part}", "world").run(root)
