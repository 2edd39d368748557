"""One base, many roles: a single frozen transformer serves teacher, generator and fake score through adapters.

A role is a stack of adapters on the frozen base: the teacher's is empty, the stage-one generator's is ("acdmd",), the
stage-two generator's ("acdmd", "rtdmd"), so stage two sits on stage one without merging, or on copies of the adapted
layers with stage one merged in (`AdapterBank.merge`). Where `model.student` names a base of its own there are two:
generator and reference stand on the student's, all others on the teacher's, and each transformer is held once. In
`full` mode each adapter is a separate copy of the transformer in float32 (an update in half precision would be lost in
rounding; passes run in the base's precision) and a role is the last of its stack: `AdapterBank.cost` says what that
takes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rtdmd.common.errors import UserError
from rtdmd.common.lazy_tensors import fill, not_finite, odd_names
from rtdmd.common.rng import key_seed
from rtdmd.train.compile import compile_blocks
from rtdmd.train.merging import AdaptedLayers, Stack
from rtdmd.train.student_record import read_student, stands_on_merged

if TYPE_CHECKING:
    from rtdmd.backbones.protocol import Backbone, Conditioning
    from rtdmd.config import AdapterParams, Params
    from rtdmd.config.training import Initialisation
    from rtdmd.train.distributed.ranks import Ranks

ON_STUDENT = ("generator", "reference")
"""Roles that stand on the student's base, where it is another than the teacher's; all others stand on the teacher's."""
ADAPTERS: dict[str, dict[str, Stack]] = {
    "train_acdmd": {"teacher": (), "generator": ("acdmd",), "fake": ("fake",)},
    "train_rtdmd": {"teacher": (), "reference": ("acdmd",), "generator": ("acdmd", "rtdmd"), "fake": ("fake",)},
}
NEW_FAKE: Stack = ("fake", "fake_rtdmd")
"""The fake score's stack in stage two with `fake_adapter: new`."""


