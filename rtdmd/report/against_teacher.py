"""The report's sections on a world run's known optimum: reward against divergence from the teacher, and what scores
alone tell of right and wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from rtdmd.evaluate.names import LABELS, STUDENT, TAGS, in_order, score_label
from rtdmd.report.frontier import frontier_plot
from rtdmd.report.html import Section, cell, drawing, plain, section, table

Metrics = Mapping[str, Any]
FRONTIER = (
    "The curve is the known optimum: the teacher's own images, with the right ones reweighted. No distribution"
    " reaches a reward at a smaller divergence. The dotted line from the curve to a model is its excess with its"
    " interval: what the model changed although the reward did not ask for it. Divergences are lower bounds from what"
    " the verifier reads; an interval that contains 0 means that no difference was found. Fréchet distances are to the"
    " teacher's images resampled to the model's reward. The second table has what the backgrounds alone cost, the"
    " numbers of objects alone, and so on; these depend on each other and do not add up. Small dots on a thin line are"
    " the student on its way through stage two, judged on fewer images than the models and so with wider intervals."
)
TOLD = (
    "How often, of a right and a wrong image of one caption, the right one has the higher score: 0.5 is chance, 1 is"
    " perfect. ± is a 95 % interval over noise; – means that a tag has no such pair."
)


def frontier(metrics: Metrics, path: Sequence[Mapping[str, Any]] = (), suite: str = "") -> Section | None:
    """The plot and its figures, with the ``path`` of stage two; None where no divergence was measured."""
    if "frontier" not in metrics:
        return None
    found = metrics["frontier"]
    models = {name: found["models"][name] for name in in_order(found["models"], list(LABELS))}
    header = ["Model", "Strict", "Divergence, at least", "Optimum at its reward", "Excess"]
    distance = any("tilted_frechet" in own for own in models.values())
    header += ["Fréchet to the optimum ×1000"] if distance else []
    rows = []
    for name, own in models.items():
        cells: list[str] = [cell(own[figure]) for figure in ("reward", "kl", "optimum", "excess")]
        cells += [plain(1000 * own["tilted_frechet"], 1)] if distance else []
        rows.append([LABELS[name], *cells])
    paths = {STUDENT: path} if path else {}
    body = drawing(frontier_plot({**found, "models": models, "paths": paths}, LABELS))
    body += table(header, rows, ["best" if name == STUDENT else "" for name in models])
    body += _by_kind({name: found["by_kind"][name] for name in models})
    shares = {LABELS[name]: own["at_bound"] for name, own in models.items() if own["at_bound"] > 0}
    return section("Reward against divergence", FRONTIER + at_bound(shares), body, "frontier", suite)


def _by_kind(models: Mapping[str, Mapping[str, float]]) -> Markup:
    """A line per model, a column per kind of what the verifier reads."""
    kinds = next(iter(models.values()))
    rows = []
    for name, own in models.items():
        rows.append([LABELS[name], *(plain(own[kind]) for kind in kinds)])
    header = ["Divergence by one kind alone, at least", *kinds]
    return table(header, rows, ["best" if name == STUDENT else "" for name in models])


def at_bound(shares: Mapping[str, float]) -> str:
    """What to say of models, by their names for people, of whose images such shares are farther from the teacher's than
    these can show; "" of none."""
    if not shares:
        return ""
    named = ", ".join(f"{100 * share:.1f} % of the images of {label}" for label, share in shares.items())
    return (
        f" At its bound: {named} are so unlike those that the teacher drew of the same tag and verdict that their part"
        " of the divergence is about the most that so few can show; the true one may be far larger."
    )


def told(metrics: Metrics, suite: str = "") -> Section | None:
    """A line per score and model, a column per tag; None without verdicts or other scores."""
    rows = []
    tags: list[str] = []
    for model in in_order(metrics.get("auc", {}), list(LABELS)):
        for score, by_tag in metrics["auc"][model].items():
            tags = in_order(by_tag, TAGS)
            cells = ["–" if by_tag[tag] is None else cell(by_tag[tag]) for tag in tags]
            rows.append([f"{score_label(score)} on images of: {LABELS[model]}", *cells])
    if not rows:
        return None
    body = table(["Score", *(tag.replace("_", " ") for tag in tags)], rows)
    return section("What a score alone tells", TOLD, body, "told", suite)
