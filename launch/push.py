"""The mean colour of the domain contrast's gradient, for encoders of few and many training steps.

    python launch/push.py TASK...

For each encoder, -∇E of the energy on the val split's source images, perturbed to levels up to M,
as a mean over images, positions and levels: its direction in red, green and blue, and its cosine
with the gap between the domains' mean colours (train split). The encoders are the task's own and
those of the benchmark's part convergence (runs/benchmark/convergence), trained if missing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from cdsde import config as config_lib
from cdsde.benchmark import guides, plan, summary
from cdsde.benchmark.task import Task
from cdsde.data import inputs, to_float
from cdsde.diffusion import energies, schedules
from cdsde.networks import build
from cdsde.translation import domain_statistics
from cdsde.weights import resolve

LEVELS = 8
FOLDER = Path("runs/benchmark")


def push(config, x0: np.ndarray) -> np.ndarray:
    """-∇E of the contrast of domains, a mean over `x0` `[N, S, S, 3]` and levels: `[3]`."""
    params, _ = resolve.load(config, "none", "encoder")
    apply = build.encoder_model(config).apply
    energy = energies.domain_contrast(
        lambda x, i: apply(params, x, i, space="features"),
        domain_statistics.domain_direction(config, params)[0],
    )
    alpha_bar = jnp.asarray(build.schedule_of(config).alpha_bar)

    @jax.jit
    def mean(i):
        e = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), x0.shape)
        y = schedules.perturb(x0, e, alpha_bar[i])
        gradient = jax.grad(lambda y: jnp.sum(energy(y, None, i.astype(jnp.float32))))(y)
        return -jnp.mean(gradient, axis=(0, 1, 2))

    levels = np.linspace(0, config_lib.start_index(config) - 1, LEVELS + 1).astype(int)[1:]
    return np.mean([mean(jnp.int32(i)) for i in levels], axis=0)


def table(name: str) -> str:
    """The Markdown table of a task."""
    task = Task(name, FOLDER, {"sample.split": "val"})
    config, source = task.config, task.source
    images = [inputs.reading(config)(source[j]["image"]) for j in range(len(source))]
    x0 = to_float(np.stack(images))
    matched = config.copy_and_resolve_references()
    matched.sample.match_colours = plan.MATCHED
    target, sources, _ = inputs.training_examples(matched, "sample.match_colours")
    gap = target.mean((0, 1, 2)) - sources.mean((0, 1, 2))
    rows = [["gap of mean colour, grey levels", *(f"{v:.1f}" for v in gap), ""]]
    files = {
        f"{n} step{'s'[: n > 1]}": str(guides.trained(task, "encoder", n)) for n in plan.TRAINED
    }
    for label, file in {**files, "shipped": config.weights.encoder}.items():
        config_of_file = config.copy_and_resolve_references()
        config_of_file.weights.encoder = file
        direction = push(config_of_file, x0)
        direction /= np.linalg.norm(direction)
        cosine = direction @ gap / np.linalg.norm(gap)
        rows.append([label, *(f"{c:.2f}" for c in direction), f"{cosine:.2f}"])
    header = [f"`{name}`", "red", "green", "blue", "cosine with the gap"]
    return summary.markdown(header, rows)


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    for task in sys.argv[1:] or ["twemoji2fluent", "noto2fluent", "fluent2twemoji"]:
        try:
            print(table(task), end="\n\n", flush=True)
        except ValueError as error:
            sys.exit(f"error: {error}")
