"""Stand-ins of the teacher and of the student's base: diffusers repositories of the real classes at a tiny size.

What is written is the published layout (`rtdmd.rehearse.layouts`) of the published configurations
(`rtdmd.plan.published`) made small (`rtdmd.rehearse.shrink`), with random weights. So a backbone's own file needs
nothing for its rehearsal: its configurations are in `rtdmd.plan.published`, as a plan needs them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rtdmd.backbones import family_module
from rtdmd.common.errors import UserError
from rtdmd.common.files import load_tensors, write_json
from rtdmd.common.rng import key_seed
from rtdmd.common.torch_setup import quiet_imports, quiet_loading
from rtdmd.config.families import FAMILIES
from rtdmd.plan.published import SCHEDULERS, TEACHERS
from rtdmd.rehearse.layouts import EVERYWHERE, LAYOUTS, Layout
from rtdmd.rehearse.reward_models.files import write_shards
from rtdmd.rehearse.shrink import NARROWER, shrunk
from rtdmd.rehearse.stand_in import StandIn
from rtdmd.rehearse.tokenizers import WORDS, write_clip, write_qwen, write_t5

with quiet_imports():
    import diffusers
    import transformers

if TYPE_CHECKING:
    from rtdmd.config import ModelParams, Params

_TOKENIZERS = {
    "clip_text_model": ("CLIPTokenizer", write_clip),
    "t5": ("T5TokenizerFast", write_t5),
    "qwen3": ("Qwen2TokenizerFast", write_qwen),
}
"""Class and writer of the tokenizer that goes with a text encoder, by its kind."""
_SECOND_CLIP = "tokenizer_2"  # SD3's pads with its first token, as CLIP-G's does


def stand_ins(params: Params) -> list[StandIn]:
    """A stand-in for each base of ``params.model`` that is on the Hub; a folder of the user's is rehearsed as it is.

    UserError where no shapes are recorded for the family.
    """
    words = sorted({*WORDS, *re.findall(r"[a-z]+", params.publish.prompt.lower())})
    return [_stand_in(model, words) for model in params.model.bases() if model.is_hub_id]


def _stand_in(model: ModelParams, words: Sequence[str]) -> StandIn:
    layout = LAYOUTS.get(model.teacher) or Layout(_nearest(model))
    blocks = TEACHERS[layout.like]["transformer"]["num_layers"]
    departs = (
        f"its weights are random, its widths a {NARROWER}th and its blocks 2 of {blocks}: no image, score, hour or GiB"
        f" of {model.teacher} is foretold"
    )
    if model.teacher not in LAYOUTS:
        departs += f"; its files are not known here, those of {layout.like} stand in"
    write = partial(write_base, family=model.family, name=model.teacher, layout=layout, words=words)
    return StandIn(model.teacher, model.revision, "model", layout.gated, write, departs)


def _nearest(model: ModelParams) -> str:
    """A recorded model of the family."""
    kinds = family_module(model.family).PIPELINE._get_signature_types()["transformer"]
    names = {kind.__name__ for kind in kinds}
    for name, configs in TEACHERS.items():
        if configs["transformer"]["_class_name"] in names:
            return name
    raise UserError(
        f"{model.key}: no shapes of family {model.family} are recorded, so {model.teacher} has no stand-in; add its"
        " config.json to rtdmd/plan/published.py, or name a folder"
    )


def write_base(folder: Path, *, family: str, name: str, layout: Layout, words: Sequence[str]) -> None:
    """Fill ``folder`` with a stand-in of the repository ``name``; words: those that are one token each."""
    configs = TEACHERS[layout.like]
    index: dict[str, Any] = {"_class_name": family_module(family).PIPELINE.__name__, "_diffusers_version": "0.30.0"}
    if layout.distilled:
        index["is_distilled"] = True
    tokens: dict[str, int] = {}
    for part in (*FAMILIES[family].clip_tokenizers, *FAMILIES[family].long_tokenizers):
        encoder = part.replace("tokenizer", "text_encoder")
        kind, write = _TOKENIZERS[configs[encoder]["model_type"]]
        if part == _SECOND_CLIP and kind == "CLIPTokenizer":
            write = partial(write_clip, pad="!")
        tokens[encoder] = write(folder / part, words)
        index[part] = ["transformers", kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_seed("stand-in", name))
        for part, config in shrunk(configs, tokens).items():
            module = _module(config)
            nn.Module.to(module, getattr(torch, layout.dtypes.get(part, layout.dtype)))  # diffusers' own one warns
            with quiet_loading():
                module.save_pretrained(folder / part, safe_serialization=True)
            index[part] = [type(module).__module__.split(".")[0], type(module).__name__]
    scheduler = "FlowMatchEulerDiscreteScheduler"
    index["scheduler"] = ["diffusers", scheduler]
    levels = SCHEDULERS[configs["transformer"]["_class_name"]]
    write_json(folder / "scheduler/scheduler_config.json", {"_class_name": scheduler} | levels)
    write_json(folder / "model_index.json", index)
    for part, count in layout.shards.items():
        single = next((folder / part).glob("*.safetensors"))
        tensors, about = load_tensors(single)
        write_shards(tensors, single, count, about)
        single.unlink()
    for part in layout.variants:
        _copy_as_variant(folder / part)
    for file in (*EVERYWHERE, *layout.beside):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(f"{file} of {name} is not read\n", encoding="utf-8")


def _module(config: dict[str, Any]) -> Any:
    """A part with random weights, by its configuration."""
    if "_class_name" not in config:
        built = transformers.AutoConfig.for_model(**config)
        return getattr(transformers, config["architectures"][0])(built)
    module = getattr(diffusers, config["_class_name"]).from_config(config)
    if isinstance(module, diffusers.AutoencoderKLFlux2):  # statistics of the latents
        module.bn.running_mean.normal_(0, 0.3)
        module.bn.running_var.uniform_(0.5, 2.0)
    return module


def _copy_as_variant(part: Path) -> None:
    """A second copy of a text encoder's weights, named fp16, as published beside the first."""
    for file in sorted(part.glob("model*")):
        if file.suffix == ".json":
            table = file.read_text(encoding="utf-8").replace("model-", "model.fp16-")
            file.with_name("model.safetensors.index.fp16.json").write_text(table, encoding="utf-8")
        else:
            shutil.copy(file, file.with_name(file.name.replace("model", "model.fp16", 1)))
