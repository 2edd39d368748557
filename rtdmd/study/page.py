"""The comparison's page: tables, curves over time, sample grids of every method for the same prompts and noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

import numpy as np
from markupsafe import Markup
from PIL import Image

from rtdmd.common.errors import UserError
from rtdmd.common.files import write_atomic
from rtdmd.common.images import save_png
from rtdmd.common.parsing import read_table
from rtdmd.config import Params
from rtdmd.evaluate.grids import contact_sheet
from rtdmd.evaluate.suites import plan_suites
from rtdmd.methods._absent import ABSENT
from rtdmd.methods._card import STAGE_TITLES
from rtdmd.prompts.records import read_prompts
from rtdmd.report.charts import forest
from rtdmd.report.html import Section, drawing, page, paragraphs, picture, section, table
from rtdmd.study.divergences import teacher_distribution
from rtdmd.study.frontier import frontier_section
from rtdmd.study.gather import (
    BASE,
    HEADLINE,
    REFERENCES,
    Mean,
    Row,
    costs,
    gather,
    judged_folder,
    runs_csv,
    table_csv,
    title_of,
)
from rtdmd.study.over_time import figure_label, time_section
from rtdmd.study.paper import GAMMA, STAGE_TWO, order_agreement
from rtdmd.study.plan import MODELS, TEACHER, SweepPlan, run_folder, run_params
from rtdmd.study.time_page import write_time
from rtdmd.study.variance_table import FIGURES, HEADER, REFERENCE, UNIT, Figure

VARIANCE = "variance.csv"  # of `rtdmd variance`, shown where it is there
PICTURE = 900_000  # bytes of the sample grids in the page
PANEL = 5  # methods side by side, as many as a page shows at their size
Grid = tuple[str, Image.Image]  # heading and picture of a method
_HOW = (
    "One line per method, all with the same teacher, prompts, noise and budget (passes of the generator). The base"
    " is what stage two starts from; no budget holds for it. ±: 95 % interval over seeds, Student's t. Differences are"
    " paired by seed, prompt and noise (Fréchet and diversity, of a whole set of images, by seed); the second ± is over"
    " noise alone, of the same students. A difference inside its first interval decides nothing; bold or blue ones are"
    " outside, as one in twenty would be by chance alone."
)


def write_comparison(root: Path, plan: SweepPlan, base: Params) -> Path:
    """runs.csv, table.csv, contact sheet, page, and what the plan asks for besides, in the plan's folder for them;
    returns the page's path."""
    rows = gather(root, plan)
    out = root / plan.page
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "table.csv", table_csv(rows))
    write_atomic(out / "runs.csv", runs_csv(rows))
    sheet = out / "contact_sheet.png"
    grids = all_grids(root, plan, rows, base)
    save_png(sheet, np.asarray(grids))
    distribution = next(
        (distribution for seed in plan.seeds if (distribution := teacher_distribution(root, plan, seed))), None
    )
    parts: list[Section | None] = []
    trained = {row.stage for row in rows if row.name not in (TEACHER, BASE)}
    for stage in STAGE_TITLES:
        if stage in trained:
            parts += [table_section(rows, stage), frontier_section(rows, stage, distribution)]
    parts.append(write_time(root, plan, base))
    parts += [paper_section(rows), time_section([row for row in rows if row.stage == "train_rtdmd"])]
    if (out / VARIANCE).is_file():
        parts.append(variance_section(out / VARIANCE))
    how = "The same prompts and noise for every method, first seed; the base stands at the left of each panel."
    parts.append(section("Samples", how, picture(grids, "sample grids of every method", PICTURE), "samples"))
    write_atomic(out / "index.html", page("Comparison of methods", lead(rows), parts))
    return out / "index.html"


