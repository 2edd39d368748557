"""Torch settings of a run, and that what is silenced is exactly what was meant."""

from __future__ import annotations

import logging

import pytest
import torch

from rtdmd.common.errors import UserError
from rtdmd.common.torch_setup import configure, quiet_imports, quiet_loading
from rtdmd.config import RunParams


def test_threads_and_deterministic_kernels_are_set() -> None:
    before = torch.get_num_threads()
    try:
        assert configure(RunParams(seed=0, threads=1, device="cpu", gpus_per_node=None)) == torch.device("cpu")
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(before)


def test_a_device_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"run\.device: cuda, but torch sees no CUDA device; set run\.device: cpu"):
        configure(RunParams(seed=0, threads=1, device="cuda", gpus_per_node=None))


class Kept(logging.Handler):
    """Keeps the messages that reach a logger."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def test_only_the_torchvision_notice_is_dropped_and_only_inside() -> None:
    logger, kept = logging.getLogger("transformers.utils.import_utils"), Kept()
    notice = "`CLIPImageProcessor` requires torchvision (not installed); falling back"
    logger.addHandler(kept)
    try:
        with quiet_imports():
            logger.warning(notice)
            logger.warning("another matter")
        assert kept.messages == ["another matter"]
        logger.warning(notice)
        assert kept.messages == ["another matter", notice]
    finally:
        logger.removeHandler(kept)


def test_progress_bars_come_back_as_they_were() -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [library.is_progress_bar_enabled() for library in libraries]
    with quiet_loading():
        assert not any(library.is_progress_bar_enabled() for library in libraries)
    assert [library.is_progress_bar_enabled() for library in libraries] == before
