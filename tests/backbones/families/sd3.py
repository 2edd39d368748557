"""SD3 and 3.5 under the conformance suite."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.backbones.families._family import Family, unchanged
from tests.tiny import IMAGE_SIZE, tiny_pipeline


def encoded(pipeline: Any, prompts: list[str], length: int) -> dict[str, Tensor]:
    hidden, _, pooled, _ = pipeline.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=length
    )
    return {"encoder_hidden_states": hidden, "pooled_projections": pooled}


FAMILY = Family(
    name="sd3",
    pipeline=lambda: tiny_pipeline(t5=True),
    resolution=IMAGE_SIZE,
    guidance=4.5,
    tokens=40,
    encoded=encoded,
    given=unchanged,
    inner=unchanged,
    returned=unchanged,
    targets=(15, 21),
)
