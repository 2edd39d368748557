"""generated: GenEval-style prompts made here, as many of each tag as params.yaml says (`rtdmd.prompts.generate`)."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from rtdmd.common.section import Whole, param
from rtdmd.prompts.records import Source
from rtdmd.prompts.registration import Facts, Reading, Registration, SourceParams

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


class GeneratedParams(SourceParams):
    """GenEval-style prompts made here, without what the evaluation asks for."""

    name: Literal["generated"] = param("prompts made here", source="ours")
    tags: dict[str, Whole] = param("prompts per GenEval tag, as {counting: 200}", source="ours")

    @model_validator(mode="after")
    def _check(self) -> GeneratedParams:
        for tag, count in self.tags.items():
            if tag not in TAGS or count < 1:
                raise ValueError(f"tags: {tag}: {count}; allowed: at least 1 of {', '.join(TAGS)}")
        if not self.tags:
            raise ValueError(f"tags: {{}}; allowed: at least 1 of {', '.join(TAGS)}")
        return self


def _read(params: GeneratedParams, reading: Reading) -> tuple[list[Source], Facts]:
    from rtdmd.prompts.generate import generated_sources

    return generated_sources(params.tags, reading.seed, reading.held_out, reading.key), {}


SOURCE = Registration(GeneratedParams, _read, provides=("geneval",), tags=lambda params: len(params.tags))
