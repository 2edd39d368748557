"""SD3 and 3.5 under the conformance suite."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from rtdmd.rehearse.bases import write_base
from rtdmd.rehearse.layouts import LAYOUTS, SD35M
from rtdmd.rehearse.tokenizers import WORDS
from tests.backbones.families._family import Family, unchanged


def encoded(pipeline: Any, prompts: list[str], length: int) -> dict[str, Tensor]:
    hidden, _, pooled, _ = pipeline.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=length
    )
    return {"encoder_hidden_states": hidden, "pooled_projections": pooled}


FAMILY = Family(
    name="sd3",
    write=partial(write_base, family="sd3", name=SD35M, layout=LAYOUTS[SD35M], words=WORDS),
    resolution=64,
    guidance=4.5,
    tokens=40,
    encoded=encoded,
    given=unchanged,
    inner=unchanged,
    returned=unchanged,
    targets=(15, 21),
)
