"""The one place where a run's torch settings are made, and where third parties' noise is kept out of the terminal."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from rtdmd.common.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class RunSettings(Protocol):
    """What is needed of the settings' section `run`."""

    @property
    def threads(self) -> int:
        """Torch threads."""

    @property
    def device(self) -> str:
        """Where a stage computes: cpu or cuda."""


def configure(run: RunSettings) -> torch.device:
    """Set threads and deterministic kernels from ``params.run``; return the device that the stage computes on.

    Bytes repeat on one machine type at one thread count. Raises UserError where ``run.device`` is not there.
    """
    torch.set_num_threads(run.threads)
    device = torch.device(run.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                f"run.device: {run.device}, but torch sees no CUDA device; set run.device: cpu in params.yaml"
            )
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic cuBLAS; read when CUDA starts
    torch.use_deterministic_algorithms(True)
    return device


def free_memory(device: torch.device) -> None:
    """Give back the memory of models that nothing needs any more, those that hold themselves by a circle too."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _not_about_torchvision(record: logging.LogRecord) -> bool:
    return "requires torchvision" not in record.getMessage()


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Drop transformers' "requires torchvision" notices, and nothing else, inside the ``with``.

    diffusers' SD3 pipeline imports the CLIP and SigLIP image processors by name; we never call them (our image
    preprocessing is torch only) and torchvision is not among our dependencies.
    """
    logger = logging.getLogger("transformers.utils.import_utils")
    logger.addFilter(_not_about_torchvision)
    try:
        yield
    finally:
        logger.removeFilter(_not_about_torchvision)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Switch off the progress bars that diffusers and transformers draw while they load weights, then restore them."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    active = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in active:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in active:
            library.enable_progress_bar()
