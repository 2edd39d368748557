"""`rtdmd methods`: the methods that can be compared; `rtdmd methods gdmd`: one card, with our figures; `rtdmd methods
--lengths`: how long each trains for what the world preset's own stage spends (docs/results.md)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from rtdmd.common.parsing import read_table

TABLE = Path("results/comparison/table.csv")
WIDTHS = {"_ci95_seeds": "95 %, seeds", "_ci95_noise": "95 %, images"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which card."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("name", nargs="?", help="print this method's card")
    which.add_argument("--lengths", action="store_true", help="print how long each method trains within one budget")


def run(arguments: argparse.Namespace, root: Path = Path(".")) -> None:
    """Print the list, a card with our figures where there are any, or the table of lengths."""
    from rtdmd.methods import METHODS, find_method
    from rtdmd.methods._absent import ABSENT
    from rtdmd.methods._card import STAGE_TITLES, card_text

    if arguments.lengths:
        print("\n".join(lengths_table()))
        return
    if arguments.name is not None:
        print(card_text(find_method(arguments.name)))
        print("\n".join(["our figures:", *(f"  {line}" for line in own_figures(root / TABLE, arguments.name))]))
        return
    for method in METHODS.values():
        print(f"{method.name:16} {STAGE_TITLES[method.stage]:10} {method.title}")
    print("\nknown, but not included: " + "; ".join(f"{name} ({text})" for name, text in ABSENT.items()))


def lengths_table() -> list[str]:
    """Markdown's lines: the methods that train equally long within the budget of the world preset's own stage."""
    from rtdmd.config import preset
    from rtdmd.methods import METHODS
    from rtdmd.plan.budget import cost, length_within

    base = preset("world")
    groups: dict[tuple[str, int], list[str]] = {}
    for method in METHODS.values():
        length = length_within(preset("world", method.changes()), method.stage, cost(base, method.stage))
        groups.setdefault((method.stage, length), []).append(method.name)
    head = ["| over the world preset, budget 1 | iterations or epochs |", "|---|---|"]
    return head + [f"| {', '.join(names)} | {length} |" for (_, length), names in groups.items()]


def own_figures(path: Path, name: str) -> list[str]:
    """The method's line of the comparison's table: each value with its intervals, over seeds and over images; last the
    teacher's strict score, which says of which world the table is."""
    if path.is_file():
        rows = {row.get("run"): row for row in read_table(path, f"`snakemake sweep` makes {path} anew")[1]}
        if name in rows:
            filled = {key: value for key, value in rows[name].items() if value and key not in ("run", "title")}
            lines = [with_widths(filled, key) for key in filled if "_ci95_" not in key]
            teacher = rows.get("teacher", {}).get("strict")
            return [*lines, f"of a teacher with strict: {teacher}"] if teacher else lines
    return [f"none here; `snakemake sweep` makes {path}"]


def with_widths(filled: Mapping[str, str], key: str) -> str:
    """A value with the half-widths of its intervals, where the table has them."""
    widths = [f" ± {filled[key + end]} ({what})" for end, what in WIDTHS.items() if key + end in filled]
    return f"{key}: {filled[key]}{''.join(widths)}"
