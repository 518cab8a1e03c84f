r"""DDIB (Su et al. 2023, arXiv 2203.08382): up with the source's network, down with the target's.

Both ways follow the probability-flow ODE by DDIM with η = 0. With the levels 0 … S-1 of the run,
ᾱ_S = 0, and the network's ε at (x, i), the way up is

    x ← √ᾱ_{i+1} x̂ + √(1-ᾱ_{i+1}) ε,   x̂ = (x - √(1-ᾱ_i) ε)/√ᾱ_i,   i = 0 … S-1              (1)

Its last step, to ᾱ_S = 0, returns ε itself, and the way down starts from it as if it were the state
at level S-1. So the published code does, and its cycle source → latent → source is therefore not
exact. `exact` leaves the last step out; the cycle is then as exact as the steps are small. So it is
always from a level that is not noise (ᾱ_{S-1} ≥ `NOISE`), where ε alone would lose the source.
"""

from __future__ import annotations

from cdsde.diffusion.methods.method import Method, Setting, start_setting

NOISE = 1e-3


def invert(settings):
    """The way up, equation (1)."""
    import jax
    import jax.numpy as jnp

    from cdsde.diffusion import schedules

    def up(x0, networks, rows, noise, solver):
        _, grid, *_ = rows
        alpha_bar, index = jnp.asarray(grid.alpha_bar), jnp.asarray(grid.index)
        above = jnp.concatenate([jnp.zeros(1), alpha_bar[:-1]])  # of the next noisier level

        def step(x, level):
            i, now, following = level
            eps = networks["source_score"](x, i.astype(jnp.float32))
            clean = schedules.eps_to_x0(x, eps, now)
            return schedules.perturb(clean, eps, following), None

        levels = jax.tree.map(lambda column: column[::-1], (index, alpha_bar, above))
        x, _ = jax.lax.scan(step, x0, jax.tree.map(lambda column: column[:-1], levels))
        if settings.exact:
            return x, None
        last = jax.tree.map(lambda column: column[-1], levels)
        return jax.lax.cond(alpha_bar[0] < NOISE, lambda: step(x, last)[0], lambda: x), None

    return up


def check(settings, config) -> None:
    """Checks that the way down is an ODE.

    Raises:
      ValueError: the solver draws noise.
    """
    s = config.sample
    DDIB.require(s.solver != "ancestral" and not s.eta, config, "follows an ODE")


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
    },
    invert=invert,
    sampling={"solver": "ddim", "eta": 0.0},
    check=check,
)
