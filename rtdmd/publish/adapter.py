"""LoRA adapters: read from every kind of file, composed into one, and written as diffusers writes them.

    training stage     generator.safetensors: rank and alpha in its header
    diffusers          pytorch_lora_weights.safetensors: PEFT's LoraConfig in its header
    PEFT               adapter_model.safetensors with adapter_config.json beside it, or the folder of both
    public code        generator_ema.pt: a state dict ``<module>.lora_A.<adapter>.weight``, with the prefixes of what
                       wrapped the model while it was trained, and no alpha (the public code's is 64 at rank 32)

Whatever the file, an adapter is a complete set of finite factors of one rank with one alpha. What PEFT scales otherwise
(rank-stabilised LoRA, an alpha or a rank of its own for some layers) is refused: taken as plain LoRA, it would be
applied at another strength without a word.
"""

from __future__ import annotations

import math
import pickle
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdmd.backbones import Backbone
from rtdmd.backbones.protocol import PUBLISHED, LoraKind
from rtdmd.common.errors import UserError
from rtdmd.common.files import check_archive, load_tensors, read_json, save_tensors
from rtdmd.common.parsing import first_line, parse_json
from rtdmd.common.pretrained import FOREIGN
from rtdmd.publish.base import pipeline_class
from rtdmd.train.student_record import stands_on_merged

A = ".lora_A.weight"
B = ".lora_B.weight"
PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
# where diffusers keeps the LoraConfig
HEADER = "lora_adapter_metadata"
HEADER_PREFIX = "transformer."
KEY = re.compile(
    r"((module|_orig_mod|base_model\.model|_fsdp_wrapped_module|transformer)\.)*"
    r"(?P<module>.+)\.lora_(?P<factor>[AB])(\.[^.]+)?\.weight"
)
"""A factor's name, behind the prefixes of whatever wrapped the model."""
NOT_PLAIN = (
    *("use_rslora", "use_dora", "use_qalora", "rank_pattern", "alpha_pattern", "lora_bias", "fan_in_fan_out"),
    *("modules_to_save", "layers_to_transform", "layers_pattern", "layer_replication", "exclude_modules"),
    *("target_parameters", "trainable_token_indices", "alora_invocation_tokens"),
)
"""Entries of PEFT's LoraConfig with which an adapter is more, or other, than alpha / rank B A on some linear layers."""
OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of PEFT's init_lora_weights that change the base's weights too: the adapter alone is not the student."""
KINDS: tuple[LoraKind, ...] = ("attention", "attention_mlp", "all")  # adapter.targets
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Adapter:
    """Tensors ``<module>.lora_A.weight`` (r, in) and ``<module>.lora_B.weight`` (out, r), relative to the
    transformer."""

    tensors: dict[str, Tensor]
    rank: int
    alpha: float
    config: Config | None = None  # LoraConfig as its file tells it: what PEFT itself would make of it

    def modules(self) -> list[str]:
        """Names of the adapted modules, sorted."""
        return sorted(key.removesuffix(A) for key in self.tensors if key.endswith(A))

    def shape(self, module: str) -> tuple[int, int]:
        """(out, in) of the weight that the module's factors belong to."""
        return self.tensors[module + B].shape[0], self.tensors[module + A].shape[1]

    def delta(self, module: str) -> Tensor:
        """What the adapter adds to the module's weight, (out, in), computed in float32."""
        return self.alpha / self.rank * self.tensors[module + B].float() @ self.tensors[module + A].float()


def read_adapter(path: Path, alpha: float | None = None) -> Adapter:
    """The adapter of a file, or of a folder with one in it or in its transformer/.

    alpha: of a file that does not say it. UserError for anything but plain LoRA: see the module.
    """
    if alpha is not None and not _is_positive(alpha):
        raise UserError(f"--alpha {alpha:g}: a number above 0 is expected (the public code's is 64, at rank 32)")
    file = _adapter_path(path)
    tensors, config = _read(file)
    factors = _factors(tensors, file)
    rank = _rank(factors, file)
    told = _told(config or {}, file)
    if told.get("r", rank) != rank:
        raise UserError(
            f"{file}: rank {told['r']:g} in its settings, but its tensors have {rank};"
            " it is not the file that was saved"
        )
    known = told.get("lora_alpha")
    if known is not None and alpha is not None and known != alpha:
        raise UserError(f"--alpha {alpha:g}: {file} itself says {known:g}; leave --alpha out")
    used = alpha if known is None else known
    if used is None:
        raise UserError(f"{file} does not record alpha; give it with --alpha (the public code's is 64, at rank 32)")
    return Adapter(factors, rank, float(used), config)


