"""Where a diffusers transformer keeps its blocks."""

from __future__ import annotations

from torch import nn


def transformer_blocks(transformer: nn.Module) -> list[nn.Module]:
    """The blocks of a diffusers transformer in the order of its forward pass: the members of its module lists."""
    lists = (child for child in transformer.children() if isinstance(child, nn.ModuleList))
    return [block for blocks in lists for block in blocks]
