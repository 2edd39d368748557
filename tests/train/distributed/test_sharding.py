"""A frozen base in shards computes what a whole one does, whatever passes each of several processes has to make, and
whether all of them share it or each group has its own (gloo)."""

from __future__ import annotations

import copy
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.distributed.fsdp  # both before the processes are forked
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from rtdmd.config import preset
from rtdmd.train.adapters import ADAPTERS, AdapterBank, transformer_blocks
from rtdmd.train.distributed.launch import Place
from rtdmd.train.distributed.ranks import Ranks, join
from rtdmd.train.distributed.sharding import is_sharded, shard_mesh
from tests.backbones.families import FAMILIES, PROMPTS, Family
from tests.ports import free_ports
from tests.train.distributed.test_processes import (
    STAGES,
    codes,
    prepare,
    require_equal_but_for_rounding,
    said,
    start_two,
)
from tests.train.workshop import adapter, disturb, normal, results

NAMES = ("acdmd", "rtdmd", "fake")
UNEVEN: dict[str, dict[str, Any]] = {
    # 3 and 4 prompts: one pass and two; the first process alone draws image grids
    "train_acdmd": {"iterations": 2, "batch_size": 7, "micro_batch": 3, "image_log_every": 2},
    # 4 and 8 images: two passes and three; the first process alone validates
    "train_rtdmd": {"epochs": 2, "fake_updates_per_epoch": 1, "micro_batch": 3}
    | {"validation": {"every": 2, "prompts": 3, "images": 2}},
}


@pytest.fixture(scope="module")
def root(root: Path) -> Path:
    """The workspace, with what stage one left set aside."""
    shutil.copytree(root / "results/train_acdmd", root / "start")
    return root


@pytest.fixture(scope="module")
def left(root: Path) -> dict[tuple[str, str], dict[str, bytes]]:
    """What two processes leave, by stage and sharding."""
    found = {}
    for stage, sharding in product(STAGES, ("none", "base")):
        prepare(root, stage, processes=2, sharding=sharding, **UNEVEN[stage])
        assert codes(start_two(root, stage)) == [0, 0], said(root)
        first, second = said(root)
        assert "Warn" not in first and second == ""
        found[stage, sharding] = results(root, stage)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_shards_change_nothing_but_rounding(left: dict[tuple[str, str], dict[str, bytes]], stage: str) -> None:
    """Weights that were read from a file lie at other addresses than gathered ones, modulo the width of a vector
    register; on a CPU the order of additions depends on that."""
    require_equal_but_for_rounding(left[stage, "none"], left[stage, "base"], stage)


def test_a_process_that_is_killed_is_one_line_and_the_run_goes_on(
    root: Path, left: dict[tuple[str, str], dict[str, bytes]]
) -> None:
    """Killed somewhere in the second epoch: between gathers, or in one."""
    prepare(root, "train_rtdmd", processes=2, sharding="base", **UNEVEN["train_rtdmd"])
    processes = start_two(root, "train_rtdmd")
    while not list(root.glob(".rtdmd/runs/*/step-00000001")) and processes[0].is_alive():
        time.sleep(0.01)
    assert processes[1].pid is not None
    os.kill(processes[1].pid, signal.SIGKILL)
    assert codes(processes) == [1, -9], said(root)
    told = said(root)[0]
    assert "rtdmd train_rtdmd: another process of the run ended or does not answer" in told and "Traceback" not in told
    assert codes(start_two(root, "train_rtdmd")) == [0, 0], said(root)
    assert results(root, "train_rtdmd") == left["train_rtdmd", "base"]


@pytest.fixture(scope="module", params=FAMILIES)
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Path]:
    """A family and its tiny pipeline."""
    family = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("sharding") / family.name
    family.write(folder)
    return family, folder


def as_rank(rank: int, port: int, family: Family, folder: Path) -> None:
    """One of two processes, in which a sharded base is compared with a whole one."""
    with joined(rank, 2, port) as ranks:
        for again, merged, two in ((False, (), False), (True, (), True), (True, ("acdmd",), False)):
            compare(ranks, family.load(folder, vae=False), again, merged, two)
            ranks.before_collective.clear()