class AdapterBank:
    """Velocities of every role at (x (B, C, H, W), sigma (B,), conditioning), and each adapter's tensors."""

    def __init__(
        self,
        backbone: Backbone,
        adapter: AdapterParams,
        stacks: Mapping[str, Stack],
        seed: int,
        compiled: bool = False,
        init: Initialisation = "kaiming_uniform",
    ) -> None:
        self.backbone = backbone
        self.stacks = dict(stacks)
        self.full = adapter.mode == "full"
        self.transformers = list(dict.fromkeys(map(self.base, stacks)))
        self._bases = {role: self.base(role) for role in stacks}
        self._under = {name: self._bases[role] for role, stack in stacks.items() for name in stack}
        self._copies: dict[str, nn.Module] = {}
        self._layers: dict[nn.Module, AdaptedLayers] = {base: AdaptedLayers([]) for base in self.transformers}
        for name in sorted(self._under):
            self._add(name, adapter, seed, init)
        if not self.full:
            for base in self.transformers:
                self._layers[base] = AdaptedLayers([x for x in base.modules() if isinstance(x, BaseTunerLayer)])
        modules: list[Any] = [*self.transformers, *self._copies.values()]
        for module in modules:
            if adapter.gradient_checkpointing:
                module.enable_gradient_checkpointing(partial(self._computed_again, module))
            if compiled:
                compile_blocks(transformer_blocks(module))

    def base(self, role: str) -> nn.Module:
        """The transformer on which a role stands."""
        return self.backbone.student if role in ON_STUDENT else self.backbone.transformer

    def _add(self, name: str, adapter: AdapterParams, seed: int, init: Initialisation) -> None:
        base: Any = self._under[name]  # a diffusers model; its adapter methods come from a mixin
        if self.full:
            self._copies[name] = copy.deepcopy(base).float().requires_grad_(False)
            return
        config = LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            target_modules=self.backbone.lora_targets(adapter.targets),
            init_lora_weights="gaussian" if init == "gaussian" else True,
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are the point
            torch.manual_seed(key_seed(seed, "adapter", name))
            base.add_adapter(config, adapter_name=name)
            own = self._named_parameters(name)
            factors = [key for key in own if ".lora_A." in key and init == "standard_normal"]
            drawn = {key: torch.randn(own[key].shape) for key in factors}  # by torch's generator of the CPU
        for key, parameter in own.items():
            parameter.data = drawn[key].to(parameter.device) if key in drawn else parameter.data.float()
            parameter.requires_grad_(False)

    def shard(self, ranks: Ranks, shards: int) -> None:
        """Leave this process one of ``shards`` shards of each frozen base; adapters stay whole."""
        from rtdmd.train.distributed.sharding import shard  # seconds of imports that few runs need

        for layers in self._layers.values():
            layers.restore()
        blocks = {base: transformer_blocks(base) for base in self.transformers}
        whole = [p for base in self.transformers for key, p in base.named_parameters() if ".lora_" in key]
        shard(blocks, whole, ranks, shards)

    def _named_parameters(self, name: str) -> dict[str, nn.Parameter]:
        if self.full:
            return dict(self._copies[name].named_parameters())
        every = self._under[name].named_parameters()
        return {key: p for key, p in every if f".{name}." in key and ".lora_" in key}

    def layers(self, name: str) -> list[BaseTunerLayer]:
        """The layers of its base that carry an adapter; none in full mode."""
        return list(self._layers[self._under[name]].layers)

    def parameter_names(self, name: str) -> list[str]:
        """Names of the parameters of one adapter, in the order of `trainable`."""
        return list(self._named_parameters(name))

    def merge(self, name: str) -> None:
        """From now on roles with this adapter stand on copies of the adapted layers with it merged in (see
        `rtdmd.train.merging`). For an adapter that is loaded and learns no more, before `shard`; not in full mode."""
        base = self._under[name]
        self._layers[base].merge(name)
        if all(name in stack for role, stack in self.stacks.items() if self.base(role) is base):
            self._layers[base].forget_plain()

    def parts(self, role: str) -> tuple[list[nn.Linear], Stack]:
        """(the linear layers, with what is merged into them, to which a role's adapters are added; those adapters)."""
        layers = self._layers[self.base(role)]
        stack = self.stacks[role]
        return layers.below(stack), layers.split(stack)[1]

    def _computed_again(self, module: nn.Module, block: nn.Module, *inputs: Any) -> Any:
        """The output of a block of ``module``; its activations are computed again in the backward pass, through the
        adapters that were active in the forward pass (by then another role's may be)."""
        layers = self._layers.get(module)  # a copy of full mode has none
        stack = layers.active if layers is not None else ()

        def forward(*inputs: Any) -> Any:
            if layers is not None:
                layers.activate(stack)
            return block(*inputs)

        return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)

    def cost(self) -> str:
        """What full mode takes, in one line: each role's float32 weights, and for generator and fake score gradients
        and AdamW's moments; the generator's average too."""
        count = sum(p.numel() for p in self.backbone.transformer.parameters())
        one = 4 * count / 2**30
        own = ("teacher's", "student's")
        return (
            f"adapter.mode: full keeps {len(self._copies)} float32 copies of the transformer beside the"
            f" {' and the '.join(own[: len(self.transformers)])}"
            f" ({count / 1e9:.3g} billion parameters each): {len(self._copies) * one:.3g} GiB of weights, {2 * one:.3g}"
            f" of gradients, {4 * one:.3g} of AdamW's moments, {one:.3g} of the average; lora keeps one transformer"
        )

    def trainable(self, name: str) -> list[nn.Parameter]:
        """Parameters of one adapter, switched to training, for an optimizer; everything else stays frozen."""
        parameters = list(self._named_parameters(name).values())
        for parameter in parameters:
            parameter.requires_grad_(True)
        return parameters

    def velocity(
        self,
        role: str,
        x: Tensor,
        sigma: Tensor,
        cond: Conditioning,
        *,
        guidance: float = 1.0,
        null: Conditioning | None = None,
    ) -> Tensor:
        """v (B, C, H, W) float32 of a role; ``guidance`` with ``null`` is the teacher's."""
        stack = self.stacks[role]
        module = self._bases[role]
        if not self.full:
            self._layers[module].activate(stack)
        elif stack:
            module = self._copies[stack[-1]]
        with _precision(self.backbone, whole=self.full and bool(stack)):
            return self.backbone.velocity(module, x, sigma, cond, guidance=guidance, null=null)

    @contextmanager
    def scaled(self, name: str, factor: float) -> Iterator[None]:
        """One adapter at ``factor`` times its strength for a while. UserError in full mode, which has no adapters."""
        if self.full:
            raise UserError("adapter.mode: full has no adapter to scale; allowed: lora, or annealing.guidance: 0")
        layers = self.layers(name)
        kept = [layer.scaling[name] for layer in layers]
        for layer, scale in zip(layers, kept, strict=True):
            layer.scaling[name] = factor * scale
        try:
            yield
        finally:
            for layer, scale in zip(layers, kept, strict=True):
                layer.scaling[name] = scale

    def state(self, name: str) -> dict[str, Tensor]:
        """An adapter's tensors by name (``<module>.lora_A.weight``; all weights in full mode), detached copies."""
        return {key: value.detach().cpu().clone() for key, value in sorted(self._tensors(name).items())}

    def _tensors(self, name: str) -> dict[str, Tensor]:
        """An adapter's own tensors by the names of `state`."""
        if self.full:
            return dict(self._copies[name].state_dict())
        found = get_peft_model_state_dict(self._under[name], adapter_name=name)
        return {key: value for key, value in found.items() if ".lora_" in key}  # not what is merged beside it

    def load(self, name: str, tensors: Mapping[str, Tensor], source: str) -> None:
        """Load an adapter's tensors; UserError naming ``source`` unless every key and shape fits exactly and all values
        are finite."""
        _require_fitting(tensors, self._tensors(name), source)
        if self.full:
            fill(self._copies[name], tensors)
        else:
            set_peft_model_state_dict(self._under[name], dict(tensors), adapter_name=name)


