"""The tables of docs/evidence/backbones.md, measured: `python -m tests.backbones.parity`.

The largest absolute difference between ours and the family's own diffusers pipeline, on tiny random models in float32;
and the real models on the meta device.
"""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from rtdmd.backbones.sampling import rollout
from rtdmd.common.rng import normal
from tests.backbones.families import FAMILIES, PROMPTS, Loaded, load
from tests.backbones.real import CONFIGS, backbone, transformer

ROWS = (
    "conditioning",
    "5 steps, no guidance, step as diffusers writes it",
    "5 steps, no guidance, our sampler",
    "5 steps, guided, our sampler",
    "4 few-step levels, our sampler",
    "image",
    "levels",
)


@torch.no_grad()
def differences(loaded: Loaded) -> list[float]:
    """One number for each of ROWS."""
    family, ours, theirs = loaded.family, loaded.backbone, loaded.pipeline
    x1 = normal((2, *ours.latent_shape()), 0, "parity")

    def velocity(guidance: float):  # type: ignore[no-untyped-def]
        return lambda x, s, c: ours.velocity(ours.transformer, x, s, c, guidance=guidance, null=loaded.null)

    def apart(latents: Tensor, expected: Tensor) -> float:
        return (family.returned(theirs, latents) - expected).abs().max().item()

    encoded = family.encoded(theirs, PROMPTS, family.tokens)
    found = [max((loaded.cond.tensors[name] - value).abs().max().item() for name, value in encoded.items())]
    five, x = ours.teacher_sigmas(5), x1
    plain = family.call(theirs, x1, 5, guidance_scale=1.0)
    for sigma, tau in pairwise(five):
        x = x + (tau - sigma) * velocity(1.0)(x, sigma.expand(2), loaded.cond)
    found += [apart(x, plain), apart(rollout(velocity(1.0), x1, loaded.cond, five, 0.0, None)[-1], plain)]
    guided = family.call(theirs, x1, 5, guidance_scale=family.guidance)
    found.append(apart(rollout(velocity(family.guidance), x1, loaded.cond, five, 0.0, None)[-1], guided))
    few = family.call(theirs, x1, 4, guidance_scale=1.0, sigmas=[1.0, 0.75, 0.5, 0.25])
    last = rollout(velocity(1.0), x1, loaded.cond, ours.sigmas(4), 0.0, None)[-1]
    found.append(apart(last, few))
    levels = (ours.sigmas(4) - theirs.scheduler.sigmas).abs().max().item()
    image = family.call(theirs, x1, 4, guidance_scale=1.0, sigmas=[1.0, 0.75, 0.5, 0.25], output_type="pt")
    return [*found, (ours.decode(last) - image).abs().max().item(), levels]


def main() -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as folder:
        columns = [differences(load(family, Path(folder) / name)) for name, family in FAMILIES.items()]
    print("| largest difference | " + " | ".join(FAMILIES) + " |\n|---|" + "---|" * len(FAMILIES))
    for row, values in zip(ROWS, zip(*columns, strict=True), strict=True):
        print(f"| {row} | " + " | ".join("0" if value == 0 else f"{value:.1e}" for value in values) + " |")
    print(
        "\n| preset | parameters | adapted layers | adapter at rank 32 | tokens at 512, 1024 |\n|---|---|---|---|---|"
    )
    for name in CONFIGS:
        model, targets = transformer(name), backbone(name, 512).lora_targets("attention")
        adapter = sum(32 * sum(model.get_submodule(target).weight.shape) for target in targets)
        size = sum(parameter.numel() for parameter in model.parameters())
        print(f"| `{name}` | {size / 1e9:.2f} B | {len(targets)} | {adapter / 1e6:.1f} M | 1024, 4096 |")


if __name__ == "__main__":
    main()