def as_one_of_four(rank: int, port: int, folder: Path) -> None:
    """One of four processes, in two groups with a base each."""
    with joined(rank, 4, port) as ranks:
        mesh, group = shard_mesh(ranks, 2)
        assert mesh.mesh.tolist() == [[0, 1], [2, 3]] and mesh.mesh_dim_names == ("replicate", "shard")
        assert torch.distributed.get_process_group_ranks(group) == [2 * (rank // 2), 2 * (rank // 2) + 1]
        compare(ranks, FAMILIES["sd3"].load(folder, vae=False), shards=2)


def joined(rank: int, world: int, port: int) -> AbstractContextManager[Ranks]:
    """One of ``world`` processes that a launcher started."""
    os.environ |= Place(rank, world, rank, world, "127.0.0.1", port).environment()
    return join("train_rtdmd", world, preset("smoke", {"run": {"threads": 1}}).run)


def compare(
    ranks: Ranks,
    backbone: Any,
    again: bool = False,
    merged: tuple[str, ...] = (),
    two: bool = False,
    shards: int = 2,
) -> None:
    """Each process makes more passes than the one before it, which gathers along meanwhile. ``again``: with gradient
    checkpointing; ``merged``: adapters whose copies of layers are sharded too; ``two``: the student stands on a base of
    its own."""
    if two:
        backbone.student = copy.deepcopy(backbone.transformer)
        for name, weight in backbone.student.named_parameters():
            weight.data += 0.01 * normal(weight.shape, name)
    # A copy, like a gathered block, begins at a multiple of 64 bytes; weights from a file do not.
    whole, sharded = (
        AdapterBank(each, adapter(again=again), ADAPTERS["train_rtdmd"], 0)
        for each in (copy.deepcopy(backbone), backbone)
    )
    for bank in (whole, sharded):
        disturb(bank, *NAMES)
        for name in merged:
            bank.merge(name)
    bases = [backbone.transformer, backbone.student][: 1 + two]
    blocks = [block for base in bases for block in transformer_blocks(base)]
    base = [p for block in blocks for key, p in block.named_parameters() if ".lora_" not in key]
    sizes = ranks.world // shards * sum(p.numel() for p in base)
    most = sum(-(-len(p) // shards) * p[0].numel() for p in base)
    sharded.shard(ranks, shards)
    assert held(sharded) <= most and ranks.all_reduce({"held": held(sharded)})["held"] == sizes
    expected, found = (list(passes(bank, backbone, 1 + ranks.rank)) for bank in (whole, sharded))
    ranks.all_gather_object(None)
    assert all(is_sharded(block) for block in blocks)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def held(bank: AdapterBank) -> int:
    """Numbers of the bases' blocks in this process."""
    parameters = (p for base in bank.transformers for p in base.parameters())
    return sum(p.to_local().numel() for p in parameters if isinstance(p, DTensor))


def passes(bank: AdapterBank, backbone: Any, times: int) -> Iterator[Tensor]:
    """Velocities and gradients as the stages take them: without a graph, twice from one graph, from two passes in one
    graph, and through a chain that is computed again."""
    x, sigma, cond = normal((2, *backbone.latent_shape()), "x"), torch.tensor([0.3, 0.8]), backbone.encode(PROMPTS)
    own, fake = bank.trainable("rtdmd"), bank.trainable("fake")

    def step(x: Tensor) -> Tensor:
        return x + bank.velocity("generator", x, sigma, cond)

    for _ in range(times):
        with torch.no_grad():
            teacher, reference = (bank.velocity(role, x, sigma, cond) for role in ("teacher", "reference"))
        yield from (teacher, reference)
        v = bank.velocity("generator", x, sigma, cond)
        v_fake = bank.velocity("fake", x, sigma, cond)
        yield from torch.autograd.grad((v * teacher).sum(), own, retain_graph=True)
        yield from torch.autograd.grad((v - reference).square().sum(), own)
        later = bank.velocity("fake", x + v_fake.detach(), sigma, cond)
        yield from torch.autograd.grad((v_fake * later).sum(), fake)
        y = x
        for _ in range(2):
            y = checkpoint(step, y, use_reentrant=False, preserve_rng_state=False)
        yield from torch.autograd.grad(y.square().sum(), own)


def test_each_process_holds_half_of_the_blocks_and_computes_the_same_bits(teacher: tuple[Family, Path]) -> None:
    assert ends(2, as_rank, *teacher) == [0, 0]


def test_two_groups_of_two_hold_a_base_each_and_compute_the_same_bits(tmp_path: Path) -> None:
    FAMILIES["sd3"].write(tmp_path)
    assert ends(4, as_one_of_four, tmp_path) == [0] * 4


def ends(world: int, target: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Exit codes of ``world`` forked processes."""
    port, fork = free_ports(1)[0], multiprocessing.get_context("fork")
    processes = [fork.Process(target=target, args=(rank, port, *arguments)) for rank in range(world)]
    for process in processes:
        process.start()
    return codes(processes)
