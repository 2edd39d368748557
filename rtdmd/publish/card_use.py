"""The card's section on use: snippets in plain diffusers that the gate runs as they are printed."""

from __future__ import annotations

from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.common.escape import markdown, python_string
from rtdmd.evaluate.names import STUDENT, first_suite, score_title
from rtdmd.publish.card_data import Published, figure, score_names
from rtdmd.publish.scheduler_cps import class_source

WIDTH = 96  # of a line of Python: about what a page of the Hub shows
SCHEDULER = "FlowMatchEulerDiscreteScheduler"


def use(found: Published) -> list[str]:
    """The section's lines."""
    levels = ", ".join(f"{sigma:g}" for sigma in found.sigmas)
    steps = found.model.num_steps
    return [
        "## Use",
        "",
        *_block(load_snippet(found, merged="lora" not in found.forms)),
        f"The model was trained at the noise levels σ = {levels} and at no others. The folder's scheduler runs"
        f" exactly these for `num_inference_steps={steps}`: keep that number, pass no `sigmas` (they would be shifted"
        " again), and do not use the base model's own scheduler. Guidance must be off (`guidance_scale=1.0`), so a"
        " negative prompt has no effect. The pipeline uses its `generator` for the first noise only, so seed torch.",
        "",
        *_schedulers(found),
        *(_merged_too(found) if set(found.forms) == {"lora", "merged"} else []),
    ]


def _block(code: str) -> list[str]:
    return [f"```python\n{code}\n```", ""]


def load_snippet(found: Published, merged: bool) -> str:
    """Load the adapter (or the merged transformer) with plain diffusers, and draw."""
    model = found.model
    base = found.base
    options = [f"revision={python_string(model.revision)}"] if model.revision else []
    options += ["transformer=transformer"] if merged else []
    options += [f"dtype=torch.{model.dtype}", *(f"{part}=None" for part in base.absent)]
    classes = sorted([SCHEDULER, base.pipeline, *([base.transformer] if merged else [])])
    lines = [
        "import torch",
        _call("from diffusers import ", classes),
        "",
        f"folder = {python_string(found.folder)}  # this folder, or this repository's id",
    ]
    if merged:
        place = ["folder", 'subfolder="transformer"', f"dtype=torch.{model.dtype}"]
        lines.append(_call(f"transformer = {base.transformer}.from_pretrained", place))
    lines.append(_call(f"pipe = {base.pipeline}.from_pretrained", [python_string(model.teacher), *options]))
    if not merged:
        lines.append(f'pipe.transformer.load_lora_adapter(folder, weight_name="{PUBLISHED}")')
    lines += [f'pipe.scheduler = {SCHEDULER}.from_pretrained(folder, subfolder="scheduler")', "", *_draw(found)]
    return "\n".join(lines)


def _call(start: str, arguments: list[str]) -> str:
    """A call (an import, where ``start`` ends in a space) on one line where it fits, else an argument per line."""
    listed = ", ".join(arguments)
    line = start + (listed if start.endswith(" ") else f"({listed})")
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{start}(", *(f"    {argument}," for argument in arguments), ")"])


def _draw(found: Published) -> list[str]:
    model = found.model
    return [
        "settings = {",
        f'    "num_inference_steps": {model.num_steps},',
        '    "guidance_scale": 1.0,',
        f'    "height": {model.resolution},',
        f'    "width": {model.size[1]},',
        f'    "max_sequence_length": {model.max_sequence_length},',
        "}",
        "torch.manual_seed(0)",
        f"image = pipe(prompt={python_string(found.prompt)}, **settings).images[0]",
        'image.save("sample.png")',
    ]


def cps_snippet(found: Published) -> str:
    """Continue the first snippet with CPS at the trained η: the class in full, then the same drawing."""
    return "\n".join(
        [
            class_source(),
            "",
            "",
            'pipe.scheduler = CPSScheduler.from_pretrained(folder, subfolder="scheduler")',
            f"pipe.scheduler.eta = {found.model.eta:g}",
            "torch.manual_seed(0)",
            f"image = pipe(prompt={python_string(found.prompt)}, **settings).images[0]",
            'image.save("sample_cps.png")',
        ]
    )


def _schedulers(found: Published) -> list[str]:
    """What each scheduler gives, with its score, and the snippet for the trained η."""
    eta = found.model.eta
    own = 1.0 if found.stochastic else 0.0
    rows = [(f"`CPSScheduler`, below (`pipe.scheduler.eta = {eta:g}`)", eta)] if eta not in (0.0, 1.0) else []
    rows += [("the folder's own, as above", own), (f"the same with `stochastic_sampling={own == 0}`", 1.0 - own)]
    name = next(iter(score_names(first_suite(found.metrics))), None)
    head = [
        "Scheduler",
        "Noise drawn anew at each step (η)",
        f"{markdown(score_title(name)) if name else 'Score'}, held-out prompts",
        "Minus as trained, same prompts and noise",
    ]
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|"]
    for text, level in rows:
        trained = ", as trained" if level == eta else ""
        lines.append(f"| {text} | {level:g}{trained} | {' | '.join(_scores(found, name, level))} |")
    lines.append("")
    if eta in (0.0, 1.0):
        return lines
    return [
        *lines,
        "diffusers' own scheduler draws all noise anew or none; the trained sampler keeps a part of the predicted"
        " noise. This class is all it takes, with no remote code"
        " (`from rtdmd.publish.scheduler_cps import CPSScheduler` is the same):",
        "",
        *_block(cps_snippet(found)),
    ]


def _scores(found: Published, name: str | None, eta: float) -> tuple[str, str]:
    """The student's score at an η, and how far it is from that at the trained one, as evaluate measured them."""
    metrics = first_suite(found.metrics)
    if name is not None and eta == found.model.eta:
        return figure(metrics[STUDENT][name]), ""
    other = metrics.get("etas", {}).get(f"{eta:g}")
    if name is None or other is None:
        return "not scored", ""
    return figure(other[name]), figure(other["minus_trained"][name], sign="+")


def _merged_too(found: Published) -> list[str]:
    return [
        "The same weights merged into the transformer (in float32, cast once), for programs that take no adapters:",
        "",
        *_block(load_snippet(found, merged=True)),
    ]
