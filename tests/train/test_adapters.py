"""One base, many roles: no role touches another, the teacher is the pristine base, stage two starts at stage one."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rtdmd.backbones.protocol import Backbone
from rtdmd.common.errors import UserError
from rtdmd.common.files import load_tensors, save_tensors
from rtdmd.config import Params
from rtdmd.config.training import Initialisation
from rtdmd.train.adapters import ADAPTERS, AdapterBank, load_student
from rtdmd.train.learner import EMA, Learner
from tests.train.workshop import adamw, adapter, batch, conditioning, disturb, roles_on, tiny_backbone
from tests.workspace import make_workspace, set_params

MODES = ("lora", "full")


@pytest.fixture(scope="module")
def backbone(tiny_teacher: Path) -> Backbone:
    return tiny_backbone(tiny_teacher)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Equal names and bits."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def train_one(bank: AdapterBank, role: str, name: str) -> None:
    """One AdamW step of one adapter towards zero velocity."""
    x, sigma, cond = batch(3)
    learner = Learner.adamw(bank.trainable(name), adamw(0.05))
    loss = bank.velocity(role, x, sigma, cond).square().mean()
    learner.step(torch.autograd.grad(loss, learner.parameters))


@pytest.mark.parametrize("mode", MODES)
def test_a_step_of_one_role_leaves_every_bit_of_the_others(backbone: Backbone, mode: str) -> None:
    bank = roles_on(backbone, mode=mode)
    disturb(bank, "acdmd", "fake", scale=0.02)
    x, sigma, cond = batch(3)
    for role, name, other_role, other in (
        ("fake", "fake", "generator", "acdmd"),
        ("generator", "acdmd", "fake", "fake"),
    ):
        mine, theirs = bank.state(name), bank.state(other)
        v_mine, v_theirs = (bank.velocity(r, x, sigma, cond).detach() for r in (role, other_role))
        train_one(bank, role, name)
        assert same(bank.state(other), theirs)
        assert torch.equal(bank.velocity(other_role, x, sigma, cond), v_theirs)
        assert not same(bank.state(name), mine)
        assert not torch.allclose(bank.velocity(role, x, sigma, cond), v_mine, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_the_teacher_is_the_pristine_base_before_and_after_training(backbone: Backbone, mode: str) -> None:
    x, sigma, cond = batch(3)
    null = conditioning(1, "null")
    pristine = [
        backbone.velocity(backbone.transformer, x, sigma, cond),
        backbone.velocity(backbone.transformer, x, sigma, cond, guidance=3.0, null=null),
    ]
    weights = {key: value.clone() for key, value in backbone.transformer.state_dict().items()}
    for stage, trained in (("train_acdmd", ("generator", "acdmd")), ("train_rtdmd", ("generator", "rtdmd"))):
        bank = roles_on(backbone, stage, mode)
        for moment in ("fresh", "trained"):
            if moment == "trained":
                train_one(bank, *trained)
                train_one(bank, "fake", "fake")
            assert torch.equal(bank.velocity("teacher", x, sigma, cond), pristine[0]), (stage, moment)
            guided = bank.velocity("teacher", x, sigma, cond, guidance=3.0, null=null)
            assert torch.equal(guided, pristine[1]), (stage, moment)
    assert same(weights, backbone.transformer.state_dict())


@pytest.mark.parametrize("mode", MODES)
def test_every_role_starts_at_the_teacher(backbone: Backbone, mode: str) -> None:
    x, sigma, cond = batch(3)
    bank = roles_on(backbone, "train_rtdmd", mode)
    teacher = bank.velocity("teacher", x, sigma, cond)
    for role in ("reference", "generator", "fake"):
        assert torch.equal(bank.velocity(role, x, sigma, cond), teacher), role


@pytest.mark.parametrize("mode", MODES)
def test_stage_two_starts_at_the_stage_one_student(backbone: Backbone, mode: str) -> None:
    one = roles_on(backbone, "train_acdmd", mode)
    disturb(one, "acdmd", "fake")
    two = roles_on(backbone, "train_rtdmd", mode)
    two.load("acdmd", one.state("acdmd"), "a test")
    if mode == "full":  # a full copy is not an addition: stage two starts from stage one's weights
        two.load("rtdmd", one.state("acdmd"), "a test")
    x, sigma, cond = batch(3)
    student = one.velocity("generator", x, sigma, cond).detach()
    assert torch.equal(two.velocity("generator", x, sigma, cond), student)
    assert torch.equal(two.velocity("reference", x, sigma, cond), student)
    train_one(two, "generator", "rtdmd")
    assert torch.equal(two.velocity("reference", x, sigma, cond), student)
    assert not torch.allclose(two.velocity("generator", x, sigma, cond), student, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_switching_roles_between_forward_and_backward_loses_no_gradient(backbone: Backbone, mode: str) -> None:
    """PEFT's own switch turns ``requires_grad`` off, and the backward pass then skips the adapter in silence."""
    x, sigma, cond = batch(3)

    def gradients(switch: bool) -> tuple[list[Tensor], list[Tensor]]:
        bank = roles_on(backbone, mode=mode)
        disturb(bank, "acdmd", "fake", scale=0.02)
        generator, fake = bank.trainable("acdmd"), bank.trainable("fake")
        v_generator = bank.velocity("generator", x, sigma, cond)
        if switch:
            with torch.no_grad():
                bank.velocity("teacher", x, sigma, cond)
            v_fake = bank.velocity("fake", x, sigma, cond)
            from_fake = torch.autograd.grad(v_fake.square().mean(), fake)
            bank.velocity("teacher", x, sigma, cond)
            from_generator = torch.autograd.grad(v_generator.square().mean(), generator)
        else:
            from_generator = torch.autograd.grad(v_generator.square().mean(), generator)
            from_fake = torch.autograd.grad(bank.velocity("fake", x, sigma, cond).square().mean(), fake)
        return list(from_generator), list(from_fake)

    plain, switched = gradients(False), gradients(True)
    for kind in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(plain[kind], switched[kind], strict=True))
        assert sum(g.abs().sum() for g in plain[kind]) > 0


