"""What the journal says besides the losses, and the stop of a run that no reward teaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rtdmd.config import preset
from rtdmd.train.engine.diagnostics import (
    SILENT_EPOCHS,
    at_level,
    latent_values,
    require_signal,
    signal_values,
)
from rtdmd.train.engine.journal import Journal


def test_latents() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, -6.0]).reshape(1, 1, 2, 2)
    std = (((1.0) ** 2 + 2.0**2 + 3.0**2 + 6.0**2) / 3) ** 0.5  # the mean is 0
    assert latent_values(x) == pytest.approx({"latent/mean": 0.0, "latent/std": std, "latent/largest": 6.0})


def test_a_value_is_named_by_its_level() -> None:
    values = {"fake_grad_norm": 0.5, "gap": 1.0}
    names = ("fake_grad_norm", "generator_grad_norm")
    assert at_level(values, names, 0.75) == {"fake_grad_norm/sigma=0.75": 0.5}


def test_a_reward_tells_images_apart_within_groups_only() -> None:
    """Two prompts of three images: equal scores in the first group, two values in the other."""
    scores = {"r": torch.tensor([0.1, 0.1, 0.1, 0.7, 0.7, 0.4]), "s": torch.tensor([0.1, 0.1, 0.1, 0.9, 0.9, 0.9])}
    found = signal_values(scores, torch.tensor([4, 4, 4, 7, 7, 7]), torch.tensor([-1.0, 0.0, 4.0, 0.0, 0.0, 3.0]))
    assert found["reward/r/frac_informative_groups"] == 0.5 and found["reward/s/frac_informative_groups"] == 0.0
    assert found["reward/s/std"] == pytest.approx(0.4) and found["reward/s/max"] == pytest.approx(0.9)
    assert found["reward/r/min"] == pytest.approx(0.1)
    advantages = {name: found[name] for name in found if name.startswith("advantage/")}
    assert advantages == {"advantage/mean": 1.0, "advantage/min": -1.0, "advantage/max": 4.0}


def journal(tmp_path: Path, informative: list[float]) -> Journal:
    kept = Journal(tmp_path / "journal.jsonl", "epoch")
    for epoch, share in enumerate(informative, start=1):
        scores = {"reward_clipscore": 0.25, "reward_world_verifier": 1.0}
        kept.add(
            epoch,
            scores
            | {"reward/clipscore/frac_informative_groups": 0.0, "reward/world_verifier/frac_informative_groups": share},
        )
    return kept


def settings(**changes: Any) -> Any:
    both = [
        {"name": "clipscore", "model": "data/world/clip", "weight": 1.0},
        {"name": "world_verifier", "weight": 1.0, "soft_weight": 0.0},
    ]
    return preset("smoke", {"train_rtdmd": {"rewards": both} | changes}).train_rtdmd


def test_a_run_that_no_reward_teaches_stops_and_names_them(tmp_path: Path) -> None:
    silent = journal(tmp_path, [0.5] + [0.0] * SILENT_EPOCHS)
    with pytest.raises(FloatingPointError) as caught:
        require_signal(silent, settings())
    assert str(caught.value) == (
        "for 20 epochs no reward distinguished the images of a prompt (clipscore is 0.25 on average, world_verifier is"
        " 1 on average), so the policy gradient is zero; `rtdmd rewards check` tries the scorers, train_rtdmd.rewards"
        " names them, and weights.policy: 0 trains without them"
    )


def test_so_does_one_that_follows_rewards_by_another_term(tmp_path: Path) -> None:
    silent = journal(tmp_path, [0.0] * SILENT_EPOCHS)
    followers = {"policy": 0.0, "nft": 1.0, "surrogate": 1.0}
    with pytest.raises(FloatingPointError, match="so the gradient of weights") as caught:
        require_signal(silent, settings(weights=followers))
    assert "so the gradient of weights.nft is zero; " in str(caught.value)
    assert str(caught.value).endswith(" and weights.nft: 0 and weights.surrogate: 0 trains without them")


@pytest.mark.parametrize(
    ("informative", "changes"),
    [
        ([0.0] * (SILENT_EPOCHS - 1), {}),
        ([0.0] * 10 + [0.1] + [0.0] * (SILENT_EPOCHS - 1), {}),
        ([0.0] * SILENT_EPOCHS, {"weights": {"policy": 0.0}}),
    ],
    ids=["not yet", "one epoch taught", "no policy gradient"],
)
def test_it_goes_on_otherwise(tmp_path: Path, informative: list[float], changes: dict[str, Any]) -> None:
    require_signal(journal(tmp_path, informative), settings(**changes))
