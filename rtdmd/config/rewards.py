"""One reward: which scorer, with which weights, counting how much. Used by `train_rtdmd` and `evaluate`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from pydantic import model_validator

from rtdmd.common.section import Flag, Real, Section, param

RewardName = Literal[
    "aesthetic",
    "clipscore",
    "geneval",
    "geneval2",
    "hpsv2",
    "hpsv3",
    "imagereward",
    "ocr",
    "pickscore",
    "world_verifier",
]
"""The scorers that exist. A new one adds its name here once its module does."""

NAMES: tuple[str, ...] = get_args(RewardName)
SOURCES = {"model": "revision", "base": "base_revision", "colour_model": "colour_revision"}
"""Fields that name a folder or a Hub id, and the field that pins each one's commit."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARE = "a number from 0 to 1"


@dataclass(frozen=True)
class Scorer:
    """What a scorer is and takes. needs: field -> what it may be; optional: fields that may be left out."""

    differentiable: bool
    needs: dict[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()


SCORERS: dict[str, Scorer] = {
    "clipscore": Scorer(True, {"model": "a CLIPModel folder or Hub id"}),
    "pickscore": Scorer(True, {"model": "PickScore_v1's folder or Hub id"}, ("base",)),
    "hpsv2": Scorer(
        True,
        {
            "model": "a folder or Hub id with HPS_v2.1_compressed.pt",
            "base": "a CLIP ViT-H/14 folder or Hub id (its config, tokenizer and preprocessing)",
        },
    ),
    "imagereward": Scorer(
        True,
        {
            "model": "a folder or Hub id with ImageReward.pt and med_config.json",
            "base": "a BERT folder or Hub id (its tokenizer)",
        },
    ),
    "aesthetic": Scorer(
        True,
        {
            "model": "a folder or Hub id with the LAION predictor's .pth",
            "base": "a CLIP ViT-L/14 folder or Hub id",
        },
    ),
    "hpsv3": Scorer(
        False,
        {
            "model": "a folder or Hub id with HPSv3.safetensors",
            "base": "a Qwen2-VL folder or Hub id (its config, tokenizer and preprocessing)",
        },
    ),
    "geneval": Scorer(
        False,
        {
            "model": "a Mask2Former folder or Hub id",
            "colour_model": "a CLIPModel folder or Hub id",
            "soft_weight": _SHARE,
        },
    ),
    "geneval2": Scorer(False, {"model": "a Qwen3-VL folder or Hub id"}),
    "ocr": Scorer(False),
    "world_verifier": Scorer(False, {"soft_weight": _SHARE}),
}
"""Every known scorer, whether the last step can be trained by back-propagation through it, and its fields."""

DIFFERENTIABLE = {name: SCORERS[name].differentiable for name in NAMES}


class RewardParams(Section):
    """A scorer of images given their prompts."""

    name: RewardName = param("scorer", source="rtdmd.rewards registry")
    model: str | None = param(
        "model folder or Hub id of the scorer; null when it has none", source="ours", default=None
    )
    revision: str | None = param(
        "Hub commit of model, 40 hex digits; null for a folder", source="Hugging Face Hub", default=None
    )
    base: str | None = param(
        "folder or Hub id of the model that the scorer's weights sit on: config, tokenizer, preprocessing, tower",
        source="ours",
        default=None,
    )
    base_revision: str | None = param("Hub commit of base", source="Hugging Face Hub", default=None)
    colour_model: str | None = param(
        "geneval: CLIPModel folder or Hub id that names colours", source="GenEval: ViT-L/14", default=None
    )
    colour_revision: str | None = param("Hub commit of colour_model", source="Hugging Face Hub", default=None)
    weight: Real = param("weight in the sum over rewards", source="public code: 1 each", ge=0, default=1.0)
    soft_weight: Real | None = param(
        "world_verifier, geneval: share of the soft score, the rest is strict 0/1",
        source="ours: 0.7",
        ge=0,
        le=1,
        default=None,
    )

    policy: Flag | None = param(
        "train_rtdmd: false leaves it to back-propagation; null or true: the policy gradient sees it too",
        source="public code: true",
        default=None,
    )

    offload: Flag | None = param(
        "train_rtdmd: true keeps its weights off the device while nothing is scored; null or false: they stay there",
        source="ours",
        default=None,
    )

    socket: str | None = param(
        "Unix socket of a process that runs this scorer (`rtdmd rewards serve`); null: this process",
        source="ours",
        default=None,
    )

    @property
    def differentiable(self) -> bool:
        """True when the score carries a gradient to the image."""
        return DIFFERENTIABLE[self.name]

    def is_hub_id(self, source: str) -> bool:
        """True when the field `source` (of SOURCES) names a Hub repository rather than a local folder."""
        value = getattr(self, source)
        return value is not None and _HUB_ID.fullmatch(value) is not None

    @model_validator(mode="after")
    def _check(self) -> RewardParams:
        scorer = SCORERS[self.name]
        for key in (*SOURCES, "soft_weight"):
            value = getattr(self, key)
            if value is None and key in scorer.needs:
                raise ValueError(f"{key}: None for {self.name}; allowed: {scorer.needs[key]}")
            if value is not None and key not in scorer.needs and key not in scorer.optional:
                raise ValueError(f"{key}: {value!r} for {self.name}; allowed: null ({self.name} takes no {key})")
        if self.policy is False and not scorer.differentiable:
            raise ValueError(f"policy: False for {self.name}; allowed: true ({self.name} carries no gradient)")
        if self.offload and ("model" not in scorer.needs or self.socket is not None):
            owner = "its process has them" if self.socket is not None else f"{self.name} has none"
            raise ValueError(f"offload: True for {self.name}; allowed: null (there are no weights here: {owner})")
        for source, pin in SOURCES.items():
            self._check_revision(source, pin)
        return self

    def _check_revision(self, source: str, pin: str) -> None:
        """A Hub id comes with a commit, anything else without."""
        value, revision = getattr(self, source), getattr(self, pin)
        if not self.is_hub_id(source):
            if revision is not None:
                raise ValueError(f"{pin}: {revision!r} with {source}: {value!r}, which is no Hub id; allowed: null")
        elif revision is None or not _COMMIT.fullmatch(revision):
            raise ValueError(
                f"{pin}: {revision!r} with the Hub id {value!r}; allowed: the 40 hex digits of a commit"
                f" (a local folder of that name is written ./{value})"
            )


def distinct(rewards: tuple[RewardParams, ...]) -> tuple[RewardParams, ...]:
    """The same rewards; ValueError when a name occurs twice (scores are kept by name)."""
    names = [reward.name for reward in rewards]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} occurs {names.count(name)} times; allowed: each reward once")
    return rewards
