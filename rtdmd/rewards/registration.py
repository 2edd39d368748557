"""What a scorer's file registers: its settings, how it is loaded, what it costs, how it is tried.

A file in rtdmd/rewards/scorers assigns one `Registration` to ``REWARD``; params.yaml, `rtdmd plan`, the golden check,
the tables and the tests find it there. The configuration imports these files, so torch and transformers are imported
inside their functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from rtdmd.common.hub_names import means_hub, require_hub_name
from rtdmd.common.section import Flag, Real, Section, param
from rtdmd.rewards.ocr_text import target_text
from rtdmd.rewards.protocol import Metadata, Pixels, require_metadata

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from rtdmd.rewards.protocol import Case, Reward

TEXTS = ("*.json", "*.txt", "*.model", "*.jinja")
WEIGHTS_AND_TEXTS = (*TEXTS, "*.safetensors")

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Source:
    """Of a key that names a folder or a Hub repository: the key of its commit, and what is fetched of a repository.

    stand_in: for `rtdmd rehearse` and the tests. Fills a folder with a tiny random model under the names of files and
        tensors that the published one has. None: rtdmd/rehearse/scorers.py has it.
    """

    pin: str
    files: tuple[str, ...] = WEIGHTS_AND_TEXTS
    stand_in: Callable[[Path], object] | None = None


def commit_of(key: str) -> Any:
    """The field that pins the Hub commit of the source ``key``."""
    return param(f"Hub commit of {key}, 40 hex digits; null for a folder", source="Hugging Face Hub", default=None)


class RewardParams(Section):
    """A scorer of images given their prompts. These keys are everybody's; a scorer's own class adds its own."""

    differentiable: ClassVar[bool] = False
    """Whether the score carries a gradient to the image."""
    needs_metadata: ClassVar[bool] = False
    """Whether a prompt without metadata cannot be scored."""
    needs_text: ClassVar[bool] = False
    """Whether a prompt must quote a text, or have it as metadata."""
    label: ClassVar[str | None] = None
    """What tables and headings call the score; None: its name."""
    sources: ClassVar[Mapping[str, Source]] = {}
    """Keys that name a folder or a Hub repository; a scorer without any has no weights of ours."""

    name: str = param("scorer", source="a file of rtdmd/rewards/scorers")
    weight: Real = param("weight in the sum over rewards", source="public code: 1 each", ge=0, default=1.0)
    policy: Flag | None = param(
        "train_rtdmd: false leaves it to back-propagation; null or true: the policy gradient sees it too",
        source="public code: true",
        default=None,
    )
    offload: Flag | None = param(
        "true keeps its weights off the device but in its own turn, with no other such scorer; null or false: there",
        source="ours",
        default=None,
    )
    socket: str | None = param(
        "Unix socket of a process that runs this scorer (`rtdmd rewards serve`); null: this process",
        source="ours",
        default=None,
    )

    def is_hub_id(self, source: str) -> bool:
        """True when the key ``source`` names a Hub repository rather than a local folder."""
        value = getattr(self, source)
        return value is not None and means_hub(value)

    def networks(self) -> tuple[str | None, ...]:
        """What tells two entries' networks apart."""
        return (self.name, self.socket, *(getattr(self, source) for source in self.sources))

    def require_scorable(self, prompts: Sequence[str], metadata: Sequence[Metadata]) -> None:
        """UserError that names the first prompt that lacks what the scorer needs beside it: what its score would say,
        hours later."""
        if self.needs_metadata:
            require_metadata(self.name, prompts, metadata)
        if self.needs_text:
            for prompt, record in zip(prompts, metadata, strict=True):
                target_text(prompt, record)

    @model_validator(mode="after")
    def _check(self) -> RewardParams:
        if self.policy is False and not self.differentiable:
            raise ValueError(f"policy: False for {self.name}; allowed: true ({self.name} carries no gradient)")
        if self.offload and (not self.sources or self.socket is not None):
            owner = "its process has them" if self.socket is not None else f"{self.name} has none"
            raise ValueError(f"offload: True for {self.name}; allowed: null (there are no weights here: {owner})")
        for key, source in self.sources.items():
            self._check_revision(key, source.pin)
        return self

    def _check_revision(self, source: str, pin: str) -> None:
        """A Hub id comes with a commit, anything else without."""
        value = getattr(self, source)
        revision = getattr(self, pin)
        if value is not None:
            require_hub_name(source, value)
        if not self.is_hub_id(source):
            if revision is not None:
                raise ValueError(f"{pin}: {revision!r} with {source}: {value!r}, which is not a Hub id; allowed: null")
        elif revision is None or not _COMMIT.fullmatch(revision):
            raise ValueError(
                f"{pin}: {revision!r} with the Hub id {value!r}; allowed: the 40 hex digits of a commit"
                f" (a local folder of that name is written ./{value})"
            )


class DifferentiableParams(RewardParams):
    """A scorer that passes gradients, and that can be given bytes where none is asked for."""

    differentiable = True

    pixels: Pixels = param(
        "what it reads where no gradient is asked for (policy, evaluation): decoded floats, or bytes as in a PNG",
        source="public code: bytes; floats ours",
        default="floats",
    )


Resize = Literal["processor", "bilinear"]
"""The model's own processor, or what torchvision's Resize and CenterCrop do with floats unless told otherwise."""


@dataclass(frozen=True)
class Recorded:
    """The cost of networks that the plan does not run: parameters, bytes of each, and the tokens that an image is to
    them (2 FLOPs a parameter and token)."""

    parameters: int
    width: int
    tokens: int


FREE = Recorded(0, 0, 0)
"""The cost of a scorer without networks."""


@dataclass(frozen=True)
class Networks:
    """The cost of networks that the plan runs: the modules without weights, and a score (B,) or (B, ...) of images
    (B, 3, H, W) in [0, 1] that costs what the scorer's does."""

    modules: list[nn.Module]
    score: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Registration:
    """A scorer, as its file hands it to the package.

    settings: the keys of its entry in params.yaml; its ``name`` is the file's.
    load: the scorer of an entry on a device. By then every source is a folder on this machine: relative paths start
        from the run's root, and a Hub id was fetched at its commit. Raises UserError where a file is missing or
        another model's (`rtdmd.rewards.weights` reads weights safely and consumes every key).
    cost: for `rtdmd plan`. A function gets the entry and the run's root, and makes modules that the plan keeps without
        weights.
    case: the drawn pictures on which the scorer is tried before a run; None: scenes of the embedded world.
    example: for the tests, the keys of an entry that have no default and name no source.
    """

    settings: type[RewardParams]
    load: Callable[[Any, torch.device], Reward]
    cost: Recorded | Callable[[Any, Path], Networks]
    case: Callable[[], Case] | None = None
    example: Mapping[str, Any] = field(default_factory=dict)
