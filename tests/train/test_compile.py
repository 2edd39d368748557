"""torch.compile of the blocks: the same velocities and gradients for every role, compiled at their first turn alone."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rtdmd.common.errors import UserError
from rtdmd.train import adapters as roles_module
from rtdmd.train import compile as compiled
from rtdmd.train.adapters import ADAPTERS, AdapterBank
from rtdmd.train.compile import compile_blocks, require_compiler
from rtdmd.train.engine import preflight
from tests.train.workshop import adapter, batch, disturb, tiny_backbone
from tests.workspace import set_params


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.fx.GraphModule]]:
    """What is compiled, in a backend that runs it as it is: a real one takes minutes and a C++ compiler."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    graphs: list[torch.fx.GraphModule] = []

    def as_it_is(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph)

    monkeypatch.setattr(compiled, "BACKEND", aot_autograd(fw_compiler=as_it_is))
    torch._dynamo.reset()
    yield graphs
    torch._dynamo.reset()


def turn(bank: AdapterBank) -> list[Tensor]:
    """Velocities without gradient, and gradients of two roles, of which one passes back twice."""
    x, sigma, cond = batch(2)
    weights = {"generator": bank.trainable("acdmd"), "fake": bank.trainable("fake")}
    with torch.no_grad():
        found = [bank.velocity(role, x, sigma, cond) for role in ("teacher", "generator")]
    v = {role: bank.velocity(role, x, sigma, cond) for role in weights}  # both forward before either goes back
    found += torch.autograd.grad(v["generator"].square().mean(), weights["generator"], retain_graph=True)
    found += torch.autograd.grad(v["generator"].mean(), weights["generator"])
    found += torch.autograd.grad(v["fake"].mean(), weights["fake"])
    return found


@pytest.mark.parametrize(("mode", "again"), [("lora", True), ("full", False), ("merged", True)])
def test_roles_compute_what_they_did_and_compile_once(
    tiny_teacher: Path, compilations: list[torch.fx.GraphModule], mode: str, again: bool
) -> None:
    def bank(compiled: bool) -> AdapterBank:
        backbone = tiny_backbone(tiny_teacher)
        if mode == "merged":
            stacks = ADAPTERS["train_acdmd"] | {"generator": ("below", "acdmd")}
            made = AdapterBank(backbone, adapter(again=again), stacks, 0, compiled)
            disturb(made, "below", "acdmd", "fake")
            made.merge("below")
            return made
        made = AdapterBank(backbone, adapter(mode, again=again), ADAPTERS["train_acdmd"], 0, compiled)
        disturb(made, "acdmd", "fake")
        return made

    plain, fast = bank(False), bank(True)
    expected = turn(plain)
    assert not compilations
    first = turn(fast)
    made = len(compilations)
    assert made > 0
    second = turn(fast)
    assert len(compilations) == made  # roles take turns, and none is compiled again
    for found in (first, second):
        for own, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(own, theirs)


def test_too_many_variants_are_an_error_and_not_slower(
    monkeypatch: pytest.MonkeyPatch, compilations: list[torch.fx.GraphModule]
) -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x

    monkeypatch.setattr(compiled, "VARIANTS", 2)
    block = Block()
    compile_blocks([block])
    for rows in (2, 3):
        block(torch.ones(rows))
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        block(torch.ones(4))
    assert len(compilations) == 2


def test_a_missing_compiler_is_one_line_that_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", (None, "no-such-compiler"))
    torch._dynamo.reset()
    with pytest.raises(UserError) as caught:
        require_compiler("train_acdmd.compile", torch.device("cpu"))
    assert str(caught.value).startswith("train_acdmd.compile: true, but torch cannot compile here (")
    assert "g++" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["train_acdmd", "train_rtdmd"])
def test_each_training_stage_compiles_where_its_own_setting_says_so(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(roles_module, "compile_blocks", lambda blocks: seen.append(len(blocks)))
    monkeypatch.setattr(preflight, "require_compiler", lambda key, device: seen.append(key))
    set_params(root, {name: {"compile": True}})
    import_module(f"rtdmd.stages.{name}").run(root)
    assert seen == [f"{name}.compile", 2]  # the tiny teacher has two blocks
