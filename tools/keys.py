"""docs/keys.md, the reference of params.yaml's keys, made of the pydantic classes that check it.

`python -m tools.keys` (`make generated`, `make docs`) writes it, `make lint` compares it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rtdmd.common.section import fields_in_order
from rtdmd.config import preset
from rtdmd.config.render import flow, is_sets
from rtdmd.config.results import SuiteParams
from rtdmd.config.tree import Params
from rtdmd.prompts.registration import FileParams
from rtdmd.prompts.registry import SOURCES
from rtdmd.rewards.registration import RewardParams
from rtdmd.rewards.registry import REWARDS

PAGE = Path("docs/keys.md")
PRESETS = ("world", "sd35m")
HEAD = """# Keys

Every key of params.yaml, with its value in the presets `world` (the demo) and `sd35m`. `make generated` writes this
page. [Configuration](configuration.md) explains how keys belong together. The source says where a definition or a usual
value comes from: the paper (arXiv 2605.26108), its public code, a library, or our own choice.
"""
SUITES = "`evaluate.suites` takes all of these keys, `watch.suites` only `name`, `prompts`, `rewards` and `resolution`."


def keys_page() -> str:
    lines = [HEAD]
    presets = [preset(name) for name in PRESETS]
    for section in Params.model_fields:
        values = [getattr(params, section) for params in presets]
        summary = (values[0].__doc__ or "").strip().split("\n")[0]
        lines += [f"## {section}", summary, "", "| key | meaning | world | sd35m | source |", "|---|---|---|---|---|"]
        lines += [*_rows("", values), ""]
    lines += ["## Entries of suites", SUITES, "", *_table(fields_in_order(SuiteParams)), ""]
    lines += ["## Entries of rewards", "Keys of every scorer:", "", *_table(fields_in_order(RewardParams))]
    for name, reward in REWARDS.items():
        lines += _own(name, reward.settings, RewardParams)
    lines += ["", "## Entries of prompt sets", "Keys of every source that is a file:", ""]
    lines += _table(fields_in_order(FileParams))
    for name, source in SOURCES.items():
        lines += _own(name, source.settings, FileParams)
    return "\n".join(lines) + "\n"


def _rows(prefix: str, values: list[Any]) -> Iterator[str]:
    """A row for each key of a section, those of sections inside it by their full name."""
    for name, field in fields_in_order(type(values[0])).items():
        inner = [getattr(value, name) for value in values]
        if isinstance(inner[0], BaseModel):
            yield from _rows(f"{prefix}{name}.", inner)
            continue
        shown = [_value(value) for value in inner]
        yield f"| `{prefix}{name}` | {_meaning(field)} | {shown[0]} | {shown[1]} | {_cell(_extra(field)['source'])} |"


def _value(value: Any) -> str:
    """A preset's value; a list of entries is named by its length."""
    if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        return f"{len(value)} entries"
    if is_sets(value):
        return f"{len(value)} sets"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{flow(value)}`"


def _table(fields: dict[str, FieldInfo]) -> Iterator[str]:
    yield "| key | meaning | default | source |"
    yield "|---|---|---|---|"
    for name, field in fields.items():
        default = "" if field.is_required() else f"`{flow(field.default)}`"
        yield f"| `{name}` | {_meaning(field)} | {default} | {_cell(_extra(field)['source'])} |"


def _own(name: str, settings: type[BaseModel], shared: type[BaseModel]) -> list[str]:
    """The table of the keys that ``settings`` has beside those of ``shared``; nothing where it has none."""
    own = {key: field for key, field in fields_in_order(settings).items() if key not in shared.model_fields}
    return ["", f"**{name}**", "", *_table(own)] if own else []


def _extra(field: FieldInfo) -> dict[str, Any]:
    extra: Any = field.json_schema_extra
    return dict(extra)


def _meaning(field: FieldInfo) -> str:
    extra = _extra(field)
    unit = f" [{extra['unit']}]" if extra["unit"] else ""
    return _cell(f"{extra['summary']}{unit}")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(keys_page(), encoding="utf-8")