def lead(rows: Sequence[Row]) -> str:
    """The best method of stage two by the headline figure, of those with most seeds, and by how much against its
    interval."""
    students = [row for row in rows if row.stage == "train_rtdmd"] or [row for row in rows if row.name != TEACHER]
    most = max(len(row.runs) for row in students)
    students = [row for row in students if len(row.runs) == most]
    best = max(students, key=lambda row: row.figures[HEADLINE].mean)
    text = f"Highest {HEADLINE} score: {title_of(best.name)}, {plus(best.figures[HEADLINE])}"
    against = [f"{difference(found.get(HEADLINE))} over {title_of(other)}" for other, found in best.minus.items()]
    text += "".join(f"; {part}" for part in against) + "."
    versions = {run.record["code"] for row in rows if row.stage == best.stage for run in row.runs}
    if len(versions) > 1:
        text += f" Runs of {len(versions)} versions of the code stand side by side here."
    return text


def plus(value: Mean, digits: int = 3) -> str:
    """A mean with its half-width over seeds."""
    width = f" ± {value.seeds:.{digits}f}" if value.seeds is not None else f" ({value.n} seed)"
    return f"{value.mean:.{digits}f}{width}"


def difference(value: Mean | None, digits: int = 3) -> str:
    """A difference with both half-widths."""
    if value is None:
        return "–"
    widths = [f"± {width:.{digits}f}" for width in (value.seeds, value.noise) if width is not None]
    return " ".join([f"{value.mean:+.{digits}f}", *widths])


def marked(value: Mean | None, digits: int = 3) -> str:
    """A difference for a table, bold where it is beyond its interval over seeds."""
    text = difference(value, digits)
    return Markup("<strong>{}</strong>").format(text) if value is not None and value.sure else text


def table_section(rows: Sequence[Row], stage: str) -> Section:
    """The table of one stage, teacher and base first."""
    own = [row for row in rows if row.name in (TEACHER, BASE) or row.stage == stage]
    names = list(dict.fromkeys(figure for row in own for figure in row.figures))
    header = [
        "Method",
        *(figure_label(name) for name in names),
        *(f"{figure_label(HEADLINE)} − {other}" for other in REFERENCES[stage]),
    ]
    header += ["Length", "Passes", "Seconds"]
    lines = []
    classes = []
    for row in own:
        cells = [title_of(row.name)]
        cells += [plus(row.figures[name]) if name in row.figures else "–" for name in names]
        cells += [marked(row.minus.get(other, {}).get(HEADLINE)) for other in REFERENCES[stage]]
        lines.append([*cells, *(f"{value:,.0f}" for value in costs(row))])
        classes.append("real" if row.name in (TEACHER, BASE) else "")
    body = differences_chart(own, names, stage) + table(header, lines, classes)
    body += differences_table(own, [name for name in names if name != HEADLINE], stage)
    if stage == "train_rtdmd":
        body += table(["Not run", "What is known"], ABSENT.items(), kind="wide")
    return section(STAGE_TITLES[stage].capitalize(), _HOW, body, stage)


def differences_chart(rows: Sequence[Row], names: Sequence[str], stage: str) -> Markup:
    """Every figure's difference from the stage's first reference with its interval over seeds; nothing for one seed."""
    other = REFERENCES[stage][0]
    columns = dict[str, dict[str, tuple[float, float]]]()
    for row in rows:
        for name in names:
            found = row.minus.get(other, {}).get(name)
            if found is not None and found.seeds is not None:
                column = columns.setdefault(f"{figure_label(name)} − {other}", {})
                column[title_of(row.name)] = found.mean, found.seeds
    return drawing(forest(columns)) if columns else Markup()


def differences_table(rows: Sequence[Row], names: Sequence[str], stage: str) -> Markup:
    """What the other figures lose or gain against the stage's first reference."""
    other = REFERENCES[stage][0]
    lines = []
    for row in rows:
        if row.minus.get(other):
            lines.append([title_of(row.name), *(marked(row.minus[other].get(name), 4) for name in names)])
    return table(["Method", *(f"{figure_label(name)} − {other}" for name in names)], lines) if lines else Markup()


