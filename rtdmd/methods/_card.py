"""What a method is: a named set of parameters of one training stage, and the card that says where it comes from."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

StageName = Literal["train_acdmd", "train_rtdmd"]
STAGE_TITLES: dict[str, str] = {"train_acdmd": "stage one", "train_rtdmd": "stage two"}
WIDTH = 110


@dataclass(frozen=True)
class Method:
    """One entry of the comparison.

    ``settings`` are laid over the stage's section of a preset, ``model`` over the section `model`; everything else
    stays the preset's, so that two methods of a stage differ in these keys alone. ``ours`` says which of them no source
    gives, and why they are what they are.
    """

    name: str
    stage: StageName
    title: str
    source: str
    equation: str
    settings: Mapping[str, Any]
    ours: str
    departs: tuple[str, ...] = ()
    model: Mapping[str, Any] = field(default_factory=dict)

    def changes(self) -> dict[str, Any]:
        """What is laid over a preset: nested dictionaries as `rtdmd.config.preset` takes them. A method of the
        stage's own section names itself there (`recipe`), and the section is then held to it."""
        recipe = {"recipe": self.name} if self.settings else {}
        tree: dict[str, Any] = {self.stage: recipe | dict(self.settings)}
        return tree | ({"model": dict(self.model)} if self.model else {})


def card_text(method: Method) -> str:
    """The card as plain text, lines to 110 characters."""
    lines = [f"{method.name}: {method.title} ({STAGE_TITLES[method.stage]})", ""]
    for head, text in (("source", method.source), ("equation", method.equation), ("ours", method.ours)):
        lines += _wrapped(head, text)
    for text in method.departs:
        lines += _wrapped("departs", text)
    lines += ["settings, over the preset's:"]
    for key, value in flat({method.stage: dict(method.settings), "model": dict(method.model)}).items():
        lines.append(f"  {key}: {value}")
    if not (method.settings or method.model):
        lines.append("  none")
    return "\n".join(lines)


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{head:9} ", subsequent_indent=" " * 10)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as {dotted key: value}."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        inner = flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        out |= inner
    return out
