"""The weights file that plain diffusers loads: one LoRA adapter with its alpha, through the pipeline's own writer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.files import load_tensors, save_tensors
from rtdmd.publish.compose import Adapter
from rtdmd.torch_setup import quiet_imports

with quiet_imports():
    from diffusers import StableDiffusion3Pipeline


def adapter_metadata(adapter: Adapter) -> dict[str, Any]:
    """PEFT's LoraConfig entries that a loader needs, for the file's header."""
    alpha = int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha
    return {"r": adapter.rank, "lora_alpha": alpha, "target_modules": adapter.modules(), "bias": "none"}


def write_lora(adapter: Adapter, path: Path) -> None:
    """Write an adapter to ``path`` as StableDiffusion3Pipeline.save_lora_weights does, with the same bytes every time.

    diffusers decides the keys and the header; only the header's order, which it leaves to chance, is made fixed.
    """
    with tempfile.TemporaryDirectory() as folder:
        StableDiffusion3Pipeline.save_lora_weights(
            folder,
            transformer_lora_layers={key: value.contiguous() for key, value in adapter.tensors.items()},
            transformer_lora_adapter_metadata=adapter_metadata(adapter),
        )
        tensors, metadata = load_tensors(Path(folder) / PUBLISHED)
    save_tensors(tensors, path, metadata)
