"""Figures that show collapse: distances among the images of one prompt, entropies, and sizes of what was drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def pairwise_diversity(features: np.ndarray, prompts: Sequence[int]) -> float | None:
    """Mean Euclidean distance of feature pairs (N, D) of the same prompt, averaged over prompts; None when no prompt
    has two images.

    0 when every prompt has collapsed to one image; the real images' own figure is the natural unit.
    """
    x = np.asarray(features, dtype=np.float64)
    prompt = np.asarray(prompts)
    distances = []
    for own in (x[prompt == p] for p in np.unique(prompt) if (prompt == p).sum() > 1):
        rows, cols = np.triu_indices(len(own), k=1)
        distances.append(float(np.linalg.norm(own[rows] - own[cols], axis=1).mean()))
    return float(np.mean(distances)) if distances else None


def entropy(labels: Iterable[object], categories: int) -> float | None:
    """Entropy of the labels' frequencies over the entropy of `categories` equal ones: 1 = all alike, 0 = one only;
    None without labels."""
    _, counts = np.unique(np.asarray([str(label) for label in labels]), return_counts=True)
    if counts.sum() == 0:
        return None
    share = counts / counts.sum()
    return float(max(0.0, -(share * np.log(share)).sum()) / np.log(categories))
