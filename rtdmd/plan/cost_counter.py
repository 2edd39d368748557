"""Counting on the meta device: FLOPs by torch's own formulas, and every byte that lives while a piece of code runs.

A meta tensor has a shape and no memory, so real sizes cost nothing. Attention is the fused kernel's, which keeps its
inputs, its output and one number per row, as the kernels of CPU and GPU do; left alone, meta tensors would take the
textbook path and keep every attention matrix.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

META = torch.device("meta")
ATEN = torch.ops.aten
_FLASH = ATEN._scaled_dot_product_flash_attention_for_cpu
FORMULAS: dict[Any, Any] = flop_registry | {
    _FLASH: flop_registry[ATEN._scaled_dot_product_flash_attention],
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        ATEN._scaled_dot_product_flash_attention_backward
    ],
}
"""torch's own formulas, by operation, and its formulas of the GPU's fused attention for the CPU's, which it lacks."""


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention` as one kernel; grouped queries see each key and value as often as needed."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key = key.repeat_interleave(groups, -3)
        value = value.repeat_interleave(groups, -3)
    out: Tensor = _FLASH(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return out


class CostCounter(TorchDispatchMode):
    """FLOPs of every operation, and the bytes of all tensors that are alive with their peak, from now on; tensors that
    are ``known`` take no bytes."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.flops = self.live = self.peak = 0
        self._outputs: dict[Any, tuple[torch.Size, tuple[int, ...], torch.dtype, int]] = {}
        self._seen: weakref.WeakKeyDictionary[Any, Callable[[], object]] = weakref.WeakKeyDictionary()
        for tensor in known:
            self._seen[tensor.untyped_storage()] = lambda: None  # there is nothing to take off at its end

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = (func, _description(args), _description(tuple(kwargs.items())))
        if call in self._outputs:
            shape, stride, dtype, flops = self._outputs[call]
            out = torch.empty_strided(shape, stride, dtype=dtype, device=META)
        else:
            out = func(*args, **kwargs)
            count = FORMULAS.get(func._overloadpacket)
            flops = 0 if count is None else count(*args, **kwargs, out_val=out)
            # A model's blocks repeat the same operations, and torch takes long to find the shape of a result. One that
            # shares memory with an argument (a view, what is written in place) is quick and has to be done again.
            given = [leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            if isinstance(out, Tensor) and out.device == META and out.untyped_storage() not in given:
                self._outputs[call] = (out.shape, out.stride(), out.dtype, flops)
        self.flops += flops
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: Any) -> None:
        if storage in self._seen:
            return
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        self._seen[storage] = weakref.finalize(storage, self._free, size)  # acts once, when called or at the end

    def forget(self, tensor: Tensor) -> None:
        self._seen[tensor.untyped_storage()]()

    def _free(self, size: int) -> None:
        self.live -= size


def _description(value: Any) -> Any:
    """What the shape of an operation's result can depend on, for a dictionary's key."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (tuple, list)):
        return tuple(_description(one) for one in value)
    return type(value), value


@contextlib.contextmanager
def count_cost(known: Iterable[Tensor] = ()) -> Iterator[CostCounter]:
    """Count what runs inside, on the meta device or on a real one; its attention is the fused kernel's, also where a
    block is computed again in the backward pass, which a mode of torch would not reach.

    ``known``: tensors that were there before (weights), which take no bytes.
    """
    own = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _fused
    try:
        with CostCounter(known) as counter:
            yield counter
    finally:
        F.scaled_dot_product_attention = own


def tensors_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def size_of(modules: Iterable[nn.Module]) -> tuple[int, int]:
    """(parameters, bytes) of modules; buffers count in the bytes."""
    modules = list(modules)
    count = sum(parameter.numel() for module in modules for parameter in module.parameters())
    return count, sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(modules))
