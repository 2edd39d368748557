"""Section `validation` of `train_rtdmd`: which epoch's student is kept, and when to stop early."""

from __future__ import annotations

from pydantic import model_validator

from rtdmd.common.section import Real, Section, Whole, param


class ValidationParams(Section):
    """Reward and diversity on training prompts set aside: the best epoch's student is kept, not the last one's."""

    every: Whole = param(
        "epochs between validations; 0: none, keep the last student", unit="epochs", source="ours", ge=0
    )
    prompts: Whole = param("training prompts set aside, never trained on", unit="prompts", source="ours", ge=1)
    images: Whole = param("images per prompt, always of the same noise", unit="images", source="ours", ge=2)
    min_diversity: Real = param(
        "smallest share of the stage-one student's diversity that a best student keeps", source="ours", ge=0
    )
    patience: Whole = param(
        "validations without a better student after which training stops; 0: never",
        unit="validations",
        source="ours",
        ge=0,
    )

    @model_validator(mode="after")
    def _check(self) -> ValidationParams:
        if self.patience > 0 and self.every == 0:
            raise ValueError(f"patience: {self.patience} with every: 0; allowed: 0, or every: 1 or more")
        return self
