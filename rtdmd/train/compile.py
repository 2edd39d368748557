"""torch.compile of a transformer's blocks, where `train_acdmd.compile` or `train_rtdmd.compile` asks for it.

A block is compiled anew for each stack of adapters, with and without gradient, and for each batch size: PEFT switches
adapters by name, which is not a tensor. All blocks of a kind share what was compiled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rtdmd.common.errors import UserError
from rtdmd.common.parsing import first_line

BACKEND = "inductor"
VARIANTS = 256  # of a kind of block: stacks, with and without gradient, batch sizes; torch's own limit for all calls


def compile_blocks(blocks: Sequence[nn.Module]) -> None:
    """Compile the forward pass of each block of a transformer, so that the same run gives the same bytes.

    A kernel is made for each batch size as it is: torch's own way, variable sizes from the second one on, would let the
    kernels depend on the order of sizes, and a resumed run sees another order. None is chosen by its speed. What cannot
    be compiled, or too many variants, is an error and not a slower run.
    """
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor

    inductor.deterministic = True
    functorch.donated_buffer = False  # several terms go back through one forward pass
    for block in blocks:
        block.compile(backend=BACKEND, dynamic=False, fullgraph=True, recompile_limit=VARIANTS)


def require_compiler(key: str, device: torch.device) -> None:
    """UserError, which names the setting ``key``, unless something small compiles and runs."""
    from torch._dynamo.exc import TorchDynamoException

    def double(x: Tensor) -> Tensor:
        return x + x

    try:
        torch.compile(double, backend=BACKEND, dynamic=False)(torch.ones(1, device=device))
    except (TorchDynamoException, RuntimeError) as error:
        raise UserError(
            f"{key}: true, but torch cannot compile here ({first_line(error)}); install a C++ compiler"
            f" (Debian and Ubuntu: apt-get install g++), or set {key}: false"
        ) from error
