"""The sampler's stochasticity η, in training and evaluation alike (the paper's ablation)."""

from rtdmd.methods._card import Method

METHODS = tuple(
    Method(
        name=f"eta-{eta:g}",
        stage="train_acdmd",
        title=f"the preset's stage one at η = {eta:g}",
        source="arXiv 2605.26108, ablation of η; CPS: arXiv 2509.05952",
        equation="x_τ = (1-τ) x̂_0 + τ cos(ηπ/2) ε̂ + τ sin(ηπ/2) z; η = 0 Euler, η = 1 renoises x̂_0",
        settings={},
        ours="everything but η is the preset's",
        model={"eta": eta},
    )
    for eta in (0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
)
