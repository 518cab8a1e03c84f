"""The runs of the benchmark, as lists of `Run`; each part is a function here.

main         every method as configured, over the seeds
fronts       realism against faithfulness, as one setting of a method varies
work         less work a picture: fewer steps by several solvers, guidance at some of them
ablations    terms of the guided methods left out or changed
convergence  the guiding network trained for few and for many steps
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cdsde.config import GANS, base
from cdsde.diffusion import methods as diffusion_methods

METHODS = (*reversed(diffusion_methods.METHODS), *GANS)  # tables begin with the plain ones
# The network that guides a method, in addition to the score network.
GUIDES = {
    name: method.needed(base()[name])[1]
    for name, method in diffusion_methods.METHODS.items()
    if "domain_weight" in method.settings
}
# The papers' symbol of the weight of the energy that contrasts domains.
DOMAIN_NAMES = {
    name: diffusion_methods.METHODS[name].settings["domain_weight"].slider.split(",")[0]
    for name in GUIDES
}
# The shipped tasks, in the order of the tables.
TASKS = ("gothic2mincho", "mincho2gothic", "gothic2brush")
TASKS += ("twemoji2fluent", "noto2fluent", "fluent2twemoji")
# Start levels of the fronts, as shares of T; the higher ones where shape must change.
STARTS = (0.1, 0.175, 0.25, 0.325, 0.4)
HIGH_STARTS = (0.3, 0.4, 0.5, 0.6, 0.7)
CONTENT_WEIGHTS = (0.0, 2.0, 5.0, 20.0)
WEIGHTS = (0.0, 500.0, 2000.0)  # λ of the contrastive energy
SCORE_WEIGHTS = (0.0, 0.25, 0.5, 1.0)  # λ_c of the contrast of score networks
DOMAIN_WEIGHTS = (0.0, 0.5, 2.0)  # factors of the configured λ_d or λ_s
SOLVERS = {
    "ancestral": {"sample.solver": "ancestral"},
    "DDIM": {"sample.solver": "ddim", "sample.eta": 0.0},
    "DPM-Solver++(2M) ODE": {"sample.solver": "dpmpp_2m", "sample.eta": 0.0},
    "DPM-Solver++(2M) SDE": {"sample.solver": "dpmpp_2m", "sample.eta": 1.0},
}
PACE = "seconds_per_image"  # in a result of the part work: of its compiled program
MATCHED = 1000  # training images of each domain for colour matching
FROM_MATCHED = {"sample.match_colours": MATCHED}
COLOURED = ("sdedit", "contrastive_sde")  # which also start from matched colours
GUIDED_BY = ("DPM-Solver++(2M) SDE",)  # the solvers of guided methods
EVALUATIONS = (6, 12, 25)
EVERY = (2, 3, 4, 6)  # guidance at every n-th step
PARTS_OF_START = (0.25, 0.5, 0.75)  # levels from which or below which is guided, as shares of M
# Training steps of the guiding network; after one step it is practically untrained.
TRAINED = (1, 25, 50, 100, 200, 400)


class Run(NamedTuple):
    """One translation of a split.

    Attributes:
      part: the part of the benchmark it belongs to.
      task: name of a config.
      method: config.method, or the name of a floor.
      series: the series it is a point of.
      x: its position on the series' axis, or None.
      changes: overrides of the task's config.
      seed: sampling seed.
    """

    part: str
    task: str
    method: str
    series: str
    x: float | None
    changes: Mapping[str, Any]
    seed: int = 0


def main(task: str, methods: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """Every method as configured, over the seeds; a GAN is deterministic and runs once."""
    return [
        Run("main", task, m, m, None, {}, seed)
        for m in methods
        for seed in (seeds[:1] if m in GANS else seeds)
    ]


def fronts(task: str, methods: Sequence[str], config) -> list[Run]:
    """One varied setting per series.

    M; λ_i of the low-pass energy; λ of the contrastive energy; λ_d or λ_s of the energy that
    contrasts domains; λ_c of the contrast of score networks; N of ILVR; T0 of SDDM. An energy that
    the task does not use is not varied. Then, where there are colours, M again from the source in
    the target's colours.
    """
    size, total = config.data.image_size, config.sde.num_steps
    runs = []

    def add(method, series, x, changes):
        runs.append(Run("fronts", task, method, series, x, changes))

    def around(level):
        return HIGH_STARTS if level > STARTS[-1] * total else STARTS

    def add_levels(method, series, changes):
        for share in around(config[method].start):
            start = round(share * total)
            steps = min(start, config.sample.steps or start)
            levels = {"sample.start": start, "sample.steps": steps}
            add(method, series, start, {**changes, **levels})

    for method in (m for m in methods if m not in GANS):
        if method == "ilvr":
            for factor in (2, 4, 8, 16):
                # In proportion to the side: 16 to 128 at 256².
                n = factor * max(1, size // 32)
                add(method, "N", n, {"ilvr.factor": n})
            continue
        if method == "sddm":  # starts from noise
            for share in around(config.sddm.until):
                add(method, "T0", round(share * total), {"sddm.until": round(share * total)})
            continue
        add_levels(method, "M", {})
        if method in GUIDES:
            for weight in CONTENT_WEIGHTS if config[method].content_weight else ():
                add(method, "λ_i", weight, {f"{method}.content_weight": weight})
            name, configured = DOMAIN_NAMES[method], config[method].domain_weight
            for weight in (configured * factor for factor in DOMAIN_WEIGHTS if configured):
                add(method, name, weight, {f"{method}.domain_weight": weight})
        if method == "contrastive_sde":
            for weight in WEIGHTS:
                add(method, "λ", weight, {f"{method}.weight": weight})
            for weight in SCORE_WEIGHTS if config[method].score_weight else ():
                add(method, "λ_c", weight, {f"{method}.score_weight": weight})
    for method in (m for m in methods if m in COLOURED and not config.eval.shapes):
        add_levels(method, "M, colours matched", FROM_MATCHED)
    return runs


def work(task: str, methods: Sequence[str], config) -> list[Run]:
    """Less work a picture, whose time is measured, too.

    The ancestral sampler at every level below M; each solver with few levels; guidance at every
    n-th step, or at a part of the levels.
    """
    runs: list[Run] = []

    def add(method, series, x, changes):
        runs.append(Run("work", task, method, series, x, changes))

    for method in (m for m in methods if m in ("sdedit", "ddib", *GUIDES)):
        start = config.sample.start or config[method].start
        configured = config.sample.steps or start
        add(method, "as configured", configured, {})
        if method == "ddib":
            for steps in (n for n in EVALUATIONS if n < configured):
                add(method, "fewer steps", steps, {"sample.steps": steps})
        if method in ("sdedit", "contrastive_sde"):
            _add_solvers(add, method, start, config.sample.clip)
        if method in GUIDES:
            for n in EVERY:
                add(method, "guided at every n-th step", n, {"sample.guide_every": n})
            for level in (round(share * start) for share in PARTS_OF_START):
                above = {"sample.guide_levels": (level, config.sde.num_steps)}
                add(method, "guided from a level on", level, above)
                add(method, "guided below a level", level, {"sample.guide_levels": (0, level)})
    return runs


def _add_solvers(add, method: str, start: int, clip: bool | None) -> None:
    """Every level below M (of SDEdit), and few levels by each solver that goes with the method."""
    plain = {"sample.clip": clip}
    if method == "sdedit":
        add(method, "every level", start, {**plain, **SOLVERS["ancestral"], "sample.steps": start})
    for name, solver in SOLVERS.items():
        if method != "sdedit" and name not in GUIDED_BY:
            continue
        spacing = "index" if name == "ancestral" else "log_snr"
        for steps in (n for n in EVALUATIONS if n < start):
            changes = {**plain, **solver, "sample.spacing": spacing, "sample.steps": steps}
            add(method, name, steps, changes)


def ablations(task: str, methods: Sequence[str], config) -> list[Run]:
    """Energies alone and left out, variants of the contrastive energy, and K rounds."""
    runs: list[Run] = []
    if "sdedit" in methods:
        _add(runs, task, "sdedit", "as configured")
        _add_matched(runs, task, "sdedit", config)  # the effect of the target's colours alone
    if "contrastive_sde" in methods:
        _ablate_contrastive_sde(runs, task, config)
    if "egsde" in methods:
        _add(runs, task, "egsde", "as configured")
        _add_matched(runs, task, "egsde", config)
        if config.egsde.content_weight:
            _add(runs, task, "egsde", "domain energy alone", {"egsde.content_weight": 0.0})
            _add(runs, task, "egsde", "low-pass energy alone", {"egsde.domain_weight": 0.0})
    for method in (m for m in methods if m in GUIDES and config[m].content_weight):
        for n in (2 * config[method].factor, 4 * config[method].factor):
            if config.data.image_size // n > 1:
                changes = {f"{method}.factor": n}
                _add(runs, task, method, f"low-pass energy of N = {n}", changes)
    return runs


def _add(runs: list[Run], task: str, method: str, series: str, changes: Mapping = {}) -> None:  # noqa: B006
    runs.append(Run("ablations", task, method, series, None, dict(changes)))


def _add_matched(runs: list[Run], task: str, method: str, config) -> None:
    """The method from the source in the target's colours, where there are colours."""
    if not config.eval.shapes:
        _add(runs, task, method, "from matched colours", FROM_MATCHED)


