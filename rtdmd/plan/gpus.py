"""What a GPU can do, from its vendor's data sheet: dense peak, without sparsity."""

from __future__ import annotations

from dataclasses import dataclass

UTILISATION = 0.35
"""Share of the peak that training is taken to reach: assumed, not measured. Published training of transformers
reports 0.3 to 0.5 of the bfloat16 peak; adapters of small rank, in float32, lower it."""


@dataclass(frozen=True)
class Gpu:
    """bfloat16 and float32 peak in FLOP/s, memory in bytes."""

    bfloat16: float
    float32: float
    memory: float


GPUS = {
    "B200": Gpu(2250e12, 75e12, 180e9),
    "H200": Gpu(989e12, 67e12, 141e9),
    "H100": Gpu(989e12, 67e12, 80e9),
    "A100": Gpu(312e12, 19.5e12, 80e9),
    "L40S": Gpu(362e12, 91.6e12, 48e9),
    "A6000": Gpu(154.8e12, 38.7e12, 48e9),
    "RTX4090": Gpu(165.2e12, 82.6e12, 24e9),
}
"""NVIDIA's data sheets: DGX B200, H200 and H100 SXM, A100 80GB SXM, L40S, RTX A6000, and the Ada whitepaper."""
