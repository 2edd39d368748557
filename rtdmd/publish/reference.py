"""Checkpoints of the public code (and PEFT folders, and published files of ours) as adapters.

The public code saves the LoRA tensors of its generator as ``generator_ema.pt``: a plain state dict whose keys are
``<module>.lora_A.<adapter>.weight``, some with the prefixes of what wrapped the model while it was trained. A state
dict holds no alpha; the public code's is 64 at rank 32. Its PEFT folders (``transformer/``) hold one in
adapter_config.json.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdmd.backbones import Backbone, Conditioning
from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.backbones.sampling import Velocity
from rtdmd.common.errors import UserError
from rtdmd.common.files import load_tensors, read_json
from rtdmd.publish.compose import A, Adapter, B
from rtdmd.publish.merge import check_fits

ALPHA = 64.0  # the public code's, at rank 32
PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "_fsdp_wrapped_module.", "transformer.")
KEY = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.[^.]+)?\.weight")


def read_reference(path: Path, alpha: float | None = None) -> Adapter:
    """The adapter in a checkpoint: a .pt or .safetensors file, a PEFT folder, or a folder with one in transformer/.

    alpha: of a checkpoint that does not say it; None: the public code's 64. UserError for anything but a complete set
    of finite LoRA factors of one rank.
    """
    tensors, told = _read(path)
    factors = _factors(tensors, path)
    rank = _rank(factors, path)
    if told is not None and alpha is not None and told != alpha:
        raise UserError(f"--alpha {alpha:g}: {path} itself says {told:g}; leave --alpha out")
    known = told if told is not None else alpha if alpha is not None else ALPHA
    return Adapter(factors, rank, float(known))


def _read(path: Path) -> tuple[Mapping[str, Tensor], float | None]:
    """(tensors, alpha where the checkpoint says it)."""
    for folder in (path, path / "transformer"):
        if (folder / PEFT_WEIGHTS).is_file():
            return load_tensors(folder / PEFT_WEIGHTS)[0], _peft_alpha(folder / PEFT_CONFIG)
    if (path / PUBLISHED).is_file():
        path = path / PUBLISHED
    if not path.is_file():
        raise UserError(f"{path}: neither a checkpoint file nor a folder with {PEFT_WEIGHTS} or {PUBLISHED}")
    if path.suffix == ".safetensors":
        tensors, header = load_tensors(path)
        return tensors, _published_alpha(header)
    return _load_plain(path), None


def _load_plain(path: Path) -> Mapping[str, Tensor]:
    """A state dict of torch.save, read without running anything that is in it."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: not a file of plain tensors ({first})") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path}: a state dict of tensors is expected; generator_ema.pt of a checkpoint is one")
    return found


def _peft_alpha(path: Path) -> float | None:
    """lora_alpha of a PEFT folder; UserError for variants of LoRA that scale otherwise."""
    if not path.is_file():
        return None
    config: dict[str, Any] = read_json(path)
    odd = [key for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern") if config.get(key)]
    if odd:
        raise UserError(f"{path}: {odd[0]} is set; only plain LoRA of one rank can be imported")
    return float(config["lora_alpha"]) if "lora_alpha" in config else None


def _published_alpha(header: Mapping[str, str]) -> float | None:
    """The alpha in the header that diffusers' save_lora_weights writes."""
    told = json.loads(header.get("lora_adapter_metadata", "{}")).get("transformer.lora_alpha")
    return None if told is None else float(told)


def _factors(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors under our names, float32; UserError for a key that is no LoRA factor, or comes twice."""
    factors: dict[str, Tensor] = {}
    for key, value in tensors.items():
        match = KEY.fullmatch(_unwrapped(key))
        if match is None:
            raise UserError(f"{path}: {key} is no LoRA factor; only adapters can be imported")
        name = match["module"] + (A if match["factor"] == "A" else B)
        if name in factors:
            raise UserError(f"{path}: two tensors for {name}; a checkpoint of one adapter is expected")
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: {key} holds numbers that are not finite")
        factors[name] = value.detach().float().contiguous()
    if not factors:
        raise UserError(f"{path}: holds no tensors")
    return factors


def _unwrapped(key: str) -> str:
    """A key without the prefixes of wrappers, however many there are."""
    while True:
        shorter = key
        for prefix in WRAPPERS:
            shorter = shorter.removeprefix(prefix)
        if shorter == key:
            return key
        key = shorter


def _rank(factors: Mapping[str, Tensor], path: Path) -> int:
    """The one rank of complete pairs; UserError otherwise."""
    modules = {key.removesuffix(A).removesuffix(B) for key in factors}
    ranks = set()
    for module in sorted(modules):
        a, b = factors.get(module + A), factors.get(module + B)
        if a is None or b is None or a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
            raise UserError(f"{path}: {module} has no matching pair of LoRA factors; is the file cut short?")
        ranks.add(a.shape[0])
    if len(ranks) != 1:
        raise UserError(f"{path}: ranks {sorted(ranks)}; only adapters of one rank can be imported")
    return int(ranks.pop())


def stacked_student(backbone: Backbone, adapters: Mapping[str, Adapter]) -> Velocity:
    """Velocity (x, sigma, cond) of the backbone with every adapter on it, by PEFT, each at its own scale.

    UserError where an adapter does not fit the transformer.
    """
    from peft import LoraConfig, set_peft_model_state_dict

    transformer: Any = backbone.transformer
    shapes = {name: tuple(value.shape) for name, value in transformer.state_dict().items()}
    for name, adapter in adapters.items():
        check_fits(adapter, shapes, name)
    for name, adapter in adapters.items():
        config = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=adapter.modules())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are the point
            transformer.add_adapter(config, adapter_name=name)
        set_peft_model_state_dict(transformer, adapter.tensors, adapter_name=name)
    transformer.set_adapters(list(adapters))

    def velocity(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        return backbone.velocity(transformer, x, sigma, cond)

    return velocity
