"""The comparison's page: tables, curves over time, sample grids of every method for the same prompts and noise."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from rtdmd.config import Params
from rtdmd.evaluate.grids import contact_sheet
from rtdmd.evaluate.names import score_label
from rtdmd.evaluate.plan import grid_prompts, plan_images
from rtdmd.files import write_atomic
from rtdmd.images import save_png
from rtdmd.methods.absent import ABSENT
from rtdmd.prompts import read_prompts
from rtdmd.report.charts import curve
from rtdmd.report.html import details, page, picture, section, table
from rtdmd.report.sections import read_curves
from rtdmd.study.gather import BASE, HEADLINE, REFERENCES, Mean, Row, Run, costs, gather, runs_csv, table_csv, title_of
from rtdmd.study.paper import GAMMA, STAGE_TWO, order_agreement
from rtdmd.study.plan import MODELS, TEACHER, SweepPlan, run_folder, run_params

OUT = "results/comparison"
LABELS = {"frechet": "Fréchet", "diversity": "Diversity"}
_HOW = (
    "One line a method, all with the same teacher, prompts, noise and budget (forward passes of the generator). ±: 95 %"
    " interval over seeds, Student's t. Differences are paired by seed, prompt and noise; the second ± there is over"
    " noise alone, of the same students. A difference inside its first interval decides nothing."
)


def write_comparison(root: Path, plan: SweepPlan, base: Params) -> Path:
    """runs.csv, table.csv, contact sheet and page in results/comparison; returns the page's path."""
    rows, out = gather(root, plan), root / OUT
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "table.csv", table_csv(rows))
    write_atomic(out / "runs.csv", runs_csv(rows))
    sheet = out / "contact_sheet.png"
    save_png(sheet, np.asarray(all_grids(root, plan, rows, base)))
    parts = [table_section(rows, stage) for stage in ("train_acdmd", "train_rtdmd")]
    parts += [paper_section(rows), time_section(root, plan, rows)]
    parts.append(section("Samples", "The same prompts and noise for every method, first seed.",
                         picture(sheet, "sample grids of every method"), "samples"))  # fmt: skip
    write_atomic(out / "index.html", page("Comparison of methods", lead(rows), parts))
    return out / "index.html"


def lead(rows: Sequence[Row]) -> str:
    """The best method of stage two by the headline figure, and by how much against its interval."""
    students = [row for row in rows if row.stage == "train_rtdmd"] or [row for row in rows if row.name != TEACHER]
    best = max(students, key=lambda row: row.figures[HEADLINE].mean)
    text = f"Highest {HEADLINE} score: {title_of(best.name)}, {plus(best.figures[HEADLINE])}"
    against = [f"{difference(value)} over {title_of(other)}" for other, value in best.minus.items()]
    text += "".join(f"; {part}" for part in against) + "."
    versions = {run.record["code"] for row in rows if row.stage == best.stage for run in row.runs}
    if len(versions) > 1:
        text += f" Runs of {len(versions)} versions of the code stand side by side here."
    return text


def plus(value: Mean, digits: int = 3) -> str:
    """A mean with its half-width over seeds."""
    width = f" ± {value.seeds:.{digits}f}" if value.seeds is not None else f" ({value.n} seed)"
    return f"{value.mean:.{digits}f}{width}"


def difference(value: Mean | None) -> str:
    """A difference with both half-widths."""
    if value is None:
        return "–"
    widths = [f"± {width:.3f}" for width in (value.seeds, value.noise) if width is not None]
    return " ".join([f"{value.mean:+.3f}", *widths])


def table_section(rows: Sequence[Row], stage: str) -> str:
    """The table of one stage, teacher and base first."""
    own = [row for row in rows if row.name in (TEACHER, BASE) or row.stage == stage]
    names = list(dict.fromkeys(figure for row in own for figure in row.figures))
    header = [
        "Method",
        *(LABELS.get(name, score_label(name)) for name in names),
        *(f"− {other}" for other in REFERENCES[stage]),
    ]
    header += ["Length", "Passes", "Seconds"]
    lines, classes = [], []
    for row in own:
        cells = [escape(title_of(row.name))]
        cells += [plus(row.figures[name]) if name in row.figures else "–" for name in names]
        cells += [difference(row.minus.get(other)) for other in REFERENCES[stage]]
        lines.append([*cells, *(f"{value:,.0f}" for value in costs(row))])
        classes.append("real" if row.name in (TEACHER, BASE) else "")
    body = table(header, lines, classes)
    if stage == "train_rtdmd":
        body += table(["Not run", "What is known"], [[escape(name), escape(text)] for name, text in ABSENT.items()], (),
                      "wide")  # fmt: skip
    titles = {"train_acdmd": "Stage one", "train_rtdmd": "Stage two"}
    return section(titles[stage], _HOW, body, stage)