def _precision(backbone: Backbone, *, whole: bool) -> torch.autocast:
    """That of a pass: the base's, also where a role has ``whole`` weights of its own, which are float32."""
    half = backbone.dtype if whole and backbone.dtype != torch.float32 else None
    return torch.autocast(backbone.device.type, dtype=half, enabled=half is not None)


def transformer_blocks(transformer: nn.Module) -> list[nn.Module]:
    """The blocks of a diffusers transformer in the order of its forward pass: the members of its module lists."""
    lists = (child for child in transformer.children() if isinstance(child, nn.ModuleList))
    return [block for blocks in lists for block in blocks]


def stage_two_stacks(params: Params) -> dict[str, Stack]:
    """The adapters of stage two's roles. Full mode, in which a fake score is a whole copy, goes on with stage one's."""
    stacks = ADAPTERS["train_rtdmd"]
    if params.train_rtdmd.weights.surrogate > 0:
        stacks = stacks | {"surrogate": ("surrogate",)}
    new = params.train_rtdmd.fake_adapter == "new" and params.adapter.mode == "lora"
    return stacks | {"fake": NEW_FAKE} if new else stacks


def merge_stage_one(bank: AdapterBank, params: Params) -> None:
    """Merge what stage one left below new adapters, where `stage_one_adapters` says so; in full mode it is anyway."""
    if params.train_rtdmd.stage_one_adapters == "stacked" or bank.full:
        return
    for role in ("generator", "fake"):
        for name in bank.stacks[role][:-1]:
            bank.merge(name)


def _require_fitting(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    """UserError naming ``source`` unless its tensors have exactly the names and shapes of ``own``, and are finite."""
    if odd := odd_names(tensors, own):
        raise UserError(
            f"{source} does not fit the adapter section of params.yaml ({len(odd)} tensors differ, first {odd[0]});"
            " run the stage that makes it again"
        )
    if (broken := not_finite(tensors)) is not None:
        raise UserError(f"{source}: {broken} has values that are not finite; run the stage that makes it again")


def load_student(
    params: Params, backbone: Backbone, stage: str, root: Path = Path()
) -> Callable[[Tensor, Tensor, Conditioning], Tensor]:
    """Velocity (x, sigma, cond) of the generator that training stage ``stage`` left in ``root``/results, frozen.

    Stage two's is stage one's adapter with its own on top, merged below it where it was trained so. In full mode its
    weights take the place of the base's in ``backbone``, so that no two transformers are held. UserError where a file
    is missing, does not fit, or was trained with other settings than ``params``.
    """
    stack = ADAPTERS[stage]["generator"]
    if params.adapter.mode == "full":
        return _whole_student(params, backbone, _student_file(stack[-1], root), root)
    bank = AdapterBank(backbone, params.adapter, {"generator": stack}, params.run.seed)
    for name in stack:
        source = _student_file(name, root)
        bank.load(name, read_student(root / source, params, source), source)
    if len(stack) > 1 and stands_on_merged(root / source):
        bank.merge(stack[0])
    return lambda x, sigma, cond: bank.velocity("generator", x, sigma, cond)


def _student_file(adapter: str, root: Path) -> str:
    """Where a training stage leaves its generator. UserError where it is not there."""
    source = f"results/train_{adapter}/generator.safetensors"
    if not (root / source).is_file():
        raise UserError(f"{source}: no such file; `rtdmd train_{adapter}` makes it")
    return source


def _whole_student(
    params: Params, backbone: Backbone, source: str, root: Path
) -> Callable[[Tensor, Tensor, Conditioning], Tensor]:
    """The velocity of a student of all weights, which are float32; passes run in the base's precision, as training's
    do."""
    module = backbone.student.float()
    tensors = read_student(root / source, params, source)
    _require_fitting(tensors, module.state_dict(), source)
    fill(module, tensors)

    def velocity(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        with _precision(backbone, whole=True):
            return backbone.velocity(module, x, sigma, cond)

    return velocity
