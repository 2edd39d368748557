"""Which square images a model can draw, as its configurations say: other resolutions than the trained one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtdmd.backbones import load_backbone
from rtdmd.backbones.family import family_module
from rtdmd.backbones.protocol import PipelineBackbone
from rtdmd.backbones.snapshot import base_folder
from rtdmd.common.errors import UserError
from rtdmd.common.model_files import bring_back, read_config

if TYPE_CHECKING:
    from rtdmd.config import ModelParams, Params

Configs = Mapping[str, Mapping[str, Any]]
"""config.json by part, of transformer and vae at least."""


def suite_sizes(params: Params, only: str | None = None) -> Iterator[tuple[str, int]]:
    """(setting, resolution) of the suites that draw at another resolution than the trained one, of all sections or of
    ``only`` (a key of `Params.judging`)."""
    for section, judging in params.judging.items():
        for suite in judging.suites:
            if only in (None, section) and suite.resolution not in (None, params.model.resolution):
                yield f"{section}.suites: {suite.name}: resolution", suite.resolution


def require_suites(params: Params, configs: Configs, name: str) -> None:
    """UserError for the first suite that the teacher, called ``name``, cannot draw at its resolution."""
    for key, resolution in suite_sizes(params):
        require_drawable(params.model, configs, resolution, key, name)


def require_drawable(model: ModelParams, configs: Configs, resolution: int, key: str, name: str) -> None:
    """UserError that names ``key`` unless the teacher, called ``name``, can draw squares of ``resolution`` pixels."""
    factor = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    multiple = factor * family_module(model.family).latent_multiple(configs["transformer"])
    if resolution < multiple or resolution % multiple:
        raise UserError(f"{key}: {resolution} is not a multiple of {multiple}, which {name} needs")
    patches = configs["transformer"].get("pos_embed_max_size")  # SD3's table of positions; the others compute theirs
    if isinstance(patches, int) and resolution > patches * multiple:
        raise UserError(f"{key}: {resolution} is more than {patches * multiple}, the largest that {name} can draw")


def folder_configs(folder: Path, key: str) -> Configs:
    """The configurations of a diffusers folder. UserError, which begins with ``key``, where they are not as needed."""
    configs = {part: read_config(folder / part / "config.json", key) for part in ("transformer", "vae")}
    if not isinstance(configs["vae"].get("block_out_channels"), list):
        raise UserError(f"{key}: {folder / 'vae' / 'config.json'} has no block_out_channels; {bring_back(folder)}")
    return configs


def sized_backbone(model: ModelParams, resolution: int, key: str, root: Path = Path(".")) -> PipelineBackbone:
    """The teacher without its weights at another ``resolution``: the shape of its latents and its levels there.
    UserError that names ``key`` where it cannot draw such images."""
    folder = base_folder(model, text=False, vae=False, root=root)
    require_drawable(model, folder_configs(folder, model.key), resolution, key, str(folder))
    sized = model.model_copy(update={"resolution": resolution, "width": None})
    return load_backbone(sized, vae=False, bases="none", root=root)
