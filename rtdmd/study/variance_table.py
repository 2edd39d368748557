"""The columns of `rtdmd variance`, and how its figures are printed: the study (tools/variance) writes them, the
comparison's page shows them."""

from __future__ import annotations

import math
from dataclasses import dataclass

REFERENCE = "policy + last step"
FIGURES = ("noise", "scale", "bias", "cosine")
HEADER = ("estimator", "rounds", "passes", *(f"{name}{end}" for name in FIGURES for end in ("", "_se")))
UNIT = 1000.0  # forward passes of the generator: the price of the estimate whose noise is told


@dataclass(frozen=True)
class Figure:
    """A value with its standard error, printed to two digits of the error."""

    value: float
    error: float

    def __str__(self) -> str:
        if not (math.isfinite(self.error) and self.error > 0):
            return f"{self.value:.3g} ± {self.error:.2g}"
        digits = max(0, 1 - math.floor(math.log10(self.error)))
        return f"{self.value:.{digits}f} ± {self.error:.{digits}f}"
