"""Stage evaluate: teacher and students on held-out prompts, all with the same prompts and noise.

Run `rtdmd evaluate`: it reads params.yaml, the held-out prompts, the text cache and both students, and writes
results/evaluate/: metrics.json (every figure), scores.csv (every image), per_tag.csv, a grid a model and
contact_sheet.png.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rtdmd.common.files import write_atomic, write_json
from rtdmd.common.images import save_png
from rtdmd.common.torch_setup import configure
from rtdmd.conditioning.text_cache import open_text_cache
from rtdmd.config import EvaluateParams
from rtdmd.evaluate.grids import contact_sheet, grid
from rtdmd.evaluate.judge import Judge, Judged, judge_images, load_judge
from rtdmd.evaluate.metrics import difference_metrics, feature_metrics, model_metrics, paired_metrics
from rtdmd.evaluate.names import LABELS, STUDENT, level_name
from rtdmd.evaluate.plan import Item, grid_prompts, plan_images
from rtdmd.evaluate.reference import world_images
from rtdmd.evaluate.samples import Sampler, load_sampler, model_images
from rtdmd.evaluate.tables import per_tag_csv, scores_csv
from rtdmd.pipeline.declared import check_models
from rtdmd.pipeline.stage import Stage, open_stage
from rtdmd.prompts.records import Prompt, read_set
from rtdmd.rewards.panel import Panel

GRID_IMAGES = 2  # images of each prompt in the pictures


@dataclass(frozen=True)
class Evaluated:
    """One model's findings and what its sampler costs."""

    judged: Judged
    steps: int
    evaluations: int


def run(root: Path = Path(".")) -> None:
    """Run the stage in the repository at ``root``."""
    with open_stage("evaluate", root) as stage:
        params = stage.params.evaluate
        check_models(stage.params, stage.entry)  # before hours of sampling, not after
        device = configure(stage.params.run)
        prompts = read_set(stage.input("results/prepare_prompts/eval.jsonl"), params.prompts)
        cache = open_text_cache(stage, "eval").to(device)
        items = plan_images(prompts, params.images_per_tag)
        shown = grid_prompts(items, stage.params.report.grid_prompts)
        judge = load_judge(params, device, root)
        keep = {(prompt.id, index) for prompt in shown for index in range(GRID_IMAGES)}
        models: dict[str, Evaluated] = {}
        levels: dict[float, Evaluated] = {}  # the published student at other noise levels

        def evaluated(sampler: Sampler, name: str) -> Evaluated:
            images = model_images(sampler, items, cache, stage.seed, params.batch_size, name)
            return Evaluated(judge_images(judge, images, keep), sampler.steps, sampler.evaluations)

        for name in params.models:
            sampler = load_sampler(name, stage.params, cache, device, root)
            models[name] = evaluated(sampler, name)
            for eta in params.etas:
                if name == STUDENT and eta != sampler.eta:
                    levels[eta] = evaluated(replace(sampler, eta=eta), level_name(eta))
        reference, pool = real_images(params, judge, prompts, items, stage.seed)
        metrics = all_metrics(models, levels, reference, pool)
        write_json(stage.output("metrics.json"), metrics | {"scorers": judge.identities()})
        _write_tables(stage, models, levels)
        _write_pictures(stage, models, shown)


def real_images(
    params: EvaluateParams, judge: Judge, prompts: list[Prompt], items: list[Item], seed: int
) -> tuple[Judged | None, np.ndarray | None]:
    """Real images of the plan, judged like a model's, and the features (M, D) of an independent pool of them.

    The pool is the reference of the Fréchet distance; the first set shows what that distance is between real images.
    """
    if params.reference == "none":
        return None, None
    judged = judge_images(judge, world_images(items, seed, "plan", params.batch_size))
    tags = len({item.tag for item in items})
    pool = plan_images(prompts, -(-params.reference_images // tags))
    only_features = replace(judge, panel=Panel({}, judge.panel.device), world=False)
    return judged, judge_images(only_features, world_images(pool, seed, "pool", params.batch_size)).features


def all_metrics(
    models: Mapping[str, Evaluated],
    levels: Mapping[float, Evaluated],
    reference: Judged | None,
    pool: np.ndarray | None,
) -> dict[str, Any]:
    """metrics.json: a section a model, one for the real images, the paired differences, and the other noise levels."""

    def section(judged: Judged, steps: int, evaluations: int) -> dict[str, Any]:
        return model_metrics(judged, steps, evaluations) | feature_metrics(judged, reference, pool)

    metrics = {name: section(found.judged, found.steps, found.evaluations) for name, found in models.items()}
    if reference is not None:
        metrics["reference"] = section(reference, 0, 0)
    metrics["paired"] = paired_metrics({name: found.judged for name, found in models.items()})
    if levels:
        trained = models[STUDENT].judged.scores
        metrics["etas"] = {
            f"{eta:g}": section(found.judged, found.steps, found.evaluations)
            | {"minus_trained": difference_metrics(found.judged.scores, trained)}
            for eta, found in levels.items()
        }
    return metrics


def _write_tables(stage: Stage, models: Mapping[str, Evaluated], levels: Mapping[float, Evaluated]) -> None:
    """Every image of everything; the tags of the models."""
    scores = {name: found.judged.scores for name, found in models.items()}
    others = {level_name(eta): found.judged.scores for eta, found in levels.items()}
    write_atomic(stage.output("scores.csv"), scores_csv(scores | others))
    write_atomic(stage.output("per_tag.csv"), per_tag_csv(scores))


def _write_pictures(stage: Stage, models: Mapping[str, Evaluated], shown: list[Prompt]) -> None:
    """A grid a model, and all of them side by side."""
    headed: dict[str, Image.Image] = {}
    for name, found in models.items():
        kept = found.judged.kept
        rows = [[kept[p.id, i] for i in range(GRID_IMAGES) if (p.id, i) in kept] for p in shown]
        picture = grid(rows)
        save_png(stage.output(f"grid_{name}.png"), np.asarray(picture))
        headed[f"{LABELS[name]}\n{cost(found.steps, found.evaluations)}"] = picture
    save_png(stage.output("contact_sheet.png"), np.asarray(contact_sheet([p.prompt for p in shown], headed)))


def cost(steps: int, evaluations: int) -> str:
    """What an image costs, in words."""
    return f"{steps} steps, {evaluations} network evaluations"