def paper_section(rows: Sequence[Row]) -> Section | None:
    """The paper's ablations beside ours, and which of its orders ours confirms, contradicts or leaves open; None where
    no two of an ablation were run."""
    by_name = {row.name: row for row in rows}
    body = Markup()
    for title, paper in (("Consistency weight γ", GAMMA), ("Stage two", STAGE_TWO)):
        if len(by_name.keys() & paper.keys()) < 2:
            continue
        lines = []
        for name, (clip, pick, hps) in paper.items():
            ours = plus(by_name[name].figures[HEADLINE]) if name in by_name else "not run"
            lines.append([title_of(name), f"{clip:.4f}", f"{pick:.2f}", f"{hps:.4f}", ours])
        found = order_agreement(by_name, paper)
        said = [f"{verdict}: {', '.join(pairs) or 'none'}" for verdict, pairs in found.items()]
        body += Markup("<h3>{}</h3>").format(title)
        body += table(["", "paper: CLIPScore", "PickScore", "HPSv2", f"ours: {HEADLINE}"], lines)
        body += paragraphs(said)
    how = (
        "The paper's figures are of SD3.5-M on DrawBench, ours of the embedded world: only orders can be compared. The"
        " paper's order is by PickScore; a pair agrees or disagrees where our paired difference is beyond its interval"
        " over seeds, else it is undecided."
    )
    return section("The paper's ablations", how, body, "paper") if body else None


def variance_section(path: Path) -> Section:
    """The table of `rtdmd variance` from its CSV: a line per estimator, each figure with its standard error, and the
    noise at scale 1. UserError where the file is not of this version."""
    names, lines = read_table(path, "`rtdmd variance` makes it anew")
    if not lines or set(names) != set(HEADER):
        raise UserError(f"{path}: no table of this version's `rtdmd variance`, which makes it anew")
    body = []
    for line in lines:
        shown = [Figure(float(line[name]), float(line[f"{name}_se"])) for name in FIGURES]
        at_scale = f"{shown[0].value / shown[1].value ** 2:.3g}" if shown[1].value else "–"
        body.append([line["estimator"], line["rounds"], f"{float(line['passes']):.0f}", *map(str, shown), at_scale])
    how = (
        "Estimators of the reward's gradient on rollouts of a stage-one student, in units of the gradient's squared"
        f" length. Noise is of an estimate of {UNIT:.0f} passes; scale, bias and cosine are of its mean against"
        f" {REFERENCE}. ±: one standard error."
    )
    header = ["Estimator", "Rounds", "Passes a round", *FIGURES, "noise / scale²"]
    return section("Noise and bias of the gradient", how, table(header, body), "variance")


def all_grids(root: Path, plan: SweepPlan, rows: Sequence[Row], base: Params) -> Image.Image:
    """The sample grids of the base's first seed, of every method that has run it: panels of a few methods below each
    other, the base at the left of each."""
    seed = next(row for row in rows if row.name == BASE).runs[0].seed
    params = run_params(base, plan, BASE, seed)
    prompts = read_prompts(run_folder(root, plan, BASE, seed) / "results/prepare_prompts/eval.jsonl")
    shown = [prompt for suite in plan_suites(params, prompts) for prompt in suite.shown]
    grids = {}
    for row in rows:
        if any(run.seed == seed for run in row.runs):
            place = judged_folder(run_folder(root, plan, row.name, seed))
            file = place / f"results/evaluate/grid_{MODELS[row.stage][0]}.png"
            title = title_of(row.name).replace("γ", "gamma").replace("η", "eta")  # the picture's font has no Greek
            grids[row.name] = (f"{row.name}\n{shorten(title, 30, placeholder=' ...')}", Image.open(file).convert("RGB"))
    return panels([prompt.prompt for prompt in shown], grids.pop(BASE), list(grids.values()))


def panels(prompts: Sequence[str], first: Grid, others: Sequence[Grid], size: int = PANEL) -> Image.Image:
    """Contact sheets of ``first`` and some of the others, ``size`` grids in each, below each other."""
    parts = [others[i : i + size - 1] for i in range(0, len(others), size - 1)] or [[]]
    return stacked([contact_sheet(prompts, dict([first, *part])) for part in parts])


def stacked(sheets: Sequence[Image.Image], gap: int = 24) -> Image.Image:
    """Pictures below each other, flush left on white."""
    height = sum(sheet.height + gap for sheet in sheets) - gap
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), height), "white")
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height + gap
    return whole
