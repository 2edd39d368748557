"""A reward of one's own: the code of a folder beside params.yaml, which no file of this package has to name.

The folder's files are inputs of the stages that use it, so both engines run those again when one changes. Its code is
run as it is, so it has to lie on this machine: a Hub repository is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator

from rtdmd.common.errors import NonFiniteError, UserError
from rtdmd.common.files import sha256_bytes
from rtdmd.common.hub_names import means_hub
from rtdmd.common.parsing import first_line
from rtdmd.common.section import param
from rtdmd.rewards.protocol import Metadata, check_batch, checked
from rtdmd.rewards.registration import RewardParams, Source, commit_of
from rtdmd.rewards.scorer import Scorer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CODE = "reward.py"
EXAMPLE = '''
"""How red a picture is, weighed by one number."""

import torch

RANGE = (0.0, 1.0)


class Red(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("strength", torch.tensor(1.0))

    def forward(self, images, prompts, metadata):
        return (self.strength * images[:, 0].mean((1, 2))).clamp(0, 1)


def load(device):
    return Red().to(device)
'''


def stand_in(folder: Path) -> None:
    """A reward for rehearsals and the tests."""
    (folder / CODE).parent.mkdir(parents=True, exist_ok=True)
    (folder / CODE).write_text(EXAMPLE.lstrip(), encoding="utf-8")


class OwnRewardParams(RewardParams):
    """What both kinds have."""

    module: str = param("folder with reward.py; all its files are inputs of the stage", source="ours", min_length=1)
    revision: str | None = commit_of("module")

    sources: ClassVar[Mapping[str, Source]] = {"module": Source("revision", ("*",), stand_in)}

    @field_validator("module")
    @classmethod
    def _here(cls, module: str) -> str:
        if means_hub(module):
            raise ValueError(f"allowed: a folder of this machine, whose code is run; one of two parts is ./{module}")
        return module


class OwnReward(Scorer):
    """What the folder's ``load`` returns."""

    def __init__(self, params: OwnRewardParams, device: torch.device) -> None:
        """UserError, which names the file, where there is none, it cannot be imported or lacks RANGE or load."""
        from torch import nn

        from rtdmd.rewards.weights import file_hashes, file_in

        folder = Path(params.module)
        key = f"rewards: {params.name}: module"
        self.code = file_in(folder, key, CODE)
        files = file_hashes(path for path in folder.iterdir() if path.is_file())
        found = _run(self.code, f"rtdmd_{params.name}_{sha256_bytes(str(folder.absolute()).encode())[:8]}", key)
        for needed in ("RANGE", "load"):
            if needed not in found:
                raise UserError(f"{key}: {self.code} has no {needed}; docs/extending.md shows a complete one")
        low, high = found["RANGE"]
        self.range = (float(low), float(high))
        self.scorer: Callable[[Tensor, Sequence[str], Sequence[Metadata]], Tensor] = found["load"](device)
        modules = [self.scorer] if isinstance(self.scorer, nn.Module) else []  # what is none has nothing to move
        super().__init__(params, device, modules, files=files, template=None, version=1)

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        """UserError where the code does not return one number for each image."""
        import torch

        check_batch(images, prompts, metadata)
        if not images.isfinite().all():
            raise NonFiniteError(f"reward {self.name} got a pixel that is not finite")
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            scores = self.scorer(images.float(), prompts, metadata)
        if not isinstance(scores, torch.Tensor) or scores.shape != (len(images),):
            got = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
            raise UserError(f"rewards: {self.name}: {self.code} scored {len(images)} images by {got}; one number each")
        return checked(self.name, scores.float()).to(images.device)


def _run(path: Path, name: str, key: str) -> dict[str, Any]:
    """The names that a file defines. It is imported as a package whose modules are the folder's other files."""
    spec = spec_from_file_location(name, path, submodule_search_locations=[str(path.parent)])
    assert spec is not None and spec.loader is not None
    for stale in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
        del sys.modules[stale]
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise UserError(f"{key}: {path} cannot be imported ({first_line(error)})") from error
    return vars(module)
