"""A tiny HPSv3 in the published layout: HPSv3.safetensors by the package's names."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rtdmd.rehearse.reward_models.files import write_beside
from rtdmd.rehearse.reward_models.qwenvl import HIDDEN, LAYERS, SPECIAL, filled, outside_attention, vocabulary

WORDS = len(vocabulary()[0]) + len(SPECIAL) + 1  # and <|Reward|>
EYE = 32
KEYS = 16


def shapes() -> dict[str, tuple[int, ...]]:
    """Published name -> shape (Qwen2VLRewardModelBT of hpsv3 1.0.0 with transformers 4.45)."""
    found: dict[str, tuple[int, ...]] = {
        "visual.patch_embed.proj.weight": (EYE, 3, 2, 14, 14),
        "visual.merger.ln_q.weight": (EYE,),
        "visual.merger.ln_q.bias": (EYE,),
        "visual.merger.mlp.0.weight": (4 * EYE, 4 * EYE),
        "visual.merger.mlp.0.bias": (4 * EYE,),
        "visual.merger.mlp.2.weight": (HIDDEN, 4 * EYE),
        "visual.merger.mlp.2.bias": (HIDDEN,),
        "model.embed_tokens.weight": (WORDS, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (WORDS, HIDDEN),
        "rm_head.0.weight": (1024, HIDDEN),
        "rm_head.0.bias": (1024,),
        "rm_head.3.weight": (16, 1024),
        "rm_head.3.bias": (16,),
        "rm_head.5.weight": (2, 16),
        "rm_head.5.bias": (2,),
    }
    for i in range(LAYERS):
        eye = f"visual.blocks.{i}"
        layer = f"model.layers.{i}"
        matrices = {
            "attn.qkv": (3 * EYE, EYE),
            "attn.proj": (EYE, EYE),
            "mlp.fc1": (2 * EYE, EYE),
            "mlp.fc2": (EYE, 2 * EYE),
        }
        for name, size in matrices.items():
            found |= {f"{eye}.{name}.weight": size, f"{eye}.{name}.bias": size[:1]}
        found |= {f"{eye}.norm{n}.{kind}": (EYE,) for n in (1, 2) for kind in ("weight", "bias")}
        for name, width in {"q": HIDDEN, "k": KEYS, "v": KEYS}.items():
            found |= {
                f"{layer}.self_attn.{name}_proj.weight": (width, HIDDEN),
                f"{layer}.self_attn.{name}_proj.bias": (width,),
            }
        found |= {
            f"{layer}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            **outside_attention(layer),
        }
    return found


def published_weights() -> dict[str, Tensor]:
    return filled(shapes())


def write_hpsv3(folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """MizzenAI/HPSv3's file, its body in bfloat16; `qwenvl.write_qwen2vl` has the base that it sits on."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = published_weights()
    body = {name: tensor.to(dtype) for name, tensor in tensors.items() if not name.startswith("rm_head.")}
    save_file(tensors | body, folder / "HPSv3.safetensors")
    write_beside(folder)
