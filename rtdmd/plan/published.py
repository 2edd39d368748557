"""The published models as facts: the config.json of each part, where a plan cannot read it from a folder.

Read from the Hub's files; only what decides shapes is kept. Keys are Hub ids, then folders of the diffusers pipeline.
"""

from __future__ import annotations

from typing import Any

from rtdmd.rewards.published import CLIP_TEXT_L

Config = dict[str, Any]

_SD3: Config = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
}
_FLUX2: Config = {
    "_class_name": "Flux2Transformer2DModel",
    "patch_size": 1,
    "in_channels": 128,
    "attention_head_dim": 128,
    "mlp_ratio": 3.0,
    "rope_theta": 2000,
    "axes_dims_rope": (32, 32, 32, 32),
    "eps": 1e-6,
    "guidance_embeds": False,
    "timestep_guidance_channels": 256,
}
_VAE: Config = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
}
_VAE2: Config = {"_class_name": "AutoencoderKLFlux2", "block_out_channels": (128, 256, 512, 512), "latent_channels": 32}
_CLIP_L: Config = CLIP_TEXT_L | {"architectures": ["CLIPTextModelWithProjection"]}
_CLIP_G: Config = _CLIP_L | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
_T5: Config = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 32128,
}
_QWEN3: Config = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
_SD3_TEXT = {"text_encoder": _CLIP_L, "text_encoder_2": _CLIP_G, "text_encoder_3": _T5}

TEACHERS: dict[str, dict[str, Config]] = {
    "stabilityai/stable-diffusion-3-medium-diffusers": {
        "transformer": _SD3 | {"pos_embed_max_size": 192},
        "vae": _VAE,
        **_SD3_TEXT,
    },
    "stabilityai/stable-diffusion-3.5-medium": {
        "transformer": _SD3
        | {"pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))},
        "vae": _VAE,
        **_SD3_TEXT,
    },
    "black-forest-labs/FLUX.1-dev": {
        "transformer": {
            "_class_name": "FluxTransformer2DModel",
            "patch_size": 1,
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": True,
            "axes_dims_rope": (16, 56, 56),
        },
        "vae": _VAE,
        "text_encoder": _CLIP_L | {"architectures": ["CLIPTextModel"]},
        "text_encoder_2": _T5,
    },
    "black-forest-labs/FLUX.2-klein-base-4B": {
        "transformer": _FLUX2
        | {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 3 * 2560},
        "vae": _VAE2,
        "text_encoder": _QWEN3,
    },
    "black-forest-labs/FLUX.2-klein-base-9B": {
        "transformer": _FLUX2
        | {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 3 * 4096},
        "vae": _VAE2,
        "text_encoder": _QWEN3 | {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False},
    },
}

_SHIFTED: Config = {
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "base_shift": 0.5,
    "max_shift": 1.15,
}
SCHEDULERS: dict[str, Config] = {
    "SD3Transformer2DModel": {"num_train_timesteps": 1000, "shift": 3.0},
    "FluxTransformer2DModel": _SHIFTED,
    "Flux2Transformer2DModel": _SHIFTED | {"time_shift_type": "exponential"},
}
"""What decides the levels in the published scheduler_config.json (a FlowMatchEulerDiscreteScheduler's), by the
transformer's class."""
