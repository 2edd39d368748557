"""The commits that a run's user still has to fill in, by the repository that each is of."""

from __future__ import annotations

from collections.abc import Mapping

from rtdmd.common.pins import UNPINNED
from rtdmd.config import Params
from rtdmd.pipeline.model_inputs import groups_of_run, model_inputs
from rtdmd.prompts.registration import FileParams


def commits_to_fill_in(params: Params) -> dict[str, list[str]]:
    """Repository -> the settings that its commit goes to, each once: `model.revision`, or a scorer's, such as
    `hpsv2: base_revision`, which is the same in every list of scorers. Of models that the run does not need, nothing.
    """
    found: dict[str, dict[str, None]] = {}
    groups = groups_of_run(params)
    for model in model_inputs(params):
        if model.group in groups and model.revision == UNPINNED:
            setting = model.pin.rpartition("rewards: ")[2]
            found.setdefault(model.name, {})[setting] = None
    for name in (*params.training_sets, *params.evaluation_sets):
        for number, source in enumerate(params.prepare_prompts.sets[name]):
            if isinstance(source, FileParams) and source.revision == UNPINNED:
                found.setdefault(str(source.repo), {})[f"prepare_prompts.sets.{name}[{number}].revision"] = None
    return {repository: list(settings) for repository, settings in found.items()}


def fill_in_lines(head: str, commits: Mapping[str, list[str]]) -> list[str]:
    """``head``, and a line for each repository; nothing where there is none."""
    lines = [f"  {repository}: {', '.join(settings)}" for repository, settings in commits.items()]
    return [head, *lines] if lines else []
