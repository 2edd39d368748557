"""The mathematics of RTDMD as pure tensor functions: one equation, one short function.

Nothing here knows a model, a configuration or a file. The training stages call these functions and `rtdmd verify`
checks the very same ones against closed forms (`rtdmd/oracle/`).

Paper: "Reinforcing Few-step Generators via Reward-Tilted Distribution Matching" (arXiv 2605.26108), *paper* below;
CPS: "Coefficients-Preserving Sampling" (arXiv 2509.05952). "T1".."T8" are the statements that `rtdmd verify`
measures.

    path.py         the linear flow path and its conversions; precision   x_0, noise <-> velocity
    schedule.py     the few-step levels and their shift                      1, 0.9, 0.75, 0.5
    cps.py          one transition of the sampler, its log-density         x_σ -> x_τ
    ambient.py      renoising x_s -> x_t, the target that needs no x_0, the regulariser     fake score
    matching.py     the direction that matches two distributions            stage one and two, generator
    policy.py       advantages, clipped ratio, SubGRPO, reference KL             stage two, generator
    nft.py          negative-aware fine-tuning, and GDMD's weight of matching     stage two, generator
    awm.py          advantage-weighted matching                                  stage two, generator
    preference.py   group preferences, from which a reward is learned            stage two, surrogate reward
    credit.py       what each stochastic step is rewarded with                   stage two, generator
    anneal.py       DMDR's helps that fade                                       stage two, generator

Legend (B batch, C channels, H x W latent pixels, D = C*H*W, K sampler steps, N images, R rewards)

    x, x_0, x_s, x_t, noise, z, h, y, mean   (B, C, H, W)   latents; any trailing shape of at least one dimension
    works sigma, s, t, r, tau                      (B,)           noise level σ in [0, 1], THE time variable; model
    timestep is 1000 σ v                                        (B, C, H, W)   velocity, noise - x_0 alpha, beta
    (B,)           x_t = alpha x_s + beta z eta                                      float or (B,)  noise level of CPS
    in [0, 1]: 0 Euler, 1 renoises x_0 losses, log-densities                    (B,)           one number a sample;
    the caller averages

Precision: every function computes in float32 at least (bfloat16 inputs are promoted, float64 stays float64) and
returns that precision. A σ that was ever bfloat16 is already wrong: at s = 0.967 it moves alpha from 0.667 to 0.75.
"""
