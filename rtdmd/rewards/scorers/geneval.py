"""geneval: whether the objects, numbers, colours and positions that a prompt names are in the image, in [0, 1].

A detector (geneval_detector) finds objects, a CLIP model names colours where the prompt asks (geneval_colours), and
GenEval's rules decide (geneval_rules). The score is ``soft_weight`` * soft + (1 - soft_weight) * verdict: 0 gives the
benchmark's 0/1 (with ``verdict: exact`` the public code's), 1 with ``soft_parts: published`` the reward that the public
code trains on. Prompts need GenEval's metadata. Not differentiable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from rtdmd.common.section import Real, param
from rtdmd.rewards.geneval_rules import (
    COUNTING_THRESHOLD,
    MARGIN,
    MAX_OBJECTS,
    THRESHOLD,
    SoftParts,
    Verdict,
    judge,
    parse,
)
from rtdmd.rewards.protocol import Metadata, as_bytes, check_batch, checked, require_metadata
from rtdmd.rewards.registration import Recorded, Registration, RewardParams, Source, commit_of
from rtdmd.rewards.scorer import Scorer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rtdmd.rewards.geneval_colours import ColourNames
    from rtdmd.rewards.geneval_detector import Detector
    from rtdmd.rewards.protocol import Case

HardVerdict = Literal["benchmark", "exact"]
VERSION = 3  # raise it when the verdict on any image changes; 3: what is cut out for its colour is resized as bytes


class GenEvalParams(RewardParams):
    """Objects, number, colour and position by detection and rules."""

    name: Literal["geneval"] = param("scorer", source="arXiv 2310.11513")
    model: str = param("a Mask2Former folder or Hub id", source="facebook/mask2former-swin-small-coco-instance")
    revision: str | None = commit_of("model")
    colour_model: str = param(
        "a CLIPModel folder or Hub id that names colours", source="GenEval: openai/clip-vit-large-patch14"
    )
    colour_revision: str | None = commit_of("colour_model")
    soft_weight: Real = param(
        "a number from 0 to 1, the share of the soft score; the rest is strict 0/1", source="public code: 1", ge=0, le=1
    )
    soft_parts: SoftParts = param(
        "how the soft score counts: one part from 0 to 1 for all that is asked, or as the public code, from -14 to 1",
        source="public code: published; fixed ours",
        default="fixed",
    )
    verdict: HardVerdict = param(
        "the 0/1 of the rest: the benchmark's rule (at least so many objects), or exactly what is asked",
        source="public code: exact (its strict_accuracy); benchmark GenEval",
        default="benchmark",
    )

    needs_metadata = True
    sources: ClassVar = {"model": Source("revision"), "colour_model": Source("colour_revision")}


def load(params: GenEvalParams, device: torch.device) -> GenEval:
    """The scorer of the detector in ``params.model`` and the CLIP model in ``params.colour_model``, both folders."""
    from rtdmd.rewards.geneval_colours import ColourNames
    from rtdmd.rewards.geneval_detector import Detector
    from rtdmd.rewards.weights import model_hashes

    detector = Path(params.model)
    colours = Path(params.colour_model)
    files = model_hashes(detector, "rewards: geneval: model", "detector/")
    files |= model_hashes(colours, "rewards: geneval: colour_model", "colours/")
    return GenEval(params, Detector(detector, device), ColourNames(colours, device), files)


class GenEval(Scorer):
    """Images are judged one by one, at 8 bits, so a score is that of a saved PNG and does not depend on its batch."""

    def __init__(self, params: GenEvalParams, detector: Detector, colours: ColourNames, files: Mapping[str, str]):
        from rtdmd.rewards.geneval_colours import TEMPLATES

        super().__init__(
            params,
            detector.device,
            [detector, colours],
            files=files,
            sides=[detector.short, detector.long],
            rules={"threshold": THRESHOLD, "counting": COUNTING_THRESHOLD, "objects": MAX_OBJECTS, "margin": MARGIN},
            soft_weight=params.soft_weight,
            soft_parts=params.soft_parts,
            verdict=params.verdict,
            template=list(TEMPLATES),
            version=VERSION,
        )
        self.detector = detector
        self.colours = colours
        self.params = params
        lowest = float(2 - MAX_OBJECTS) if params.soft_parts == "published" else 0.0  # of so many where one is wanted
        self.range = (params.soft_weight * lowest, 1.0)

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        """On the images' device, without gradient."""
        import torch

        verdicts = self.verdicts(images, prompts, metadata)
        hard = [one.exact if self.params.verdict == "exact" else one.correct for one in verdicts]
        share = self.params.soft_weight
        scores = [share * one.soft + (1 - share) * right for one, right in zip(verdicts, hard, strict=True)]
        return checked(self.name, torch.tensor(scores, dtype=torch.float32, device=images.device))

    def verdicts(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> list[Verdict]:
        """Each image's verdict, for those who want both scores and the reasons; errors as in `score`."""
        import torch

        check_batch(images, prompts, metadata)
        records = require_metadata(self.name, prompts, metadata)
        specs = [parse(record, prompt) for record, prompt in zip(records, prompts, strict=True)]
        verdicts = []
        for spec, pixels in zip(specs, as_bytes(self.name, images), strict=True):
            image = torch.from_numpy(pixels).permute(2, 0, 1).to(self.detector.device) / 255
            seen = self.detector(image)
            verdicts.append(judge(spec, seen.found, partial(self.colours, image, seen.masks), self.params.soft_parts))
        return verdicts


def case() -> Case:
    """Drawings of COCO's objects."""
    from rtdmd.rewards.golden_cases import object_case

    return object_case()


# Mask2Former Swin-S and CLIP ViT-L/14
COST = Recorded(68_714_000 + 427_616_513, width=4, tokens=1000)
REWARD = Registration(GenEvalParams, load, COST, case, example={"soft_weight": 0.5})
