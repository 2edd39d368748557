"""What a piece of code takes at its peak, measured: on a GPU by its allocator, on the CPU by the operating system."""

from __future__ import annotations

import ctypes
import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from rtdmd.common.torch_setup import free_memory

_THRESHOLDS = (-3, -1)  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of glibc's mallopt
_AT_ONCE = 2**16  # larger blocks come from the system and go back to it at once
_LAZY = 2**25  # glibc's own upper bound


def available(device: torch.device) -> int:
    """Bytes that can still be had: of the GPU, or of the machine's memory without swapping and within this process's
    limit. What nobody needs any more, models that were measured before, is given back first."""
    held(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(min(psutil.virtual_memory().available, below_limit(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))))


def below_limit(root: Path, own: Path) -> float:
    """Bytes up to the nearest memory limit of the control groups that ``own`` names (v2 or v1, mounted at ``root``) and
    of those above them, which psutil does not see; inf without one. Files' pages that the kernel drops first are free.
    """
    room = math.inf
    for line in own.read_text(encoding="utf-8").splitlines() if own.exists() else ():
        _, kinds, path = line.split(":", 2)
        if not kinds:
            top = root
            names = ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            top = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        most, now, dropped = names
        group = top / path.lstrip("/")
        for folder in (group, *group.parents[: len(group.parts) - len(top.parts)]):
            limit = (folder / most).read_text(encoding="ascii").strip() if (folder / most).exists() else "max"
            if limit != "max":
                stat = dict(one.split() for one in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
                used = int((folder / now).read_text(encoding="ascii")) - int(stat[dropped])
                room = min(room, max(0, int(limit) - used))
    return room


def held(device: torch.device) -> int:
    """Bytes that tensors hold now; what nobody needs any more is given back first."""
    free_memory(device)
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    storages: dict[int, int] = {}  # each once
    for found in every_tensor():
        if found.device.type == "cpu":
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


class Peak:
    """The most bytes that are held from now on, without those that others held ``before``. Of a process (on Linux):
    what tensors hold now, and above that the growth of its resident memory, so that what imports and pools took before
    counts nothing."""

    def __init__(self, device: torch.device, before: int) -> None:
        self.device = device
        self.base = held(device) - before
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.start = torch.cuda.memory_allocated(device)
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the kernel's high-water mark begins anew
            self.start = resident("VmRSS")

    def bytes(self) -> int:
        most = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else resident("VmHWM")
        return self.base + most - self.start


def every_tensor() -> list[torch.Tensor]:
    """All tensors of this process, wherever their memory is."""
    return [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]


def resident(what: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM the most (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{what}:")).split()[1])


@contextmanager
def freed_at_once() -> Iterator[None]:
    """glibc gives back at once what is freed inside; what it would keep for the next request is nobody's need."""
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    for name in _THRESHOLDS:
        mallopt(name, _AT_ONCE)
    try:
        yield
    finally:
        for name in _THRESHOLDS:
            mallopt(name, _LAZY)