def trained_on_merged(path: Path) -> bool:
    """Whether a checkpoint of stage two was trained on stage one's merged into its base: as the public code's are, and
    as the header of a training stage's says."""
    file = _adapter_path(path)
    return file.suffix != ".safetensors" or stands_on_merged(file)


def _adapter_path(path: Path) -> Path:
    """The file that holds the tensors. UserError where there is none."""
    for file in (path, path / PEFT_WEIGHTS, path / "transformer" / PEFT_WEIGHTS, path / PUBLISHED):
        if file.is_file():
            return file
    raise UserError(
        f"{path}: neither a checkpoint file nor a folder with {PEFT_WEIGHTS} or {PUBLISHED}; correct the path"
    )


def _read(file: Path) -> tuple[Mapping[str, Tensor], Config | None]:
    """(tensors, LoraConfig as the file or its folder tells it)."""
    if file.suffix != ".safetensors":
        return _load_plain(file), None
    tensors, header = load_tensors(file)
    beside = file.parent / PEFT_CONFIG
    if file.name == PEFT_WEIGHTS and beside.is_file():
        return tensors, read_json(beside)
    if HEADER in header:
        told = parse_json(header[HEADER], f"{file}: {HEADER}")
        return tensors, {key.removeprefix(HEADER_PREFIX): told[key] for key in told if key.startswith(HEADER_PREFIX)}
    if {"rank", "alpha"} <= header.keys():
        return tensors, {"r": _parsed(header["rank"]), "lora_alpha": _parsed(header["alpha"])}
    return tensors, None


