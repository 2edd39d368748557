"""Stacked adapters as one: the composed product is the sum of the products."""

import torch

from rtdmd.publish.compose import A, Adapter, B, compose


def _adapter(rank: int, alpha: float, modules: dict[str, tuple[int, int]], seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (outer, inner) in modules.items():
        tensors[name + A] = torch.randn(rank, inner, generator=generator)
        tensors[name + B] = torch.randn(outer, rank, generator=generator)
    return Adapter(tensors, rank, alpha)


def test_the_composed_adapter_adds_exactly_the_sum():
    modules = {"blocks.0.to_q": (7, 5), "blocks.0.to_out.0": (5, 9)}
    parts = [_adapter(4, 8, modules, 0), _adapter(6, 3, modules, 1)]
    whole = compose(parts)
    assert (whole.rank, whole.alpha) == (10, 10.0)
    for name in modules:
        expected = sum(part.delta(name).double() for part in parts)
        assert whole.tensors[name + A].shape[0] == 10
        assert torch.allclose(whole.delta(name).double(), expected, atol=1e-5)
        x = torch.randn(3, modules[name][1], dtype=torch.float64)
        b, a = (whole.tensors[name + end].double() for end in (B, A))
        separate = [
            p.alpha / p.rank * (x @ p.tensors[name + A].double().T @ p.tensors[name + B].double().T) for p in parts
        ]
        assert torch.allclose(x @ a.T @ b.T, sum(separate), atol=1e-5)


def test_powers_of_two_compose_without_any_rounding():
    """With alpha / rank = 2, as published, the composed factors are the given ones and their doubles, bit for bit."""
    parts = [_adapter(4, 8, {"m": (6, 5)}, 0), _adapter(4, 8, {"m": (6, 5)}, 1)]
    whole = compose(parts)
    assert torch.equal(whole.tensors["m" + A], torch.cat([p.tensors["m" + A] for p in parts]))
    assert torch.equal(whole.tensors["m" + B], torch.cat([2 * p.tensors["m" + B] for p in parts], dim=1))


def test_a_module_that_one_adapter_lacks_is_that_of_the_other():
    parts = [_adapter(2, 2, {"m": (3, 4)}, 0), _adapter(3, 6, {"m": (3, 4), "n": (5, 2)}, 1)]
    whole = compose(parts)
    assert whole.tensors["n" + A].shape == (5, 2)
    assert torch.allclose(whole.delta("n"), parts[1].delta("n"))
