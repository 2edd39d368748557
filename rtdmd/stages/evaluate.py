"""Stage evaluate: teacher and students on held-out prompts, all with the same prompts and noise.

Run `rtdmd evaluate`: it reads params.yaml, the held-out prompts, the text cache and both students, and writes
results/evaluate/: metrics.json (every figure, a section per suite), scores.csv and parses.csv (every image's scores,
and what the world's verifier read in it), per_tag.csv, a grid per model and contact_sheet.png.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from rtdmd.backbones.sizes import sized_backbone, suite_sizes
from rtdmd.common.files import write_atomic, write_json
from rtdmd.common.images import save_png
from rtdmd.common.torch_setup import configure, free_memory
from rtdmd.conditioning.text_cache import open_text_cache
from rtdmd.evaluate.grids import contact_sheet, grid
from rtdmd.evaluate.judge import Batch, Judged, judge_images, load_judge
from rtdmd.evaluate.names import LABELS, STUDENT, TEACHER_DISTRIBUTION, level_name
from rtdmd.evaluate.parses import parses_csv
from rtdmd.evaluate.plan import Item, plan_images
from rtdmd.evaluate.reference import world_images
from rtdmd.evaluate.samples import Sampler, load_sampler, model_images
from rtdmd.evaluate.suites import GRID_IMAGES, Evaluated, Findings, all_metrics, plan_suites, prompts_of
from rtdmd.evaluate.tables import per_tag_csv, scores_csv
from rtdmd.pipeline.declared import check_models
from rtdmd.pipeline.stage import Stage, open_stage
from rtdmd.prompts.records import first_prompts, read_prompts
from rtdmd.publish.sampler import imported_model, published_sampler
from rtdmd.world.verifier import VERIFIER


def run(root: Path = Path(".")) -> None:
    """Run the stage in the repository at ``root``."""
    with open_stage("evaluate", root) as stage:
        params = stage.params.evaluate
        check_models(stage.params, stage.entry)  # before hours of sampling, not after
        device = configure(stage.params.run)
        prompts = read_prompts(stage.input("results/prepare_prompts/eval.jsonl"))
        for suite in params.suites:
            drawn = first_prompts(prompts_of(suite, prompts), suite.max_prompts)
            for reward in suite.scorers(params.rewards):
                reward.require_scorable([one.prompt for one in drawn], [one.metadata for one in drawn])
        cache = open_text_cache(stage, "eval").to(device)
        imported = imported_model(stage.params, root) if "imported" in params.models else None
        judge = load_judge(params, device, root)
        found = [Findings(suite, judge.of(suite.scorers)) for suite in plan_suites(stage.params, prompts)]
        # Suites of one size share its backbone.
        asking: dict[int, str] = {}
        for key, size in suite_sizes(stage.params, "evaluate"):
            asking.setdefault(size, key)
        sizes = {size: sized_backbone(stage.params.model, size, key, root) for size, key in asking.items()}

        def images(sampler: Sampler, items: Sequence[Item], name: str) -> Iterator[Batch]:
            return model_images(sampler, items, cache, stage.seed, params.batch_size, name)

        def evaluated(sampler: Sampler, one: Findings, name: str) -> Evaluated:
            drawn = images(sampler, one.suite.items, f"{name} on {one.suite.name}")
            return Evaluated(judge_images(one.judge, drawn, one.suite.kept), sampler.steps, sampler.evaluations)

        def at_its_size(sampler: Sampler, one: Findings) -> Sampler:
            return sampler.resized(sizes[one.suite.resolution]) if one.suite.resolution in sizes else sampler

        def judge_model(name: str) -> None:
            if imported is not None and name == "imported":
                loaded = published_sampler(root / str(params.imported), imported, device, root)
            else:
                loaded = load_sampler(name, stage.params, cache, device, root)
            for one in found:
                sampler = at_its_size(loaded, one)
                one.models[name] = evaluated(sampler, one, name)
                for eta in params.etas:
                    if name == STUDENT and eta != sampler.eta:
                        one.levels[eta] = evaluated(replace(sampler, eta=eta), one, level_name(eta))

        def judge_law(measured: Sequence[Findings]) -> None:
            teacher = load_sampler("teacher", stage.params, cache, device, root)
            for one in measured:
                distribution = images(
                    at_its_size(teacher, one), one.suite.distribution, f"{TEACHER_DISTRIBUTION} on {one.suite.name}"
                )
                one.distribution = judge_images(one.judge.of((VERIFIER,)), distribution)

        for name in params.models:
            judge_model(name)
            free_memory(device)  # no two transformers are held at once
        measured = [one for one in found if one.suite.distribution]
        if measured:
            judge_law(measured)
            free_memory(device)
        for one in found:
            one.reference, one.pool = real_images(one, params.batch_size, stage.seed)
        write_json(stage.output("scorers.json"), judge.identities())
        write_json(stage.output("metrics.json"), all_metrics(found, stage.params))
        _write_tables(stage, found)
        _write_pictures(stage, found)


def real_images(found: Findings, batch_size: int, seed: int) -> tuple[Judged | None, np.ndarray | None]:
    """Real images of the suite's plan, judged like a model's, and the features (M, D) of an independent pool of them.

    The pool is the reference of the Fréchet distance; the first set shows what that distance is between real images.
    """
    suite = found.suite
    if suite.params.reference_images is None:
        return None, None
    judged = judge_images(found.judge, world_images(suite.items, seed, "plan", batch_size))
    tags = len({item.tag for item in suite.items})
    pool = plan_images(suite.prompts, -(-suite.params.reference_images // tags))
    only_features = found.judge.of(())
    return judged, judge_images(only_features, world_images(pool, seed, "pool", batch_size)).features


def _write_tables(stage: Stage, found: Sequence[Findings]) -> None:
    """Every image of everything; the tags of the models."""
    write_atomic(stage.output("scores.csv"), scores_csv({one.suite.name: one.scores() for one in found}))
    write_atomic(stage.output("parses.csv"), parses_csv({one.suite.name: one.parses() for one in found}))
    models = {}
    for one in found:
        models[one.suite.name] = {name: model.judged.scores for name, model in one.models.items()}
    write_atomic(stage.output("per_tag.csv"), per_tag_csv(models))


def _write_pictures(stage: Stage, found: Sequence[Findings]) -> None:
    """A grid a model, with prompts of all suites, and all of them side by side."""
    headed: dict[str, Image.Image] = {}
    for name, model in found[0].models.items():
        rows = [row for one in found for row in _rows(one, name)]
        picture = grid(rows)
        save_png(stage.output(f"grid_{name}.png"), np.asarray(picture))
        headed[f"{LABELS[name]}\n{cost(model.steps, model.evaluations)}"] = picture
    shown = [prompt.prompt for one in found for prompt in one.suite.shown]
    save_png(stage.output("contact_sheet.png"), np.asarray(contact_sheet(shown, headed)))


def _rows(found: Findings, name: str) -> list[list[np.ndarray]]:
    """A model's images of the suite's prompts that the pictures show."""
    kept = found.models[name].judged.kept
    rows = []
    for prompt in found.suite.shown:
        keys = [(prompt.id, index) for index in range(GRID_IMAGES)]
        rows.append([kept[key] for key in keys if key in kept])
    return rows


def cost(steps: int, evaluations: int) -> str:
    """What an image costs, in words."""
    return f"{steps} steps, {evaluations} network evaluations"
