"""A published model's configurations at a tiny size: the same classes, settings and proportions, few and thin layers.

Widths are a 128th of the published ones, so that what has to be a multiple or a sum of others still is (the text
encoders' widths, and what the transformer takes of them). What the code derives from a configuration stays: patches,
latent channels, the halvings of the VAE, distilled guidance, norms, kinds of blocks, windows of the text encoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = dict[str, Any]

NARROWER = 128
_HEADS = 2
_BLOCKS = 2
_QWEN_LAYERS = 28  # FLUX.2 reads the outputs of layers 9, 18 and 27


def shrunk(configs: Mapping[str, Config], tokens: Mapping[str, int]) -> dict[str, Config]:
    """config.json by part, of the parts that have weights; tokens: the size of each text encoder's vocabulary."""
    small: dict[str, Config] = {}
    for part, config in configs.items():
        if part == "transformer":
            small[part] = _transformer(config)
        elif part == "vae":
            small[part] = _vae(config)
        else:
            small[part] = _TEXT[config["model_type"]](config) | {"vocab_size": tokens[part]}
    return small


def _transformer(config: Config) -> Config:
    head = config["attention_head_dim"] // 8
    small = config | {"attention_head_dim": head, "num_attention_heads": _HEADS}
    for blocks in ("num_layers", "num_single_layers"):
        if blocks in config:
            small[blocks] = _BLOCKS
    for width in ("joint_attention_dim", "pooled_projection_dim"):
        if width in config:
            small[width] = config[width] // NARROWER
    if "caption_projection_dim" in config:
        small["caption_projection_dim"] = _HEADS * head
    if "dual_attention_layers" in config:  # some blocks have a second attention, and some have not
        small["dual_attention_layers"] = (0,)
    if "axes_dims_rope" in config:
        small["axes_dims_rope"] = _axes(config["axes_dims_rope"], head)
    for side in ("sample_size", "pos_embed_max_size"):
        if side in config:
            small[side] = config[side] // 8
    return small


def _axes(axes: tuple[int, ...], head: int) -> tuple[int, ...]:
    """Dimensions of a head by position axis: an eighth, each even, all of the head's together."""
    others = [axis // 16 * 2 for axis in axes[1:]]
    return (head - sum(others), *others)


def _vae(config: Config) -> Config:
    channels = tuple(width // 32 for width in config["block_out_channels"])
    return config | {"block_out_channels": channels, "layers_per_block": 1, "norm_num_groups": 4}


def _clip(config: Config) -> Config:
    widths = {key: config[key] // NARROWER for key in ("hidden_size", "intermediate_size", "projection_dim")}
    marks = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # as published: wrong, so the last one is taken
    return config | widths | marks | {"num_hidden_layers": 2, "num_attention_heads": _HEADS}


def _t5(config: Config) -> Config:
    widths = {key: config[key] // NARROWER for key in ("d_model", "d_ff")}
    return config | widths | {"d_kv": config["d_kv"] // 8, "num_heads": _HEADS, "num_layers": 2}


def _qwen3(config: Config) -> Config:
    widths = {key: config[key] // NARROWER for key in ("hidden_size", "intermediate_size")}
    heads = {"num_attention_heads": _HEADS, "num_key_value_heads": 1, "head_dim": config["head_dim"] // 8}
    return config | widths | heads | {"num_hidden_layers": _QWEN_LAYERS}


_TEXT = {"clip_text_model": _clip, "t5": _t5, "qwen3": _qwen3}
