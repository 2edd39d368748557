"""Counter-based randomness: every draw is named by a key, so that batch splits, processes and resume change nothing.

A key is a tuple of ints and strings such as ``(seed, "renoise", step, sample)``. The same key gives the same numbers
wherever and whenever it is asked for; there is no generator state to save. Keys are hashed with BLAKE2b into the seed
of a fresh CPU generator, so draws are also the same on every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Key = int | str


def key_seed(*key: Key) -> int:
    """A 63-bit seed from a key. Ints and strings never collide (``1`` and ``"1"`` differ)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def torch_generator(*key: Key) -> torch.Generator:
    """A CPU torch generator at the start of the key's stream."""
    return torch.Generator("cpu").manual_seed(key_seed(*key))


def numpy_generator(*key: Key) -> np.random.Generator:
    """A numpy generator at the start of the key's stream."""
    return np.random.default_rng(key_seed(*key))


def normal(shape: Sequence[int], *key: Key) -> Tensor:
    """Standard normal float32 tensor of ``shape`` for one key."""
    return torch.randn(tuple(shape), generator=torch_generator(*key), dtype=torch.float32)


def normal_batch(shape: Sequence[int], keys: Sequence[tuple[Key, ...]]) -> Tensor:
    """``(len(keys), *shape)`` standard normals, row i from ``keys[i]`` alone."""
    out = torch.empty((len(keys), *shape), dtype=torch.float32)
    for row, key in zip(out, keys, strict=True):
        row.normal_(generator=torch_generator(*key))
    return out


def integers(low: int, high: int, *key: Key) -> int:
    """One integer in [low, high) for a key (the modulo bias is below 2^-50 for ranges under 8192)."""
    return low + key_seed(*key) % (high - low)


def permutation(n: int, *key: Key) -> list[int]:
    """A permutation of ``range(n)`` for a key."""
    return torch.randperm(n, generator=torch_generator(*key)).tolist()


def epoch_order(n: int, first: int, count: int, *key: Key) -> list[int]:
    """Items ``first .. first+count-1`` of an endless shuffled stream over ``range(n)``: one permutation an epoch.

    The position is a plain counter, so resuming at step k needs no sampler state.
    """
    out: list[int] = []
    while count > 0:
        epoch, offset = divmod(first, n)
        chunk = permutation(n, *key, epoch)[offset : offset + count]
        out += chunk
        first += len(chunk)
        count -= len(chunk)
    return out
