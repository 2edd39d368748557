"""How many transformers are held at once: what publishing, its gate and evaluation promise about their memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest
from torch import nn


@contextmanager
def transformers_alive(monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module]) -> Iterator[list[int]]:
    """For every model of ``kind`` that is made inside, how many older ones have their weights at that moment. One that
    was put on the meta device has none."""
    made: list[weakref.ref[nn.Module]] = []
    found: list[int] = []
    real: Any = kind.__init__

    @wraps(real)  # diffusers looks at its parameters
    def init(self: nn.Module, *arguments: object, **settings: object) -> None:
        found.append(sum(_has_weights(one()) for one in made))
        real(self, *arguments, **settings)
        made.append(weakref.ref(self))

    gc.collect()
    with monkeypatch.context() as patch:
        patch.setattr(kind, "__init__", init)
        yield found


def _has_weights(module: nn.Module | None) -> bool:
    return module is not None and any(parameter.device.type != "meta" for parameter in module.parameters())
