"""Groups of keys of stage two that only compared methods use (`rtdmd methods`); off in every preset."""

from __future__ import annotations

from pydantic import model_validator

from rtdmd.common.section import Flag, Real, Section, Whole, param
from rtdmd.config.training import OptimizerParams


class AnnealingParams(Section):
    """DMDR's two changes to early training, annealed to nothing (arXiv 2511.13649)."""

    guidance: Real = param(
        "scale at which the teacher carries the fake score's adapter at first",
        source="public code: 0; DMDR: 0.75; its code: 0.5 where the fake score has 2, which is 0.25 here",
        ge=0,
    )
    renoise: Flag = param(
        "renoising times start as Beta(4, 1.5) and end uniform", source="public code: false; DMDR: true"
    )
    epochs: Whole = param("until both are annealed to nothing", unit="epochs", source="ours", ge=0)


class SurrogateOptimizerParams(OptimizerParams):
    """AdamW of the surrogate."""

    lr: Real = param("step size", source="TDM-R1's code: 3e-4, four times its generator's", gt=0)
    weight_decay: Real = param("decoupled weight decay", source="TDM-R1's code: 1e-4", ge=0)


class SurrogateParams(Section):
    """TDM-R1's surrogate reward, which learns where weights.surrogate is above 0 (arXiv 2603.07700)."""

    prompts: Whole = param(
        "groups of the rollout per update, of which there is one an epoch",
        unit="prompts",
        source="TDM-R1's code: all of them",
        ge=1,
    )
    preference: Real = param(
        "β of the groups' preferences, in units of the matching loss", source="TDM-R1's code: 1 (OCR, HPSv2 10)", gt=0
    )
    anchor: Real = param(
        "weight of its velocity's mean squared distance to the teacher's", source="TDM-R1's code: 0.001", ge=0
    )
    bound: Real = param(
        "that distance beyond which images that would widen it are left out", source="TDM-R1's code: 0.05", gt=0
    )
    train_min_sigma: Real = param(
        "lowest noise level at which it learns", unit="σ", source="TDM-R1's code: 0.55 (OCR 0.3)", ge=0, lt=0.9
    )
    reward_min_sigma: Real = param(
        "lowest noise level at which its reward is read",
        unit="σ",
        source="TDM-R1's code: GenEval 0.25, OCR 0.3, HPSv2 0.4",
        ge=0,
        lt=0.9,
    )
    guidance: Real = param(
        "share of the teacher's guidance beyond 1 with which it is read",
        source="TDM-R1's code: 2.5 of 4.5 (GenEval), which is 0.43; HPSv2 0.71, OCR 1",
        ge=0,
    )
    optimizer: SurrogateOptimizerParams


class RelativeParams(Section):
    """SRPO's relative reward for back-propagation (arXiv 2509.06942); without words the reward itself.

    (1 + k) r(liked words. prompt) - r(disliked words. prompt), words of each kind drawn once a step.
    """

    strength: Real = param("k", source="DMDR's code: 0.1", ge=0)
    liked: tuple[str, ...] = param(
        "words in front of the prompt, of which one is drawn",
        source="DMDR's code: Natural-lighting, Detailed, Realistic",
    )
    disliked: tuple[str, ...] = param("the same, disliked", source="DMDR's code: Painting, CG Render, Oil")

    @model_validator(mode="after")
    def _check(self) -> RelativeParams:
        if bool(self.liked) != bool(self.disliked):
            one, other = ("liked", "disliked") if self.liked else ("disliked", "liked")
            raise ValueError(
                f"{one}: {list(getattr(self, one))} with {other}: []; allowed: words for both, or for none"
            )
        return self
