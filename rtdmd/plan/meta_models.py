"""Everything that a stage holds, without weights: backbone, roles with their adapters, scorers, conditioning."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rtdmd.backbones import Conditioning, PipelineBackbone
from rtdmd.common.torch_setup import DTYPES
from rtdmd.plan.cost_counter import META, size_of, tensors_of
from rtdmd.plan.models import backbone_of, backbone_on, diffusers_part, part_configs, text_encoders, text_shapes
from rtdmd.plan.scorers import Scorer, load_scorer
from rtdmd.train.adapters import ADAPTERS, AdapterBank, transformer_blocks

if TYPE_CHECKING:
    from rtdmd.config import Params

Model = tuple[str | None, ...]
"""What tells two rewards' networks apart (`RewardParams.networks`)."""


@dataclass
class MetaModels:
    """The models of a run on the meta device. Its roles are stage two's: stage one's generator is its `reference`."""

    params: Params
    configs: dict[str, dict[str, Any]]
    backbone: PipelineBackbone
    bank: AdapterBank
    scorers: dict[Model, Scorer]

    @staticmethod
    def of(params: Params, root: Path = Path("."), configs: Mapping[str, dict[str, Any]] | None = None) -> MetaModels:
        """The models of ``params``; ``configs``: in place of the teacher's. UserError where its shapes are not known,
        or do not fit the resolution."""
        configs = part_configs(params.model, root) if configs is None else dict(configs)
        dtype = DTYPES[params.model.dtype]
        parts = {name: diffusers_part(configs[name], dtype) for name in ("transformer", "vae")}
        backbone = backbone_of(parts, params.model, configs)
        if params.model.student is not None:  # of the teacher's shapes, or a run refuses it
            backbone.student = diffusers_part(configs["transformer"], dtype)
        backbone.device = torch.device("cpu")  # autocast knows no meta device
        with META:
            bank = AdapterBank(backbone, params.adapter, ADAPTERS["train_rtdmd"] | {"base": ()}, params.run.seed)
        for whole in bank._copies.values():  # in full mode passes run in half precision, by autocast if there is one
            whole.to(backbone.dtype)
        judged = (spec for judging in params.judging.values() for spec in judging.rewards)
        specs = {spec.networks(): spec for spec in (*params.train_rtdmd.rewards, *judged)}
        scorers = {model: load_scorer(spec, root) for model, spec in specs.items()}
        return MetaModels(params, configs, backbone, bank, scorers)

    def at(self, resolution: int) -> MetaModels:
        """The same models, asked for squares of another side."""
        model = self.params.model.model_copy(update={"resolution": resolution, "width": None})
        other = copy.copy(self)  # with what was made on demand
        other.params = self.params.model_copy(update={"model": model})
        other.backbone = backbone_on(self.backbone.pipeline, model, self.configs)
        other.backbone.student = self.backbone.student
        other.backbone.device = self.backbone.device
        other.bank = copy.copy(self.bank)
        other.bank.backbone = other.backbone
        return other

    @property
    def transformer(self) -> nn.Module:
        """The teacher's, the base of every role where the student has none of its own."""
        return self.backbone.transformer

    @property
    def two_bases(self) -> bool:
        """Whether generator and reference stand on another transformer, of the same shapes."""
        return self.backbone.student is not self.backbone.transformer

    @property
    def apart(self) -> bool:
        """Whether what lies on the host takes none of the device's memory."""
        return self.params.run.device == "cuda"

    @property
    def vae(self) -> nn.Module:
        """The autoencoder; images need its decoder alone, but it is loaded whole."""
        vae: nn.Module = self.backbone.pipeline.vae
        return vae

    @cached_property
    def text(self) -> dict[str, nn.Module]:
        return text_encoders(self.configs, DTYPES[self.params.model.dtype])

    def adapter(self, name: str) -> list[nn.Parameter]:
        """Parameters of one adapter (of one copy of the transformer with `adapter.mode: full`)."""
        return list(self.bank._named_parameters(name).values())

    @property
    def merged(self) -> bool:
        """Whether stage one's adapters are merged below stage two's (`train_rtdmd.stage_one_adapters`)."""
        return self.params.train_rtdmd.stage_one_adapters == "merged" and not self.bank.full

    @property
    def new_fake(self) -> bool:
        """Whether stage two's fake score has an adapter of its own on stage one's (`train_rtdmd.fake_adapter`)."""
        return self.params.train_rtdmd.fake_adapter == "new" and not self.bank.full

    def adapter_bytes(self, name: str) -> int:
        """Bytes of one adapter: what learns is float32."""
        return 4 * sum(p.numel() for p in self.adapter(name))

    def base_size(self) -> tuple[int, int]:
        """(parameters, bytes) of a transformer without its adapters."""
        count, size = size_of([self.transformer])
        adapters = [p for key, p in self.transformer.named_parameters() if ".lora_" in key]
        count -= sum(p.numel() for p in adapters)
        size -= sum(p.numel() * p.element_size() for p in adapters)
        return count, size

    def adapted_bytes(self) -> int:
        """Bytes of the layers of a transformer that carry an adapter, in its own dtype."""
        return size_of(layer.get_base_layer() for layer in self.bank.layers("fake"))[1]

    def block_sizes(self) -> list[tuple[int, int]]:
        """Bytes of each of a transformer's blocks without its adapters, and of its layers that carry one; of these 0 in
        full mode."""
        sizes = []
        for block in transformer_blocks(self.transformer):
            own = [tensor for key, tensor in block.named_parameters() if self.bank.full or ".lora_" not in key]
            modules = set(block.modules())
            adapted = size_of(layer.get_base_layer() for layer in self.bank.layers("fake") if layer in modules)[1]
            sizes.append((sum(tensor.nbytes for tensor in own), adapted))
        return sizes

    @cached_property
    def known(self) -> list[Tensor]:
        """Tensors that are there before a pass: all weights."""
        copies = list(self.bank._copies.values())
        bases = self.bank.transformers
        return tensors_of([*bases, self.vae, *copies, *(m for s in self.scorers.values() for m in s.modules)])

    # Inputs of a pass.
    def latents(self, rows: int) -> Tensor:
        """(B, C, H, W) float32."""
        return torch.empty(rows, *self.backbone.latent_shape(), device=META)

    def cond(self, rows: int) -> Conditioning:
        """Conditioning of B prompts as the text cache gives it."""
        dtype = DTYPES[self.params.cache_teacher.storage_dtype]
        empty = {name: torch.empty(rows, *shape, dtype=dtype, device=META) for name, shape in self.shapes.items()}
        return Conditioning(empty)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one prompt's conditioning by tensor."""
        return text_shapes(self.params.model, self.configs)

    def velocity(self, role: str, cond: Conditioning, x: Tensor | None = None) -> Tensor:
        """One pass of a role, the teacher's guided; (B, C, H, W)."""
        x = self.latents(len(cond)) if x is None else x
        sigma = torch.empty(len(x), device=META)
        if role != "teacher":
            return self.bank.velocity(role, x, sigma, cond)
        guidance = self.params.model.guidance
        return self.bank.velocity(role, x, sigma, cond, guidance=guidance, null=self.cond(1))

    def row_bytes(self) -> int:
        width = DTYPES[self.params.cache_teacher.storage_dtype].itemsize
        return sum(torch.Size(shape).numel() for shape in self.shapes.values()) * width

    def latent_bytes(self) -> int:
        return 4 * torch.Size(self.backbone.latent_shape()).numel()
