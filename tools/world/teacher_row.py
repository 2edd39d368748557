"""`python -m tools.world.teacher_row`: a teacher's strict score by tag beside SD3.5-M's GenEval row, by guidance.

Run it in the repository's root, on the committed teacher or on one that is being made:

    python -m tools.world.teacher_row --guidance 1 2 3 4.5
    python -m tools.world.teacher_row --teacher results/world/teacher/teacher --images 150
    python -m tools.world.teacher_row --weights results/world/.teacher/*/step-00014000/average.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusers import StableDiffusion3Pipeline

from rtdmd.common.files import load_tensors
from rtdmd.world.grammar import TAGS
from tools.world.common import start
from tools.world.settings import load_world_params
from tools.world.teacher import strict_by_tag

SD35_MEDIUM = dict(zip(TAGS, (0.98, 0.78, 0.50, 0.81, 0.24, 0.52), strict=True))
"""GenEval of SD3.5-M by tag, mean 0.63 to two digits (Flow-GRPO, arXiv 2505.05470)."""

TOLERANCE = 0.05  # how far from it a tag of the embedded teacher may lie, the images' own chance apart
MEAN = (0.60, 0.68)  # where the mean of its tags shall lie
CLUTTER = 0.02  # largest share of images with something that is no object


def shortcomings(figures: Mapping[str, float], split: str, per_tag: int) -> list[str]:
    """What of a row (`tools.world.teacher.strict_by_tag`) is not as the imperfect teacher shall be, in words.

    A share of ``per_tag`` images differs from the teacher's own by chance. A tag is refused where that chance does not
    explain it: beyond TOLERANCE and the 95 % half-width of a share of that many images. With 600 images of a tag whose
    share shall be 0.5, that is 0.05 + 0.04.
    """
    found = []
    for tag, wanted in SD35_MEDIUM.items():
        own = figures[f"strict.{split}.{tag}"]
        allowed = TOLERANCE + 1.96 * (wanted * (1 - wanted) / per_tag) ** 0.5
        if abs(own - wanted) > allowed:
            found.append(f"{tag} {own:.2f}, not {wanted:.2f} ± {allowed:.2f}")
    mean = figures[f"strict.{split}"]
    if not MEAN[0] <= mean <= MEAN[1]:
        found.append(f"mean {mean:.3f}, not {MEAN[0]} to {MEAN[1]}")
    if figures[f"clutter.{split}"] > CLUTTER:
        found.append(f"clutter {figures[f'clutter.{split}']:.3f}, above {CLUTTER}")
    return found


def table(rows: Mapping[str, Mapping[str, float]], split: str, per_tag: int) -> str:
    """Markdown: SD3.5-M, then a line for each row with what it lacks. ``per_tag``: images of each tag."""
    lines = [f"| {split} | " + " | ".join(TAGS) + " | mean | clutter | |", "|---" * (len(TAGS) + 4) + "|"]
    wanted = " | ".join(f"{value:.2f}" for value in SD35_MEDIUM.values())
    lines.append(f"| SD3.5-M, GenEval | {wanted} | {sum(SD35_MEDIUM.values()) / len(TAGS):.3f} | | |")
    for name, figures in rows.items():
        own = " | ".join(f"{figures[f'strict.{split}.{tag}']:.2f}" for tag in TAGS)
        says = "; ".join(shortcomings(figures, split, per_tag)) or "as wanted"
        lines.append(
            f"| {name} | {own} | {figures[f'strict.{split}']:.3f} | {figures[f'clutter.{split}']:.3f} | {says} |"
        )
    return "\n".join(lines)


def main(words: Sequence[str] | None = None, root: Path = Path(".")) -> None:
    """Sample, judge and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="data/world/teacher", help="a pipeline folder")
    parser.add_argument("--weights", help="transformer weights to judge in it, such as those of a running training")
    parser.add_argument("--guidance", type=float, nargs="+", help="default: the recipe's")
    parser.add_argument("--images", type=int, default=60, help="images of each tag")
    parser.add_argument("--split", choices=("train", "heldout"), default="heldout")
    chosen = parser.parse_args(words)
    params = load_world_params(root)
    start(params)
    pipe = StableDiffusion3Pipeline.from_pretrained(root / chosen.teacher, text_encoder_3=None, tokenizer_3=None)
    if chosen.weights:
        weights = load_tensors(root / chosen.weights)[0]  # of the parameters alone: buffers stay
        pipe.transformer.load_state_dict(pipe.transformer.state_dict() | weights)
    rows = {}
    for guidance in chosen.guidance or [params.teacher.guidance]:
        rows[f"guidance {guidance:g}"] = strict_by_tag(pipe, chosen.split, params.seed, guidance, chosen.images)
    print(table(rows, chosen.split, chosen.images))


if __name__ == "__main__":
    main()
