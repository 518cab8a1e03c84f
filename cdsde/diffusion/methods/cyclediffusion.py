r"""CycleDiffusion (Wu and De la Torre 2022, arXiv 2210.05559): one noise for both networks.

The source's network tells the noise that would have made the source: from x_T = √ᾱ x0 + √(1-ᾱ) n
downwards, the next state x' is drawn from the posterior given x0, and

    z_i = (x' - μ(x_i, ε(x_i, i)))/σ_i,   the noise with which the solver's step leads to x'     (1)

with the step's mean μ and deviation σ. The target's network then replays x_T and all z_i.

The published code then perturbs the result to a low level and denoises it by the lowest `refine`
levels of DDIM with η = 1 (`refine_rounds` times): that is SDEdit of the result.
"""

from __future__ import annotations

from cdsde.diffusion.methods.method import Method, Setting, refine_setting, start_setting


def invert(settings):
    """The noises of equation (1)."""
    import jax
    import jax.numpy as jnp

    from cdsde.diffusion import schedules

    def recover(x0, networks, rows, noise, solver):
        first = jnp.asarray(rows[1].alpha_bar)[0]
        x = schedules.perturb(x0, noise.start(0), first)

        def step(x, row):
            position, level, coefficients, extra = row

            def next_state(x, eps, z):
                return solver.step(x, eps, jnp.zeros(()), level, coefficients, z, ())[0]

            def recovered():
                eps = networks["source_score"](x, level.index.astype(jnp.float32))
                z = noise.step(0, position, level.index)
                following = solver.posterior(x, x0, level, coefficients, z)
                deviation = next_state(jnp.zeros(()), jnp.zeros(()), jnp.ones(()))
                return following, (following - next_state(x, eps, jnp.zeros(()))) / deviation

            # The last step draws no noise, and a refinement draws its own.
            none = level.last | (extra.again > 0)
            return jax.lax.cond(none, lambda: (x, jnp.zeros_like(x)), recovered)

        return x, jax.lax.scan(step, x, rows)[1]

    return recover


def check(settings, config) -> None:
    """Checks that each step draws noise, that nothing is clipped, and that there is one round.

    Raises:
      ValueError: one of them is not so.
    """
    s = config.sample
    draws = s.solver == "ancestral" or (s.solver == "ddim" and CYCLEDIFFUSION.eta(config) > 0)
    CYCLEDIFFUSION.require(draws, config, "recovers the noise of each step")
    if s.solver == "ancestral" and s.variance not in (None, "fixedsmall"):
        raise ValueError(
            f"config.sample.variance is '{s.variance}', and cyclediffusion draws the states from "
            "the posterior, whose variance is fixedsmall; set --config.sample.variance=fixedsmall"
        )
    if s.clip:
        raise ValueError(
            "config.sample.clip is True, and cyclediffusion recovers the noise of steps that "
            "do not clip; set --config.sample.clip=False"
        )
    CYCLEDIFFUSION.one_round(config)
    if settings.refine:
        CYCLEDIFFUSION.down_to_zero(config)


CYCLEDIFFUSION = Method(
    name="cyclediffusion",
    title="CycleDiffusion",
    networks=("score", "source_score"),
    settings={
        "start": start_setting(850),
        "refine": refine_setting(100),
        "refine_rounds": Setting(1, "Number of refinements.", minimum=0),
    },
    invert=invert,
    refine=lambda settings: (settings.refine, settings.refine_rounds if settings.refine else 0),
    sampling={"solver": "ddim", "eta": 0.1, "clip": False},
    check=check,
)
