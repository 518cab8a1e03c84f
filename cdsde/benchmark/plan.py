"""What the benchmark runs, as lists of `Run`; a new question is a function here.

main         every method as its config has it, over the seeds
fronts       one method, one knob: how far from the source for how much of the target
solvers      fewer network evaluations, by other solvers
ablations    parts of the guided methods left out or changed
convergence  the guiding network trained for few steps and for many
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cdsde.config import GANS

METHODS = ("sdedit", "ilvr", "egsde", "contrastive_sde", *GANS)
GUIDES = {"contrastive_sde": "encoder", "egsde": "classifier"}
DOMAIN_NAMES = {"contrastive_sde": "λ_d", "egsde": "λ_s"}
# Levels of the fronts as shares of T, and ILVR's factors as shares of the side: right for any task.
STARTS = (0.1, 0.175, 0.25, 0.325, 0.4)
CONTENT_WEIGHTS = (0.0, 2.0, 5.0, 20.0)
WEIGHTS = (0.0, 500.0, 2000.0)  # λ of the contrastive energy
DOMAIN_WEIGHTS = (0.0, 0.5, 2.0)  # times the configured λ_d or λ_s
SOLVERS = {
    "ancestral": {"sample.solver": "ancestral"},
    "DDIM": {"sample.solver": "ddim", "sample.eta": 0.0},
    "DPM-Solver++(2M) ODE": {"sample.solver": "dpmpp_2m", "sample.eta": 0.0},
    "DPM-Solver++(2M) SDE": {"sample.solver": "dpmpp_2m", "sample.eta": 1.0},
}
COARSE = 4  # pixels a side that are left of a picture where little but its colours is
MATCHED = 1000  # training images of each domain that say how colours are matched
COLOURED = {"sdedit": {}, "contrastive_sde": {"contrastive_sde.domain_weight": 0.0}}
GUIDED_BY = ("ancestral", "DPM-Solver++(2M) SDE")  # of them, with energies
EVALUATIONS = (6, 12, 25)
# Steps of the guiding network; after one it is as good as random: what training is worth.
TRAINED = (1, 25, 50, 100, 200, 400)


class Run(NamedTuple):
    """One translation of a split.

    Attributes:
      part: the question it belongs to.
      task: a file of configs/, without its ending.
      method: config.method, or the name of a floor.
      series: what it is a point of.
      x: where on the series' axis (a number), or None.
      changes: overrides of the task's config.
      seed: of sampling.
    """

    part: str
    task: str
    method: str
    series: str
    x: float | None
    changes: Mapping[str, Any]
    seed: int = 0


def main(task: str, methods: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """Every method as configured; a GAN draws nothing, so that one run of it is all there is."""
    return [
        Run("main", task, m, m, None, {}, seed)
        for m in methods
        for seed in (seeds[:1] if m in GANS else seeds)
    ]


def fronts(task: str, methods: Sequence[str], config) -> list[Run]:
    """One knob a series: M; λ_i of the low-pass, λ of the contrastive energy, λ_d or λ_s of what
    contrasts the domains; N for ILVR. And M once more from the source in the target's colours,
    Contrastive-SDE then without the contrast of domains: what that is worth beside colours.
    """
    size, total = config.data.image_size, config.sde.num_steps
    runs = []

    def add(method, series, x, changes):
        runs.append(Run("fronts", task, method, series, x, changes))

    def add_levels(method, series, changes):
        for share in STARTS:
            start = round(share * total)
            steps = min(start, config.sample.steps or start)
            levels = {"sample.start": start, "sample.steps": steps}
            add(method, series, start, {**changes, **levels})

    for method in (m for m in methods if m not in GANS):
        if method == "ilvr":
            for factor in (2, 4, 8, 16):
                # At 256² these are factors of 16 to 128.
                n = factor * max(1, size // 32)
                add(method, "N", n, {"ilvr.factor": n})
            continue
        add_levels(method, "M", {})
        if method in GUIDES:
            for weight in CONTENT_WEIGHTS:
                add(method, "λ_i", weight, {f"{method}.content_weight": weight})
            name, own = DOMAIN_NAMES[method], config[method].domain_weight
            for weight in (own * factor for factor in DOMAIN_WEIGHTS if own):
                add(method, name, weight, {f"{method}.domain_weight": weight})
        if method == "contrastive_sde":
            for weight in WEIGHTS:
                add(method, "λ", weight, {f"{method}.weight": weight})
    for method in (m for m in methods if m in COLOURED):
        changes = {"sample.match_colours": MATCHED, **COLOURED[method]}
        add_levels(method, "M, colours matched", changes)
    return runs


def solvers(task: str, methods: Sequence[str], config) -> list[Run]:
    """Every level below M, and few of them by each solver."""
    runs = []
    for method in (m for m in methods if m in ("sdedit", "contrastive_sde")):
        start = config[method].start
        plain = {"sample.clip": config.sample.clip}
        every = {**plain, **SOLVERS["ancestral"], "sample.steps": start}
        runs.append(Run("solvers", task, method, "every level", start, every))
        for name, solver in SOLVERS.items():
            if method != "sdedit" and name not in GUIDED_BY:
                continue
            spacing = "index" if name == "ancestral" else "log_snr"
            for steps in (n for n in EVALUATIONS if n < start):
                changes = {**plain, **solver, "sample.spacing": spacing, "sample.steps": steps}
                runs.append(Run("solvers", task, method, name, steps, changes))
    return runs


def ablations(task: str, methods: Sequence[str], config) -> list[Run]:
    """Each energy alone, what the contrastive one compares and how, and the rounds K."""
    runs = []

    def add(method, series, **changes):
        plain = {k.replace("__", "."): v for k, v in changes.items()}
        runs.append(Run("ablations", task, method, series, None, plain))

    # What the target's colours alone do: the same start, without and with what takes a look away.
    matched = {"sample__match_colours": MATCHED}
    if "sdedit" in methods:
        add("sdedit", "as configured")
        add("sdedit", "from matched colours", **matched)
    if "contrastive_sde" in methods:
        name, own = "contrastive_sde", config.contrastive_sde
        c = f"{name}__"
        content = {f"{c}content_weight": own.content_weight or config.egsde.content_weight}
        add(name, "as configured")
        parts = {
            "contrastive energy": {f"{c}weight": own.weight},
            "low-pass energy": content,
            "contrast of domains": {f"{c}domain_weight": own.domain_weight},
        }
        none = {key: 0.0 for part in parts.values() for key in part}
        for part, values in parts.items():
            if all(values.values()):
                add(name, f"{part} alone", **{**none, **values})
        for part, values in parts.items():
            if all(values.values()):
                add(name, f"without the {part}", **{key: 0.0 for key in values})
        for space in ("embedding", "hidden", "features"):
            if space != own.space:
                add(name, f"in space '{space}'", **{f"{c}space": space})
        # Its slope is larger by 1/τ.
        nce = {f"{c}similarity": "nce", f"{c}temperature": 0.2, f"{c}weight": 0.2 * own.weight}
        if config.encoder.pool != "none":
            nce[f"{c}space"] = "features"
        add(name, "PatchNCE", **nce)
        for reference in ("perturbed", "lowpass"):
            if reference != own.reference:
                add(name, f"reference '{reference}'", **{f"{c}reference": reference})
        band = 2 * own.factor
        add(name, f"in the band of N = {band}", **{f"{c}band": band})
        if own.domain_weight:
            for where, changes in bands(config, name).items():
                add(name, f"contrast of domains {where}", **changes)
        cutoff = round(0.1 * config.sde.num_steps)
        add(name, f"off below level {cutoff}", **{f"{c}cutoff": cutoff})
        add(name, "K = 2 rounds", sample__rounds=2)
        add(name, "from matched colours", **matched)
        if own.domain_weight:
            without = {f"{c}domain_weight": 0.0}
            add(name, "from matched colours, λ_d = 0", **matched, **without)
    if "egsde" in methods:
        add("egsde", "as configured")
        add("egsde", "from matched colours", **matched)
        add("egsde", "domain energy alone", egsde__content_weight=0.0)
        add("egsde", "low-pass energy alone", egsde__domain_weight=0.0)
        for where, changes in bands(config, "egsde").items():
            add("egsde", f"domain energy {where}", **changes)
    for method in (m for m in methods if m in GUIDES):
        for n in (2 * config[method].factor, 4 * config[method].factor):
            if config.data.image_size // n > 1:
                add(method, f"low-pass energy of N = {n}", **{f"{method}__factor": n})
    return runs


def bands(config, method: str) -> dict[str, dict]:
    """Where in frequency the energy acts that takes the source's look away: words, changes."""
    n = max(1, config.data.image_size // COARSE)
    return {
        f"of N = {n} and coarser": {f"{method}__domain_band": n},
        f"finer than N = {n}": {f"{method}__domain_band": -n},
    }


def convergence(task: str, methods: Sequence[str], config, file_of) -> list[Run]:
    """Guidance by networks of a few training steps; `file_of(stage, steps)` is their weights.

    The contrast of domains also at half its weight: a result that is worse with one network than
    with another may be too strong a push or a bad direction, and the two look different there.
    """
    runs = []
    for method in (m for m in methods if m in GUIDES):
        series = {method: {}}
        own = config[method].domain_weight
        if method == "contrastive_sde" and own:
            series["λ_d halved"] = {f"{method}.domain_weight": own / 2}
        for name, changes in series.items():
            for steps in TRAINED:
                network = {f"weights.{GUIDES[method]}": str(file_of(GUIDES[method], steps))}
                runs.append(Run("convergence", task, method, name, steps, {**changes, **network}))
    return runs