def paper_section(rows: Sequence[Row]) -> str:
    """The paper's ablations beside ours, and which of its orders ours confirms, contradicts or leaves open."""
    by_name, body = {row.name: row for row in rows}, ""
    for title, paper in (("Consistency weight γ", GAMMA), ("Stage two", STAGE_TWO)):
        lines = []
        for name, (clip, pick, hps) in paper.items():
            ours = plus(by_name[name].figures[HEADLINE]) if name in by_name else "not run"
            lines.append([escape(title_of(name)), f"{clip:.4f}", f"{pick:.2f}", f"{hps:.4f}", ours])
        found = order_agreement(by_name, paper)
        said = [f"{verdict}: {', '.join(pairs) or 'none'}" for verdict, pairs in found.items()]
        body += f"<h3>{escape(title)}</h3>"
        body += table(["", "paper: CLIPScore", "PickScore", "HPSv2", f"ours: {HEADLINE}"], lines)
        body += "".join(f"<p>{escape(line)}</p>" for line in said)
    how = (
        "The paper's figures are of SD3.5-M on DrawBench, ours of the embedded world: only orders can be compared. The"
        " paper's order is by PickScore; a pair agrees or disagrees where our paired difference is beyond its interval"
        " over seeds, else it is undecided."
    )
    return section("The paper's ablations", how, body, "paper")


def time_section(root: Path, plan: SweepPlan, rows: Sequence[Row]) -> str:
    """Training reward against held-out figures over the epochs of each stage-two method, first seed."""
    parts = []
    for row in (row for row in rows if row.stage == "train_rtdmd"):
        run = row.runs[0]
        charts = reward_charts(root, plan, run) + history_charts(run)
        stop = f"student kept: epoch {run.record['chosen']} of {run.record['length']}"
        parts.append(details(f"{title_of(row.name)} ({stop})", f'<div class="curves">{"".join(charts)}</div>'))
    how = (
        "Training rewards and the automatic stop's validation of every epoch, then figures on held-out prompts of the"
        " averaged student. A training reward that rises while the held-out figures stand or fall, or while the Fréchet"
        " distance rises and diversity falls, is over-optimised."
    )
    return section("Over time", how, "".join(parts), "time")


def reward_charts(root: Path, plan: SweepPlan, run: Run) -> list[str]:
    """Training rewards, and the validation's figures where there were validations."""
    path = run_folder(root, plan, run.name, run.seed) / "results/train_rtdmd/curves.csv"
    x_name, columns = read_curves(path)
    charts = []
    for name, values in columns.items():
        if name.startswith(("reward_", "validation_")) and name != "validation_best":
            points = [(x, y) for x, y in zip(columns[x_name], values, strict=True) if x is not None and y is not None]
            if len(points) > 1:
                x, y = [point[0] for point in points], [point[1] for point in points]
                charts.append(curve(name.replace("_", " "), x, y, x_name))
    return charts


def history_charts(run: Run) -> list[str]:
    """Held-out figures of the kept checkpoints."""
    history = run.record["history"]
    names = [name for name in (history[0] if len(history) > 1 else {}) if name != "epoch"]
    x = [point["epoch"] for point in history]
    return [curve(f"held-out {LABELS.get(name, name)}", x, [point[name] for point in history], "epoch")
            for name in names]  # fmt: skip


def all_grids(root: Path, plan: SweepPlan, rows: Sequence[Row], base: Params) -> Image.Image:
    """The sample grids of every method side by side, of the first seed that all of them have run."""
    seed = rows[0].runs[0].seed
    params = run_params(base, plan, BASE, seed)
    prompts = read_prompts(run_folder(root, plan, BASE, seed) / "results/prepare_prompts/eval.jsonl")
    shown = grid_prompts(plan_images(prompts, params.evaluate.images_per_tag), params.report.grid_prompts)
    grids = {}
    for row in rows:
        if row.runs[0].seed == seed:
            file = run_folder(root, plan, row.name, seed) / f"results/evaluate/grid_{MODELS[row.stage][0]}.png"
            grids[f"{row.name}\n{title_of(row.name)[:28]}"] = Image.open(file).convert("RGB")
    return contact_sheet([prompt.prompt for prompt in shown], grids)
