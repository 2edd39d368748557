"""Stage cache_teacher: the teacher's own text conditioning of every prompt and of the null prompt.

Run `rtdmd cache_teacher`: it reads params.yaml and the prompt files and writes results/cache_teacher/.
"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from rtdmd.backbones import Backbone, Conditioning, load_backbone
from rtdmd.prompts import read_prompts
from rtdmd.stage import open_stage
from rtdmd.textcache import NULL_PROMPT, PROMPT_FOLDER, cache_key, write_cache
from rtdmd.torch_setup import configure


def run(root: Path = Path(".")) -> None:
    """Run the stage in the repository at ``root``."""
    with open_stage("cache_teacher", root) as stage:
        params = stage.params
        device = configure(params.run)
        files = {split: stage.input(f"{PROMPT_FOLDER}/{split}.jsonl") for split in ("train", "eval")}
        prompts = [NULL_PROMPT, *dict.fromkeys(p.prompt for path in files.values() for p in read_prompts(path))]
        backbone = load_backbone(params.model, text=True, vae=False, device=device, root=root)
        cond = encode_all(backbone, prompts, params.cache_teacher.batch_size)
        key = cache_key(params.model, files, root)
        write_cache(stage.output("embeddings.safetensors"), stage.output("index.json"), prompts, cond, key)


def encode_all(backbone: Backbone, prompts: list[str], batch_size: int) -> Conditioning:
    """Conditioning of all prompts on the CPU, ``batch_size`` at a time."""
    starts = tqdm(range(0, len(prompts), batch_size), desc="cache_teacher", unit="batch", mininterval=1)
    return Conditioning.cat([backbone.encode(prompts[start : start + batch_size]).to("cpu") for start in starts])
