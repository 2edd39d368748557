"""Policy gradients alone: plain GRPO on the few-step student, SubGRPO with M of 3 steps, each with and without the last
step's terms (the paper's ablation of stage two)."""

from typing import Any

from rtdmd.methods._card import Method

_EQUATION = "Σ_k A ∇log p_θ(x_{k+1} | x_k) over the trained steps, A the reward normalised in its prompt's group"
_SUB = _EQUATION + "; at the other steps a group shares its transition noise"
_OURS = "group size, rates, clip range in units of the true log-density, unit-norm scaling: the preset's"
_ALONE = {"weights": {"policy": 1.0, "matching": 0.0, "backprop": 0.0}, "fake_updates_per_epoch": 0}
_LAST = {"matching_path": "last_step"}
_STEPS: dict[str, Any] = {"candidate_steps": [0, 1, 2], "share_initial": False}


def _sub(trained: int, last: bool) -> Method:
    name = f"subgrpo-{trained}" + ("-last" if last else "")
    title = f"SubGRPO, M = {trained}"
    settings = _STEPS | {"trained_steps": trained, "share_noise": True} | (_LAST if last else _ALONE)
    return Method(
        name=name,
        stage="train_rtdmd",
        title=title + (" and last step" if last else ""),
        source="arXiv 2605.26108, ablation of stage two",
        equation=_SUB + ("; matching and reward back-propagation through the last step" if last else ""),
        settings=settings,
        ours=_OURS,
        departs=("no distribution matching" if not last else "weights of the three terms are the preset's",),
    )


METHODS = (
    Method(
        name="grpo",
        stage="train_rtdmd",
        title="plain GRPO on the few-step student",
        source="Flow-GRPO (arXiv 2505.05470); arXiv 2605.26108, ablation",
        equation=_EQUATION,
        settings=_STEPS | _ALONE | {"trained_steps": 3, "share_noise": False},
        ours=_OURS,
        departs=("CPS transitions in place of Flow-GRPO's SDE; no reference KL; four steps in training and sampling",),
    ),
    *(_sub(trained, last) for trained in (1, 2, 3) for last in (False, True)),
)