@pytest.mark.parametrize("mode", MODES)
def test_blocks_computed_again_use_the_adapters_of_their_forward_pass(backbone: Backbone, mode: str) -> None:
    """With gradient checkpointing the backward pass runs each block once more, when another role may be active."""
    x, sigma, cond = batch(3)

    def gradients(again: bool) -> list[Tensor]:
        bank = AdapterBank(copy.deepcopy(backbone), adapter(mode, again=again), ADAPTERS["train_rtdmd"], 0)
        disturb(bank, "acdmd", "rtdmd", "fake", scale=0.02)
        parameters = bank.trainable("rtdmd")
        v = bank.velocity("generator", x, sigma, cond)
        for role in ("fake", "teacher"):
            bank.velocity(role, x, sigma, cond)
        return list(torch.autograd.grad(v.square().mean(), parameters))

    calls: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        block = type(backbone.transformer.transformer_blocks[0])  # type: ignore[index,union-attr]
        forward = block.forward
        patch.setattr(block, "forward", lambda self, *a, **k: (calls.append("block"), forward(self, *a, **k))[1])
        plain = gradients(False)
        once = len(calls)
        again = gradients(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert len(calls) - once == once + len(backbone.transformer.transformer_blocks)  # type: ignore[arg-type]


def test_optimizer_and_average_hold_the_adapters_own_tensors(backbone: Backbone) -> None:
    bank = roles_on(backbone, "train_rtdmd")
    parameters = bank.trainable("rtdmd")
    ema = EMA(parameters, 0.9)
    learner = Learner.adamw(parameters, adamw(0.1), ema=ema)
    held = [p for group in learner.optimizer.param_groups for p in group["params"]]
    named = {id(p) for name, p in bank.backbone.transformer.named_parameters() if ".rtdmd." in name}
    assert len(held) == len(parameters) and {id(p) for p in held} == named
    assert [t.shape for t in ema.tensors] == [p.shape for p in parameters]


def test_only_what_an_optimizer_asks_for_is_trainable(backbone: Backbone) -> None:
    bank = roles_on(backbone, "train_rtdmd")
    transformer = bank.backbone.transformer
    assert not any(p.requires_grad for p in transformer.parameters())
    mine = bank.trainable("rtdmd")
    assert {id(p) for p in transformer.parameters() if p.requires_grad} == {id(p) for p in mine}
    shapes = [transformer.get_submodule(name).weight.shape for name in backbone.lora_targets("attention")]
    assert sum(p.numel() for p in mine) == sum(4 * (outer + inner) for outer, inner in shapes)
    assert len(bank.state("rtdmd")) == len(mine) == 2 * len(shapes)


@pytest.mark.parametrize(("init", "std"), [("kaiming_uniform", None), ("gaussian", 1 / 256), ("standard_normal", 1.0)])
def test_a_new_lora_starts_with_the_spread_that_is_asked_for(
    backbone: Backbone, init: Initialisation, std: float | None
) -> None:
    """A's standard deviation, PEFT's default in units of 1 / √(3 inputs); B is 0."""
    lora = adapter(rank=256)
    bank = AdapterBank(copy.deepcopy(backbone), lora, {"generator": ("acdmd",)}, 0, init=init)
    state = bank.state("acdmd")
    drawn = torch.cat(
        [
            value.flatten() * (math.sqrt(3 * value.shape[1]) if std is None else 1 / std)
            for key, value in state.items()
            if "lora_A" in key
        ]
    )
    assert drawn.numel() > 50_000
    assert drawn.std().item() == pytest.approx(1.0, rel=0.02)
    assert abs(drawn.mean().item()) < 0.02
    bounded = (
        drawn.abs().max().item() <= math.sqrt(3) + 1e-6
    )  # a uniform distribution ends there, a normal one goes beyond
    assert bounded == (init == "kaiming_uniform")
    assert all(value.abs().max() == 0 for key, value in state.items() if "lora_B" in key)
    again, other = (
        AdapterBank(copy.deepcopy(backbone), lora, {"generator": ("acdmd",)}, seed, init=init).state("acdmd")
        for seed in (0, 1)
    )
    assert same(state, again) and not same(state, other)


def test_the_published_starts_are_twice_and_sixty_times_ours() -> None:
    """At SD3's width, where an update of AdamW moves the student in proportion to A."""
    ours = 1 / math.sqrt(3 * 1536)
    assert ours == pytest.approx(0.0147, abs=5e-5)
    assert (1 / 32) / ours == pytest.approx(2.12, abs=0.01)
    assert 1 / ours == pytest.approx(67.9, abs=0.1)


def test_adapters_depend_on_seed_and_name_and_leave_the_global_generator_alone(backbone: Backbone) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, again, other = (roles_on(backbone, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(one.state("acdmd"), again.state("acdmd"))
    assert not same(one.state("acdmd"), other.state("acdmd"))
    assert not same(one.state("acdmd"), one.state("fake"))
    assert all(value.abs().max() == 0 for key, value in one.state("fake").items() if "lora_B" in key)


def test_state_is_a_copy_and_loads_back(backbone: Backbone) -> None:
    bank = roles_on(backbone)
    disturb(bank, "acdmd")
    state = bank.state("acdmd")
    assert list(state) == sorted(state)
    assert next(iter(state)) == "transformer_blocks.0.attn.add_k_proj.lora_A.weight"
    kept = {key: value.clone() for key, value in state.items()}
    disturb(bank, "acdmd")
    assert same(state, kept) and not same(bank.state("acdmd"), kept)
    bank.load("acdmd", kept, "a test")
    assert same(bank.state("acdmd"), kept)


@pytest.mark.parametrize("mode", MODES)
def test_loading_what_does_not_fit_names_the_file_and_the_tensor(backbone: Backbone, mode: str) -> None:
    bank = roles_on(backbone, mode=mode)
    own = bank.state("acdmd")
    first = next(iter(own))
    less, more = {k: v for k, v in own.items() if k != first}, own | {"zzz": torch.zeros(1)}
    wrong = own | {first: torch.zeros(*own[first].shape, 2)}
    source = "results/train_acdmd/generator.safetensors"
    for tensors, name in ((less, first), (more, "zzz"), (wrong, first)):
        with pytest.raises(
            UserError, match=rf"{source} does not fit the adapter section .*1 tensors differ, first {name}"
        ):
            bank.load("acdmd", tensors, source)
    assert same(bank.state("acdmd"), own)
    broken = own | {first: own[first].clone()}
    broken[first].flatten()[-1:] = float("inf")
    with pytest.raises(UserError, match=rf"^{source}: {first} has values that are not finite; run the stage that"):
        bank.load("acdmd", broken, source)
    assert same(bank.state("acdmd"), own)


def test_an_adapter_of_another_rank_or_mode_does_not_fit(backbone: Backbone) -> None:
    bank, full = roles_on(backbone), roles_on(backbone, mode="full")
    other = AdapterBank(copy.deepcopy(backbone), adapter(rank=2), {"generator": ("acdmd",)}, 0)
    with pytest.raises(UserError, match="30 tensors differ"):
        bank.load("acdmd", other.state("acdmd"), "a test")
    with pytest.raises(UserError, match="run the stage that makes it again"):
        bank.load("acdmd", full.state("acdmd"), "a test")


def test_on_a_bfloat16_base_adapters_and_velocities_are_float32(tiny_teacher: Path) -> None:
    bank = AdapterBank(
        tiny_backbone(tiny_teacher, dtype="bfloat16"), adapter(), {"teacher": (), "generator": ("acdmd",)}, 0
    )
    assert all(value.dtype == torch.float32 for value in bank.state("acdmd").values())
    x, sigma, cond = batch(2)
    before = bank.velocity("teacher", x, sigma, cond)
    assert before.dtype == torch.float32
    train_one(bank, "generator", "acdmd")
    assert torch.equal(bank.velocity("teacher", x, sigma, cond), before)
    assert not torch.equal(bank.velocity("generator", x, sigma, cond), before)


def test_stage_two_on_a_bfloat16_base_merges_nothing_into_it(tiny_teacher: Path) -> None:
    bank = roles_on(tiny_backbone(tiny_teacher, dtype="bfloat16"), "train_rtdmd")
    disturb(bank, "acdmd")
    base = {k: v.clone() for k, v in bank.backbone.transformer.state_dict().items() if ".lora_" not in k}
    below = bank.state("acdmd")
    assert {value.dtype for value in base.values()} == {torch.bfloat16}
    train_one(bank, "generator", "rtdmd")
    assert all(torch.equal(bank.backbone.transformer.state_dict()[k], v) for k, v in base.items())
    assert same(bank.state("acdmd"), below)


def test_full_mode_on_a_bfloat16_base_loses_no_small_update(tiny_teacher: Path) -> None:
    """A step of 1e-6 is below bfloat16's spacing at most weights (2^-8 of their size), but not below float32's."""
    backbone = tiny_backbone(tiny_teacher, dtype="bfloat16")
    bank = roles_on(backbone, mode="full")
    x, sigma, cond = batch(3)
    teacher, generator = (bank.velocity(role, x, sigma, cond).detach() for role in ("teacher", "generator"))
    assert generator.dtype == torch.float32
    assert (teacher - generator).norm() < 2**-6 * teacher.norm()  # passes in half precision, a few roundings apart
    before = bank.state("acdmd")
    learner = Learner.adamw(bank.trainable("acdmd"), adamw(1e-6))
    loss = bank.velocity("generator", x, sigma, cond).square().mean()
    learner.step(torch.autograd.grad(loss, learner.parameters))
    after = bank.state("acdmd")
    key = "transformer_blocks.0.attn.to_q.weight"
    assert after[key].dtype == torch.float32
    assert (after[key] != before[key]).float().mean() > 0.9
    assert ((after[key].bfloat16() != before[key].bfloat16()).float().mean()) < 0.5
    assert {p.dtype for p in backbone.transformer.parameters()} == {torch.bfloat16}


def test_full_mode_says_what_it_costs(backbone: Backbone) -> None:
    count = sum(p.numel() for p in backbone.transformer.parameters())
    text = roles_on(backbone, "train_rtdmd", "full").cost()
    assert text.startswith("adapter.mode: full keeps 3 float32 copies of the transformer beside the teacher's (")
    assert f"({count / 1e9:.3g} billion parameters each): {3 * 4 * count / 2**30:.3g} GiB of weights" in text


def test_the_average_is_exponential_and_swapping_twice_changes_nothing() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    ema = EMA([weight], 0.9)
    with torch.no_grad():
        weight.copy_(torch.tensor([2.0, 0.0]))
    ema.update()
    assert ema.tensors[0].tolist() == pytest.approx([1.1, 1.8])
    ema.swap()
    assert weight.tolist() == pytest.approx([1.1, 1.8]) and ema.tensors[0].tolist() == [2.0, 0.0]
    ema.swap()
    assert weight.tolist() == [2.0, 0.0] and ema.tensors[0].tolist() == pytest.approx([1.1, 1.8])
    for _ in range(3):
        ema.update()
    assert ema.tensors[0].tolist() == pytest.approx([2 - 0.9**4, 2 * 0.9**4])


@pytest.fixture
def workspace(tiny_teacher: Path, tiny_clip: Path, tmp_path: Path) -> tuple[Path, Params]:
    changes = {"adapter": {"targets": "attention"}}  # what `roles_on` puts its adapters on
    return tmp_path, make_workspace(tmp_path, tiny_teacher, tiny_clip, changes)


def test_load_student_puts_stage_two_on_stage_one(workspace: tuple[Path, Params], backbone: Backbone) -> None:
    root, params = workspace
    x, sigma, cond = batch(3)
    files = [load_tensors(root / f"results/{s}/generator.safetensors")[0] for s in ("train_acdmd", "train_rtdmd")]
    bank = roles_on(backbone, "train_rtdmd")
    for name, tensors in zip(("acdmd", "rtdmd"), files, strict=True):
        bank.load(name, tensors, "a test")
    for stage, role in (("train_acdmd", "reference"), ("train_rtdmd", "generator")):
        student = load_student(params, copy.deepcopy(backbone), stage, root)
        assert torch.equal(student(x, sigma, cond), bank.velocity(role, x, sigma, cond))
        assert not student(x, sigma, cond).requires_grad


def test_load_student_names_what_is_missing_or_does_not_fit(workspace: tuple[Path, Params], backbone: Backbone) -> None:
    root, params = workspace
    other = set_params(root, {"adapter": {"rank": 3}})
    with pytest.raises(
        UserError, match=r"generator\.safetensors was trained with adapter\.rank: 4, params\.yaml says 3"
    ):
        load_student(other, copy.deepcopy(backbone), "train_acdmd", root)
    (root / "results/train_rtdmd/generator.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"results/train_rtdmd/generator\.safetensors: no such file; `rtdmd train_rtdmd`"
    ):
        load_student(params, copy.deepcopy(backbone), "train_rtdmd", root)


def test_load_student_in_full_mode_is_the_last_copy(
    workspace: tuple[Path, Params], backbone: Backbone, tmp_path: Path
) -> None:
    root, _ = workspace
    params = set_params(root, {"adapter": {"mode": "full"}, "publish": {"format": "merged"}})
    bank = roles_on(backbone, "train_rtdmd", "full")
    disturb(bank, "acdmd", "rtdmd")
    for name in ("acdmd", "rtdmd"):
        save_tensors(bank.state(name), root / f"results/train_{name}/generator.safetensors")
    x, sigma, cond = batch(2)
    for stage, role in (("train_acdmd", "reference"), ("train_rtdmd", "generator")):
        student = load_student(params, copy.deepcopy(backbone), stage, root)
        assert torch.equal(student(x, sigma, cond), bank.velocity(role, x, sigma, cond))