def _ablate_contrastive_sde(runs: list[Run], task: str, config) -> None:
    name, settings = "contrastive_sde", config.contrastive_sde
    parts = {
        "contrastive energy": "weight",
        "low-pass energy": "content_weight",
        "contrast of domains": "domain_weight",
        "contrast of score networks": "score_weight",
    }
    used = {part: key for part, key in parts.items() if settings[key]}
    none = {f"{name}.{key}": 0.0 for key in parts.values()}
    _add(runs, task, name, "as configured")
    for part, key in used.items():
        _add(runs, task, name, f"{part} alone", {**none, f"{name}.{key}": settings[key]})
    for part, key in used.items():
        _add(runs, task, name, f"without the {part}", {f"{name}.{key}": 0.0})
    for space in ("embedding", "hidden", "features"):
        if space != settings.space:
            _add(runs, task, name, f"in space '{space}'", {f"{name}.space": space})
    if settings.similarity != "nce":
        # The weight is smaller by τ, since the gradient of PatchNCE is larger by 1/τ.
        nce = {"similarity": "nce", "temperature": 0.2, "weight": 0.2 * settings.weight}
        if config.encoder.pool != "none":
            nce["space"] = "features"
        _add(runs, task, name, "PatchNCE", {f"{name}.{key}": value for key, value in nce.items()})
    _add(runs, task, name, "K = 2 rounds", {"sample.rounds": 2})
    _add_matched(runs, task, name, config)


def convergence(task: str, methods: Sequence[str], config, file_of) -> list[Run]:
    """Guidance by networks trained for few steps; `file_of(stage, steps)` is their weights file."""
    return [
        Run(
            "convergence",
            task,
            m,
            m,
            steps,
            {f"weights.{GUIDES[m]}": str(file_of(GUIDES[m], steps))},
        )
        for m in methods
        if m in GUIDES
        for steps in TRAINED
    ]
