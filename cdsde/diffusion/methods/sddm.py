r"""SDDM (Sun et al., ICML 2023, arXiv 2308.02154): keeps the state on the source's block moments.

At levels above T0 = `until`, with the solver's mean μ, r = 1/√(1-β), and the projection P and the
tangent part T of block_moments.py,

    d = T(μ - r y),   g_k = T(-∂E_k/∂y), scaled to the length 25 β/√(1-β) |d|                  (1)
    S(y, μ) = μ - d + Σ_k a_k v_k,   v = (d, g_1, ...), a the shortest vector's (least_norm.py) (2)
    y ← P(S(y, μ) + σ z) at the next level                                                    (3)

Lengths and a are per image and channel. Four moves y ← S(y, μ) precede the last step above T0;
below it, the SDE runs on alone. The energies are the block AdaIN of VGG's first layers
(block_moments.py), EGSDE's two, or all three; their reference is the source without noise.
"""

from __future__ import annotations

from cdsde.diffusion.methods import method
from cdsde.diffusion.methods.method import Method, Projection, Setting, Steering, Term

MOVES = 4
NETWORKS = {"features": ("vgg",), "egsde": ("classifier",), "all": ("vgg", "classifier")}


def terms(settings) -> tuple[Term, ...]:
    """The energies, with the factor of equation (1) above T0."""
    import jax.numpy as jnp

    from cdsde.diffusion import block_moments, energies

    weight = lambda index: settings.weight * (index > settings.until)  # noqa: E731
    scaled = lambda x0, e, alpha_bar: jnp.sqrt(alpha_bar) * x0  # noqa: E731

    domain = lambda networks: energies.domain(energies.of_classifier(networks["classifier"]))  # noqa: E731
    look = lambda networks: block_moments.energy(networks["vgg"], settings.blocks)  # noqa: E731
    content = lambda networks: energies.content(settings.factor)  # noqa: E731
    first = Term(look, weight, reference=method.itself)
    egsde = Term(domain, weight, reference=scaled), Term(content, weight, reference=scaled)
    return {"features": (first,), "egsde": egsde, "all": (first, *egsde)}[settings.energy]


def steer(settings) -> Steering:
    """The map S of equation (2), and the moves."""
    import jax.numpy as jnp
    import numpy as np

    from cdsde.diffusion import block_moments, least_norm

    def mean(y, mu, gradients, x0, level, weights):
        at = block_moments.at_level(block_moments.moments(x0, settings.blocks), level.alpha_bar)
        root = jnp.sqrt(1 - level.beta)
        d = block_moments.tangent(mu - y / root, y, at)

        def guide(gradient, factor):
            return block_moments.scaled_tangent(-gradient, y, at, d, factor * level.beta / root)

        vectors = [d, *map(guide, gradients, weights)]
        return mu - d + least_norm.shortest(vectors, settings.blocks if settings.detail else 1)

    def moves(index):
        return MOVES * ((index > settings.until) & (np.append(index[1:], -1) <= settings.until))

    return Steering(mean, moves)


def projection(settings) -> Projection:
    """The projection of equation (3)."""
    import jax.numpy as jnp

    from cdsde.diffusion import block_moments

    def apply(y, x0, z, level):
        source = block_moments.moments(x0, settings.blocks)
        to = block_moments.at_level(source, level.next_alpha_bar)
        return jnp.where(level.index > settings.until, block_moments.project(y, to), y)

    return Projection(apply)


def check(settings, config) -> None:
    """Raises a ValueError unless solver, rounds, levels and blocks fit."""
    SDDM.require(config.sample.solver != "dpmpp_2m", config, "steers the posterior's mean")
    SDDM.one_round(config)
    start, side = config.sample.start or settings.start, config.data.image_size
    if settings.weight and start <= settings.until:
        raise ValueError(
            f"sddm starts at level {start}, and below config.sddm.until ({settings.until}) nothing "
            "ties the result to the source; lower config.sddm.until"
        )
    if side % settings.blocks or side == settings.blocks:
        raise ValueError(
            f"config.sddm.blocks is {settings.blocks}; it must divide config.data.image_size "
            f"({side}) into blocks of more than one pixel"
        )


SETTINGS = {
    "start": method.start_setting(1000),
    "until": Setting(505, "T0, the index of the level below which nothing steers.", minimum=0),
    "blocks": Setting(16, "Number of blocks A along each side.", minimum=1),
    "energy": Setting(
        "features", "Energies: VGG's first `features`, EGSDE's, or all three.", tuple(NETWORKS)
    ),
    "weight": Setting(
        25.0,
        "Length of each energy's gradient, as a multiple of β/√(1-β) times the length of the "
        "step's own move.",
        minimum=0,
        changeable=True,
        slider="λ, energies",
    ),
    "detail": Setting(False, "Combine the gradients in each block by itself."),
    "factor": Setting(32, "Factor N of the content energy's low-pass.", minimum=1),
}
SDDM = Method(
    "sddm", "SDDM", SETTINGS, lambda settings: ("score", *NETWORKS[settings.energy]),
    start=lambda settings: method.from_noise, terms=terms, steer=steer, projection=projection,
    check=check, sampling=lambda config: {"solver": "ancestral", "steps": 100, "clip": True}
    | ({"variance": "learned"} if config.score.learn_sigma else {}),
)  # fmt: skip
