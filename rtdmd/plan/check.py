"""Whether a params.yaml can run in this folder at all: what `rtdmd params check` says, and a rehearsal first."""

from __future__ import annotations

from pathlib import Path

from rtdmd.backbones.sizes import require_suites
from rtdmd.config import Params
from rtdmd.config.prompt_needs import check_prompts
from rtdmd.pipeline.declared import check_format, check_models
from rtdmd.pipeline.dvc_yaml import read_pipeline
from rtdmd.pipeline.model_inputs import check_local
from rtdmd.plan.published import TEACHERS


def check_run(params: Params, root: Path = Path("."), declared: bool = True) -> None:
    """UserError for the first thing that ``params`` and the models and dvc.yaml of ``root`` do not agree on; models to
    come may be missing. declared: whether dvc.yaml is looked at."""
    check_prompts(params)
    if declared:
        pipeline = read_pipeline(root)
        check_models(params, pipeline["evaluate"])
        check_format(params, pipeline["publish"])
    check_local(root, params, groups=())
    if params.model.teacher in TEACHERS:
        require_suites(params, TEACHERS[params.model.teacher], params.model.teacher)
