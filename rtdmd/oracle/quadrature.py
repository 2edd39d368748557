"""Deterministic expectations: Gauss-Hermite nodes for Gaussians and mixtures, so that identities need no sampling."""

import torch
from torch import Tensor

from rtdmd.oracle.mixture import Mixture, hermite


def mixture_nodes(mixture: Mixture, order: int) -> tuple[Tensor, Tensor]:
    """Nodes (J order^d, d) and weights of x_0 under the distribution of prompt 0."""
    unit, weights = hermite(order, mixture.dims)
    unit = unit.to(mixture.means.device)
    weights = weights.to(mixture.means.device)
    roots = torch.linalg.cholesky(mixture.covariances[0])
    nodes = mixture.means[0][:, None] + torch.einsum("jde,qe->jqd", roots, unit)
    return nodes.reshape(-1, mixture.dims), (mixture.weights[0][:, None] * weights).reshape(-1)


def relative_entropy(q: Mixture, p: Mixture, order: int = 40) -> Tensor:
    """KL(q || p) of prompt 0's distributions, in nats, by quadrature over q."""
    nodes, weights = mixture_nodes(q, order)
    zero = torch.zeros_like(weights)
    prompt = torch.zeros(len(weights), dtype=torch.long, device=weights.device)
    return (weights * (q.log_density(nodes, zero, prompt) - p.log_density(nodes, zero, prompt))).sum()
