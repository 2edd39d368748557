"""Settings that decide which files a stage writes, against the outputs that dvc.yaml lists for it."""

from __future__ import annotations

from pathlib import PurePosixPath

from rtdmd.common.errors import UserError
from rtdmd.config import Params
from rtdmd.pipeline.dvc_yaml import StageEntry

FORMS: dict[str, tuple[str, ...]] = {"lora": ("lora",), "merged": ("merged",), "both": ("lora", "merged")}
"""The forms of ``publish.format``."""
FILES = {
    "lora": ("pytorch_lora_weights.safetensors",),
    "merged": ("transformer/diffusion_pytorch_model.safetensors", "transformer/config.json"),
}
"""The files of each form, named as diffusers looks for them."""


def check_models(params: Params, entry: StageEntry) -> None:
    """UserError unless dvc.yaml lists a grid for each of evaluate.models, and no other."""
    stems = [PurePosixPath(out).stem for out in entry.outs]
    declared = {stem.removeprefix("grid_") for stem in stems if stem.startswith("grid_")}
    models = set(params.evaluate.models)
    if declared != models:
        names = ", ".join(sorted(declared ^ models))
        raise UserError(f"evaluate.models and the grids in dvc.yaml's outputs differ by {names}; name the same in both")


def check_format(params: Params, entry: StageEntry) -> None:
    """UserError that names the line to change unless dvc.yaml lists the files of publish.format and no others."""
    declared = set(entry.outs)
    forms = FORMS[params.publish.format]
    for form, names in FILES.items():
        for name in names:
            path = f"results/publish/{name}"
            if (form in forms) != (path in declared):
                what = "add it to" if form in forms else "take it from"
                raise UserError(
                    f"publish.format: {params.publish.format}: {what} the outs of publish in dvc.yaml: {path}"
                )
