"""The mathematics of RTDMD as pure tensor functions: one equation, one short function.

Nothing here knows a model, a configuration or a file. The training stages call these functions and `rtdmd verify`
checks the very same ones against closed forms (`rtdmd/oracle/`).

Paper: "Reinforcing Few-step Generators via Reward-Tilted Distribution Matching" (arXiv 2605.26108), *paper* below;
CPS: "Coefficients-Preserving Sampling" (arXiv 2509.05952). "T1".."T8" are the statements that `rtdmd verify`
measures.

    file            what it has                                                      used by
    path.py         the linear flow path, x_0 and noise from velocity and back       everything
    schedule.py     the few-step levels and their shift: 1, 0.9, 0.75, 0.5           the sampler
    cps.py          one transition x_σ -> x_τ of the sampler, its log-density        the sampler, policy terms
    ambient.py      renoising x_s -> x_t, the target without x_0, the regulariser    the fake score
    matching.py     the direction that matches two distributions                     the generator, both stages
    policy.py       advantages, clipped ratio, SubGRPO, reference KL                 stage two
    nft.py          negative-aware fine-tuning, GDMD's weight of matching            stage two
    awm.py          advantage-weighted matching                                      stage two
    preference.py   group preferences, from which a reward is learned                stage two, surrogate reward
    credit.py       the reward of each stochastic step                               stage two
    anneal.py       DMDR's annealed guidance and times                               stage two

Symbols, with B samples in a batch, C channels, H x W latent pixels, D = C*H*W and K sampler steps. Latents may have
any trailing shape of at least one dimension.

    symbol            shape          meaning
    x                 (B, C, H, W)   a latent
    x_0               (B, C, H, W)   a clean latent, or its prediction
    x_s               (B, C, H, W)   a latent of the student at noise level s
    x_t               (B, C, H, W)   x_s renoised to t > s
    z, noise          (B, C, H, W)   standard normal noise
    v                 (B, C, H, W)   velocity, noise - x_0
    h                 (B, C, H, W)   the fake score's posterior mean of x_0
    mean              (B, C, H, W)   mean of a transition
    sigma, σ          (B,)           noise level in [0, 1], the one time variable; the model's timestep is 1000 σ
    tau, τ            (B,)           noise level that a transition leads to
    s, t              (B,)           noise levels before and after renoising
    r                 (B,)           noise level of the consistency term's backward step
    alpha, α          (B,)           weight of x_s in x_t = α x_s + β z
    beta, β           (B,)           weight of z in x_t = α x_s + β z
    eta, η            float or (B,)  stochasticity of CPS in [0, 1]: 0 is Euler, 1 renoises x_0
    losses            (B,)           one number per sample; the caller averages
    log-densities     (B,)           one number per sample

Precision: every function computes in float32 at least (bfloat16 inputs are promoted, float64 stays float64) and
returns that precision. A σ that was ever bfloat16 is already wrong: at s = 0.967 it moves alpha from 0.667 to 0.75.
"""
