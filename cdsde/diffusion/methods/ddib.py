r"""DDIB (Su et al. 2023, arXiv 2203.08382): up with the source's network, down with the target's.

Both ways follow the probability-flow ODE by the run's solver, as published DDIM with η = 0. With
the levels 0 … S-1 of the run, ᾱ_S = 0, and the network's ε at (x, i), the way up is

    x ← √ᾱ_{i+1} x̂ + √(1-ᾱ_{i+1}) ε,   x̂ = (x - √(1-ᾱ_i) ε)/√ᾱ_i,   i = 0 … S-1              (1)

With a solver of order 2 (`dpmpp_2m`) it is of order 2, too: with λ = ½ log ᾱ/(1-ᾱ),
h = λ_{i+1} - λ_i, and ε₋, h₋ of the step before, the steps but the first and the last have for ε

    ε + h/(2 h₋) (ε - ε₋)     (the multistep DPM-Solver of Lu et al. 2022, in ε)                (2)

The last step, to ᾱ_S = 0, returns ε itself, and the way down starts from it as if it were the state
at level S-1. So the published code does, and its cycle source → latent → source is therefore not
exact. `exact` leaves the last step out; the cycle is then as exact as the steps are small. So it is
always from a level that is not noise (ᾱ_{S-1} ≥ `NOISE`), where ε alone would lose the source.

With `refine` = M the result is then perturbed to level M-1 and denoised by the target's SDE, as
CycleDiffusion does: what no drawing of the target has, such as grey paper, is drawn anew. The paper
has no such part.
"""

from __future__ import annotations

from cdsde.diffusion.methods.method import Method, Setting, refine_setting, start_setting

NOISE = 1e-3


def invert(settings):
    """The way up, equations (1) and (2)."""
    import jax
    import jax.numpy as jnp

    from cdsde.diffusion import schedules

    def up(x0, networks, rows, noise, solver):
        _, grid, _, extra = rows
        alpha_bar = jnp.asarray(grid.alpha_bar)
        half_log_snr = jnp.log(alpha_bar) / 2 - jnp.log(jnp.asarray(grid.exact_noise))
        noisiest = jnp.arange(len(alpha_bar)) == 0
        h = jnp.where(noisiest, 0.0, jnp.roll(half_log_snr, 1) - half_log_snr)
        above = jnp.where(noisiest, 0.0, jnp.roll(alpha_bar, 1))

        def moved(carry, i, now, following, h):
            x, (eps_before, h_before) = carry
            eps = networks["source_score"](x, i.astype(jnp.float32))
            more = h / (2 * h_before) * (eps - eps_before) if solver.order > 1 else 0.0
            x = schedules.perturb(schedules.eps_to_x0(x, eps + more, now), eps + more, following)
            return x, (eps, h)

        stays = noisiest & (settings.exact | (alpha_bar >= NOISE))  # no step to pure noise
        left_out = stays | (jnp.asarray(extra.again) > 0)  # nor those of the refinement

        def step(carry, level):
            skipped, *numbers = level
            return jax.lax.cond(skipped, lambda: carry, lambda: moved(carry, *numbers)), None

        levels = (left_out, jnp.asarray(grid.index), alpha_bar, above, h)
        start = x0, (jnp.zeros_like(x0), jnp.full((), jnp.inf))  # so that the first step adds 0
        return jax.lax.scan(step, start, levels, reverse=True)[0][0], None

    return up


def sampling(config):
    """As published, or the ODE by the config's own solver of order 2."""
    return {"eta": 0.0} if config.sample.solver == "dpmpp_2m" else {"solver": "ddim", "eta": 0.0}


def check(settings, config) -> None:
    """Checks that the way down is an ODE, in one round, and exact where it is to be.

    Raises:
      ValueError: the solver draws noise, there are several rounds, or an exact way is clipped.
    """
    s = config.sample
    DDIB.require(s.solver != "ancestral" and not DDIB.eta(config), config, "follows an ODE")
    DDIB.one_round(config)
    DDIB.down_to_zero(config)
    if settings.exact and s.clip:
        raise ValueError(
            "config.ddib.exact is True and config.sample.clip, too; a clipped way down does not "
            "lead back to where the way up began; set --config.sample.clip=False"
        )


DDIB = Method(
    name="ddib",
    title="DDIB",
    networks=("score", "source_score"),
    settings={
        "start": start_setting(1000),
        "exact": Setting(
            False,
            "Leave out the published way's last step, from the noisiest level to pure noise, which "
            "costs the cycle its exactness.",
        ),
        "refine": refine_setting(0),
    },
    invert=invert,
    refine=lambda settings: (settings.refine, int(settings.refine > 0)),
    sampling=sampling,
    check=check,
)
