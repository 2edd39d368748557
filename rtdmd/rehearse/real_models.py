"""The models of a run at their published size with random weights, made where they are used: nothing is read or kept.

Weights are what the real classes draw when they are made, in bfloat16 as the published files have them, and widened
where ``model.dtype`` is float32: both precisions then have the very same weights. Text encoders stay out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rtdmd.backbones import PipelineBackbone
from rtdmd.common.rng import key_seed
from rtdmd.plan.models import backbone_of, diffusers_part
from rtdmd.plan.scorers import Scorer, load_scorer
from rtdmd.rewards.protocol import Metadata, Reward, check_batch, checked
from rtdmd.rewards.reward_models import RewardModels, reward_models_of

if TYPE_CHECKING:
    from rtdmd.config import ModelParams, Params, RewardParams

Configs = Mapping[str, dict[str, Any]]
PUBLISHED = torch.bfloat16  # of the weights' files


def shallower(configs: Configs, blocks: int) -> dict[str, dict[str, Any]]:
    """The configurations with a transformer of so many blocks at its full width; single-stream blocks fall in
    proportion."""
    own = configs["transformer"]
    whole = own["num_layers"]
    kept = min(blocks, whole)
    cut = {"num_layers": kept}
    if "num_single_layers" in own:
        cut["num_single_layers"] = max(1, own["num_single_layers"] * kept // whole)
    if "dual_attention_layers" in own:
        cut["dual_attention_layers"] = tuple(layer for layer in own["dual_attention_layers"] if layer < kept)
    return dict(configs) | {"transformer": own | cut}


def random_backbone(params: Params, configs: Configs, device: torch.device, vae: bool) -> PipelineBackbone:
    """Teacher and, where it has one, the student's base, frozen, in ``model.dtype``; ``vae``: the decoder too."""
    model = params.model
    seed = params.run.seed
    names = ("transformer", "vae") if vae else ("transformer",)
    parts: dict[str, Any] = dict.fromkeys(("transformer", "vae"))
    parts |= {name: _part(configs[name], model, device, key_seed(seed, "weights", name)) for name in names}
    backbone = backbone_of(parts, model, configs)
    if model.student is not None:
        backbone.student = _part(configs["transformer"], model, device, key_seed(seed, "weights", "student"))
    return backbone


def _part(config: Mapping[str, Any], model: ModelParams, device: torch.device, seed: int) -> nn.Module:
    with _seeded(device, seed):
        part = diffusers_part(config, PUBLISHED, device)
    return part.float() if model.dtype == "float32" else part


def random_rewards(specs: Sequence[RewardParams], device: torch.device, root: Path, seed: int) -> RewardModels:
    """Scorers with random weights of their published sizes; UserError where a local folder has no configuration."""
    rewards: dict[str, Reward] = {}
    for spec in specs:
        with _seeded(device, key_seed(seed, "weights", spec.name)):
            rewards[spec.name] = RandomReward.of(load_scorer(spec, root, device), device)
        if spec.offload:
            rewards[spec.name].to(torch.device("cpu"))
    return reward_models_of(specs, rewards, device)


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """torch's own generators of the CPU and of ``device``, from ``seed`` on and as they were afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@dataclass
class RandomReward:
    """`rtdmd.rewards.protocol.Reward` with a scorer's networks and random weights. One that a plan does not run takes
    its memory, and grades images by their mean."""

    name: str
    differentiable: bool
    scorer: Scorer
    weights: Tensor
    needs_metadata: bool = False
    range: tuple[float, float] = (-float("inf"), float("inf"))

    @staticmethod
    def of(scorer: Scorer, device: torch.device) -> RandomReward:
        size = scorer.recorded.parameters * scorer.recorded.width
        weights = torch.zeros(size, dtype=torch.uint8, device=device)
        return RandomReward(scorer.name, scorer.differentiable, scorer, weights)

    def identity(self) -> dict[str, Any]:
        """There are no files."""
        return {"name": self.name, "files": {}}

    def to(self, device: torch.device) -> None:
        self.weights = self.weights.to(device)
        for module in self.scorer.modules:
            module.to(device)

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        """Of random weights, so of no meaning."""
        check_batch(images, prompts, metadata)
        images = images.to(self.weights.device)
        found = images if self.scorer.score is None else self.scorer.score(images.float())
        return checked(self.name, found.float().flatten(1).mean(1))