def _parsed(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _load_plain(path: Path) -> Mapping[str, Tensor]:
    """A state dict of torch.save, read without running anything that is in it, its checksums compared first."""
    check_archive(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own advice, to read it without the guard, runs what is in it
        raise UserError(
            f"{path}: not a file of plain tensors: it is damaged, or holds objects that would run code, and these are"
            " never loaded; copy or download it again"
        ) from error
    except FOREIGN as error:
        raise UserError(
            f"{path}: not a file of plain tensors ({first_line(error)}); copy or download it again"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path}: a state dict of tensors is expected; generator_ema.pt of a checkpoint is one")
    return found


def _told(config: Config, file: Path) -> dict[str, float]:
    """Rank and alpha where they are told; UserError for variants of LoRA that scale otherwise."""
    odd = [key for key in NOT_PLAIN if config.get(key)]
    odd += ["bias"] if config.get("bias") not in (None, "none") else []
    odd += ["peft_type"] if config.get("peft_type", "LORA") != "LORA" else []
    odd += ["init_lora_weights"] if str(config.get("init_lora_weights")).lower().startswith(OTHER_BASE) else []
    if odd:
        raise UserError(f"{file}: {odd[0]} is set; only plain LoRA of one rank can be taken")
    told = {key: config[key] for key in ("r", "lora_alpha") if config.get(key) is not None}
    for key, value in told.items():
        if not _is_positive(value):
            raise UserError(f"{file}: {key} is {value!r}, not a number above 0; copy or download the file again")
    return told


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _factors(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors under our names, float32; UserError for a key that is no LoRA factor, or comes twice."""
    factors: dict[str, Tensor] = {}
    for key, value in tensors.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise UserError(f"{path}: {key} is not a LoRA factor; only adapters (adapter.mode: lora) can be taken")
        name = match["module"] + (A if match["factor"] == "A" else B)
        if name in factors:
            raise UserError(f"{path}: two tensors for {name}; a checkpoint of one adapter is expected")
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: {key} holds numbers that are not finite; take an earlier checkpoint")
        factors[name] = value.detach().float().contiguous()
    if not factors:
        raise UserError(f"{path}: holds no tensors; copy or download it again")
    return factors


def _rank(factors: Mapping[str, Tensor], path: Path) -> int:
    """The one rank of complete pairs; UserError otherwise."""
    ranks = set()
    for module in sorted({key.removesuffix(A).removesuffix(B) for key in factors}):
        a = factors.get(module + A)
        b = factors.get(module + B)
        if a is None or b is None or a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
            raise UserError(f"{path}: {module} has no matching pair of LoRA factors; is the file truncated?")
        ranks.add(a.shape[0])
    if len(ranks) != 1:
        raise UserError(f"{path}: ranks {sorted(ranks)}; only plain LoRA of one rank can be taken")
    return int(ranks.pop())


def check_fits(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """UserError unless every adapted module is a linear layer of the base with the adapter's shape.

    shapes: weight name -> shape of the base's transformer. what: how the message calls the adapter.
    """
    for module in adapter.modules():
        found = shapes.get(f"{module}.weight")
        if found is None:
            raise UserError(
                f"{what}: {module} is not a layer of the base model; another base, or another family, is needed"
            )
        if tuple(found) != adapter.shape(module):
            raise UserError(
                f"{what}: {module} is made for a weight {adapter.shape(module)}, the base has {tuple(found)};"
                " another base is needed"
            )


def check_belongs(adapter: Adapter, backbone: Backbone, what: str) -> None:
    """UserError unless the adapter fits the base, and no layer that it should adapt is missing: those that its own
    configuration names or, where it has none, the layers of one of adapter.targets.

    To be called before any adapter is on the transformer. what: how the message calls the adapter.
    """
    check_fits(adapter, {name: tuple(value.shape) for name, value in backbone.transformer.state_dict().items()}, what)
    found = set(adapter.modules())
    targets = (adapter.config or {}).get("target_modules")
    if targets is None:
        kinds = {kind: set(backbone.lora_targets(kind)) for kind in KINDS}
        if found not in kinds.values():
            sizes = ", ".join(f"{kind} ({len(names)})" for kind, names in kinds.items())
            raise UserError(f"{what}: {len(found)} layers, which are none of {sizes}; is a part of the file missing?")
        return
    missing = [name for name in backbone.lora_targets("all") if _is_targeted(name, targets) and name not in found]
    if missing:
        raise UserError(
            f"{what}: no tensors for {len(missing)} layers that its target_modules name, first {missing[0]}; copy or"
            " download it again"
        )


def _is_targeted(name: str, targets: str | Iterable[str]) -> bool:
    """Whether PEFT's target_modules mean a linear layer: a pattern of the whole name, or ends of names."""
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def compose(adapters: Sequence[Adapter]) -> Adapter:
    """Adapters that are stacked one on the other as ONE of the summed rank.

    With A (r, in), B (out, r) and scale = alpha / r, they add ``sum_i scale_i B_i A_i`` to a base weight. The rows of
    A and the columns of ``scale B``, concatenated, give the same sum in one product, at scale 1 (alpha = rank), so that
    a loader that overlooks the alpha still applies it in the right strength. A module that an adapter lacks gets zeros
    in its place.
    """
    tensors: dict[str, Tensor] = {}
    for module in sorted({module for adapter in adapters for module in adapter.modules()}):
        outer, inner = next(one.shape(module) for one in adapters if module + A in one.tensors)
        rows = []
        columns = []
        for one in adapters:
            rows.append(one.tensors.get(module + A, torch.zeros(one.rank, inner)).float())
            columns.append(one.alpha / one.rank * one.tensors.get(module + B, torch.zeros(outer, one.rank)).float())
        tensors[module + A] = torch.cat(rows, dim=0).contiguous()
        tensors[module + B] = torch.cat(columns, dim=1).contiguous()
    rank = sum(adapter.rank for adapter in adapters)
    return Adapter(tensors, rank, alpha=float(rank))


def write_lora(
    adapter: Adapter,
    path: Path,
    metadata: Mapping[str, str] | None = None,
    pipeline: str = "StableDiffusion3Pipeline",
) -> None:
    """Write an adapter to ``path`` as the pipeline class's ``save_lora_weights`` does, with the same bytes every time.

    diffusers decides the keys and the header; only the header's order, which it leaves to chance, is made fixed, and
    ``metadata`` is added to it. pipeline: the class's name in diffusers.
    """
    alpha = int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha
    config = {"r": adapter.rank, "lora_alpha": alpha, "target_modules": adapter.modules(), "bias": "none"}
    with tempfile.TemporaryDirectory() as folder:
        pipeline_class(pipeline).save_lora_weights(
            folder,
            transformer_lora_layers={key: value.contiguous() for key, value in adapter.tensors.items()},
            transformer_lora_adapter_metadata=config,
        )
        tensors, header = load_tensors(Path(folder) / PUBLISHED)
    save_tensors(tensors, path, header | dict(metadata or {}))
