"""The training loop: data → step → checkpoints and reports, the same for every stage."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.data import open_domain, train_iterator, write_png
from cdsde.networks import build
from cdsde.runtime import mesh, preemption, progress
from cdsde.train import stages, state
from cdsde.train.previews import SheetMaker
from cdsde.weights import checkpoint, resolve


class NonFiniteLoss(FloatingPointError):
    """The loss became NaN or infinite."""


def pending_stages(config: ConfigDict, workdir) -> tuple[str, ...]:
    """What `--mode=train` has to do: the stage asked for, or all that the method still lacks."""
    if config.train.stage:
        return (config.train.stage,)

    def lacks(stage):
        done = checkpoint.latest_step(workdir, stage)
        # Imported weights, step 0, are a finished network.
        return done is None or 0 < done < config_lib.stage_training(config, stage).steps

    return tuple(s for s in config_lib.needed_stages(config.method) if lacks(s))


def train(config: ConfigDict, workdir) -> None:
    """Train every pending stage of the config in `workdir`, resuming where a run was cut off.

    Raises:
      ValueError: data or config that cannot work, before any step.
      NonFiniteLoss: the loss diverged; the last good checkpoint is kept.
      preemption.Preempted: SIGTERM came; a checkpoint of the step reached is written.
    """
    pending = pending_stages(config, workdir)
    if not pending:
        logging.info("nothing to train: %s has all that %s needs", workdir, config.method)
    for name in pending:
        train_stage(config, workdir, name)


def open_data(config: ConfigDict, stage: stages.Stage, name: str):
    """The stage's training images: `start -> iterator` over batches from number `start` on."""
    d, c = config.data, config_lib.stage_training(config, name)
    sources = [open_domain(d.root, name, "train", data_dir=d.data_dir) for name in stage.domains]

    labels = stage.labels() if stage.labels else None

    def batches(start: int):
        return train_iterator(
            sources,
            image_size=d.image_size,
            batch_size=c.batch_size * stage.images,
            load_size=d.load_size,
            # Published: while the rate decays, images are read at their final size.
            crop_until=state.steps_before_decay(c),
            seed=config.train.seed,
            flip=d.flip,
            filter=d.filter,
            fit=d.fit,
            workers=d.workers,
            labels=labels,
            start=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    return batches


def train_stage(config: ConfigDict, workdir, name: str):
    """Train one stage to its last step; returns the final TrainState."""
    c = config_lib.stage_training(config, name)
    devices = mesh.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    if c.batch_size % (devices.size * c.accumulate):
        raise ValueError(
            f"config.train.{name}.batch_size is {c.batch_size}, not a multiple of {devices.size} "
            f"devices times accumulate={c.accumulate}; choose one that is"
        )
    stage = stages.make(config, name, workdir)
    batches = open_data(config, stage, name)
    step_fn, init = compiled(config, name, stage, devices)
    current = init()
    with checkpoint.manager(workdir, name, config.train.keep) as saved:
        # Step 0 is only ever written by --mode=import: parameters without a training state.
        if saved.latest_step():
            current = _restore(saved, current)
        elif c.fine_tune:
            params = resolve.load(config, workdir, name)[0]
            params = jax.device_put(params, mesh.network_sharded(params, devices))
            # A copy, for the step gives its argument's memory away, and no part of it twice.
            ema = jax.tree.map(jnp.copy, params)
            params = stage.with_averaged(current.params, params)
            current = current._replace(params=params, ema=ema)
        elif saved.latest_step() == 0:
            raise ValueError(
                f"{saved.directory} holds imported weights; train on from them with "
                f"--config.train.{name}.fine_tune=True, or from nothing in another --workdir"
            )
        first = int(current.step)
        logging.info(
            "%s: %.2f M parameters on %d %s device(s), %s, step %d of %d, batch %d%s",
            name,
            build.count_parameters(current.params) / 1e6,
            devices.size,
            jax.default_backend(),
            " + ".join(stage.domains),
            first,
            c.steps,
            c.batch_size,
            f", resumed from {saved.directory}" if first else "",
        )
        if first < c.steps:
            with preemption.Watch() as watch:
                data = batches(first)
                current = _run(config, name, workdir, saved, current, data, step_fn, devices, watch)
    return current


def compiled(config: ConfigDict, name: str, stage: stages.Stage, devices):
    """`(step, init)` of a stage under jit over the devices.

    `step(state, batch) -> (state, metrics)` gives the memory of its argument away; `init()` makes
    the first state. Both are compiled when first called, or ahead of time with `lower`.
    """
    c = config_lib.stage_training(config, name)
    tx = stage.optimiser(state.optimiser(c))

    def begin():
        return state.init_state(stage.init, tx, config.train.seed, stage.averaged)

    everywhere, by_rows = mesh.replicated(devices), mesh.batch_sharded(devices)
    at = mesh.network_sharded(jax.eval_shape(begin), devices)

    def gather(params):
        if config.mesh.fsdp == 1:
            return params
        return jax.lax.with_sharding_constraint(params, everywhere)

    if stage.make_step is None:
        step = state.make_step(stage.loss, tx, c, gather)
    else:
        step = stage.make_step(tx, gather)
    step = jax.jit(
        step,
        in_shardings=(at, by_rows),
        out_shardings=(at, everywhere),
        donate_argnums=0,
    )
    return step, jax.jit(begin, out_shardings=at)


def _run(config, name, workdir, saved, current, data, step_fn, devices, watch):
    """The loop proper, from `current.step` to the last step."""
    c = config_lib.stage_training(config, name)
    first = int(current.step)
    chief = jax.process_index() == 0
    writer = progress.Writer(Path(workdir) / "logs" / name, first) if chief else None
    rate = progress.Rate(first, c.steps)
    every = config.train.sample_every if name == "score" else 0
    sheets = SheetMaker(config) if every else None
    try:
        for n in range(first + 1, c.steps + 1):
            batch = next(data)
            batch = mesh.put_batch({k: v for k, v in batch.items() if k != "id"}, devices)
            current, metrics = step_fn(current, batch)
            if n == first + 1:
                jax.block_until_ready(metrics)
                rate.restart(n)
            last = n == c.steps
            stop = not last and watch.reached(n)
            keep = last or stop or n % config.train.checkpoint_every == 0
            if keep or n % config.train.log_every == 0:
                values = {k: float(v) for k, v in jax.device_get(metrics).items()}
                _check_finite(values, name, n, saved)
                if chief:
                    _tell(writer, rate, values, name, n, c)
            if keep:
                _save(saved, n, current, config)
            if stop:
                saved.wait_until_finished()
                raise preemption.Preempted(
                    f"{name} was stopped by SIGTERM after step {n} of {c.steps}; the checkpoint is "
                    f"in {saved.directory}/{n}, and the same command goes on from it"
                )
            if sheets and (last or n % every == 0):
                sheet = sheets(mesh.to_host(current.ema, devices))
                if chief:
                    writer.image(n, "samples", sheet)
                    write_png(Path(workdir) / "logs" / name / f"sheet_{n:07d}.png", sheet)
        saved.wait_until_finished()
    finally:
        if chief:
            writer.close()
    return current


def _tell(writer, rate, values, name, n, c) -> None:
    speed, left = rate(n)
    writer.scalars(n, {**values, "steps_per_second": speed})
    shown = "  ".join(f"{k} {v:.4f}" for k, v in values.items())
    logging.info(
        "%s %d/%d  %s  %.2f steps/s  %.1f images/s  left %s",
        name,
        n,
        c.steps,
        shown,
        speed,
        speed * c.batch_size,
        left,
    )


def _check_finite(values, name, n, saved) -> None:
    # NaN stays in parameters and moments, so that looking now and then misses none.
    if not np.isfinite(values["loss"]) or not np.isfinite(values["gradient_norm"]):
        kept = saved.latest_step()
        where = (
            f"the checkpoint of step {kept} is kept" if kept else "no checkpoint was written yet"
        )
        raise NonFiniteLoss(
            f"{name}: the loss is {values['loss']} and the gradient {values['gradient_norm']} at "
            f"step {n}; {where} in {saved.directory}. Lower config.train.{name}.learning_rate or "
            "raise its warmup, and start again"
        )


def _parts(current: state.TrainState):
    """EMA is an item of its own, so that sampling reads it alone."""
    rest = {"step": current.step, "key": current.key, "params": current.params}
    return {**rest, "opt_state": current.opt_state}, current.ema


def _save(saved, n, current, config) -> None:
    rest, ema = _parts(current)
    checkpoint.save(saved, n, rest, ema, json.loads(config.to_json_best_effort()))


def _restore(saved, current) -> state.TrainState:
    rest, ema = checkpoint.restore(saved, *_parts(current))
    return state.TrainState(ema=ema, **rest)
