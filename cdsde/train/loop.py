"""The training loop of every stage: data → step → checkpoints and logs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from clu import parameter_overview
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.data import inputs, train_iterator, write_png
from cdsde.runtime import compiler, files, mesh, preemption, profile, progress, trees
from cdsde.train import previews, stages, state
from cdsde.weights import checkpoint, knowledge, resolve


class NonFiniteLoss(FloatingPointError):
    """The loss, the gradient or the training state became NaN or infinite."""


def pending_stages(config: ConfigDict, workdir) -> tuple[str, ...]:
    """The stages that `--mode=train` runs: `train.stage`, or all that the method still lacks."""
    if config.train.stage:
        return (config.train.stage,)

    def lacks(stage):
        done = checkpoint.latest_step(workdir, stage)
        # Imported weights, step 0, are a finished network.
        return done is None or 0 < done < config_lib.stage_training(config, stage).steps

    return tuple(filter(lacks, _wanted(config)))


def _wanted(config: ConfigDict) -> list[str]:
    """`train.stage`, or all stages that the method needs and that are trained here."""
    if config.train.stage:
        return [config.train.stage]
    return [s for s in config_lib.needed_stages(config) if s not in config_lib.FEATURES]


def train(config: ConfigDict, workdir) -> None:
    """Train every pending stage of the config in `workdir`; an interrupted run resumes.

    Raises:
      ValueError: unusable data or config, before the first step; or an image is broken, and a
        checkpoint of the current step is written.
      NonFiniteLoss: the loss diverged; the last good checkpoint is kept.
      preemption.Preempted: after SIGTERM or Ctrl-C; a checkpoint of the current step is
        written.
    """
    # A stage whose last checkpoint is broken is not finished.
    for stage in _wanted(config):
        checkpoint.set_aside_broken(workdir, stage)
    pending = pending_stages(config, workdir)
    if not pending:
        logging.info("nothing to train: %s has all that %s needs", workdir, config.method)
    for stage in pending:
        train_stage(config, workdir, stage)


def open_data(config: ConfigDict, stage: stages.Stage, name: str):
    """The stage's training data: `start -> iterator` over batches, from batch `start` on."""
    d, c = config.data, config_lib.stage_training(config, name)
    sources = [inputs.open_split(config, domain, "train") for domain in stage.domains]
    labels = stage.labels() if stage.labels else None

    def batches(start: int):
        return train_iterator(
            sources,
            inputs.reading(config),
            batch_size=c.batch_size * stage.images,
            load_size=d.load_size,
            # Published: while the rate decays, images are read at their final size.
            crop_until=state.steps_before_decay(c),
            seed=config.train.seed,
            flip=d.flip,
            shift=d.shift,
            workers=d.workers,
            labels=labels,
            start=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    return batches


class Run(NamedTuple):
    """A stage in training: what stays fixed during the loop.

    Attributes:
      config, workdir: the task and its work folder.
      name: the stage.
      training: `config.stage_training` of the stage.
      step: the compiled step.
      devices: the mesh.
      saved: the checkpoint manager.
    """

    config: ConfigDict
    name: str
    workdir: Path
    training: ConfigDict
    step: Callable
    devices: jax.sharding.Mesh
    saved: Any


def train_stage(config: ConfigDict, workdir, name: str) -> state.TrainState:
    """Train one stage to its last step; returns the final state.

    Raises:
      ValueError: unusable data or config, before the first step; or an image is broken, and a
        checkpoint of the current step is written.
      NonFiniteLoss: the loss diverged.
      preemption.Preempted: after SIGTERM or Ctrl-C; a checkpoint of the current step is
        written.
    """
    c = config_lib.stage_training(config, name)
    devices = mesh.make_mesh(fsdp=config.mesh.fsdp)
    if c.batch_size % (devices.size * c.accumulate):
        raise ValueError(
            f"the batch size of {name} is {c.batch_size}, not a multiple of {devices.size} "
            f"devices times config.train.accumulate={c.accumulate}; choose one that is"
        )
    stage = stages.make(config, name, workdir)
    batches = open_data(config, stage, name)
    step, init = compiled(config, name, stage, devices)
    folder, first_process = checkpoint.stage_folder(workdir, name), jax.process_index() == 0
    with contextlib.ExitStack() as until_the_end:
        if first_process:
            until_the_end.enter_context(files.alone(folder, f"trains {name}"))
        checkpoint.set_aside_broken(workdir, name)
        saved = until_the_end.enter_context(checkpoint.manager(workdir, name, config.train.keep))
        run = Run(config, name, Path(workdir), c, step, devices, saved)
        current = _first_state(run, stage, init())
        first = int(current.step)
        logging.info(
            "%s: %.2f M parameters on %d %s device(s), %s, step %d of %d, batch %d%s",
            name,
            parameter_overview.count_parameters(current.params) / 1e6,
            devices.size,
            jax.default_backend(),
            " + ".join(stage.domains),
            first,
            c.steps,
            c.batch_size,
            f", resumed from {saved.directory}" if first else "",
        )
        if first_process:
            table = parameter_overview.get_parameter_overview(current.params, include_stats=False)
            path = run.workdir / "logs" / name / "parameters.txt"
            files.write_bytes(path, f"{table}\n".encode())
        if first < c.steps:
            with preemption.Watch() as watch:
                current = _loop(run, current, batches(first), watch)
    return current


def _first_state(run: Run, stage: stages.Stage, initial: state.TrainState) -> state.TrainState:
    """The state that training begins with; the first that applies:

    1. the stage's newest checkpoint of a training run;
    2. with `train.fine_tune`, the parameters that sampling would use, with a new optimiser;
    3. the initial parameters; an error if the work folder has imported weights (step 0), which
       training would replace.
    """
    if step := run.saved.latest_step():
        where = f"{run.saved.directory}/{step}"
        record = checkpoint.config_of_step(run.saved.directory, step)
        knowledge.check_resumed(record, run.config, run.name, where)
        return _restore(run, step, initial)
    if run.training.fine_tune:
        params = resolve.load(run.config, run.workdir, run.name, to_train=True)[0]
        params = jax.device_put(params, mesh.network_sharded(params, run.devices))
        # A copy: the step donates its argument's buffers, and a buffer can be donated only once.
        ema = jax.tree.map(jnp.copy, params)
        return initial._replace(params=stage.with_averaged(initial.params, params), ema=ema)
    if run.saved.latest_step() == 0:
        raise ValueError(
            f"{run.saved.directory} holds imported weights; train on from them with "
            f"--config.train.stage={run.name} --config.train.fine_tune=True, or from nothing in "
            "another --workdir"
        )
    return initial


def compiled(config: ConfigDict, name: str, stage: stages.Stage, devices):
    """`(step, init)` of a stage under jit over the devices.

    `step(state, batch) -> (state, metrics)` donates the memory of `state`; `init()` returns the
    first state. Both are compiled when first called, or ahead of time with `lower`.
    """
    c = config_lib.stage_training(config, name)
    tx = stage.optimiser(state.optimiser(c))

    def begin():
        return state.init_state(stage.init, tx, config.train.seed, stage.averaged)

    replicated, by_rows = mesh.replicated(devices), mesh.batch_sharded(devices)
    shardings = mesh.network_sharded(jax.eval_shape(begin), devices)

    def gather(params):
        if config.mesh.fsdp == 1:
            return params
        return jax.lax.with_sharding_constraint(params, replicated)

    if stage.make_step is None:
        step = state.make_step(stage.loss, tx, c, gather)
    else:
        step = stage.make_step(tx, gather)
    step = compiler.jit(
        step,
        in_shardings=(shardings, by_rows),
        out_shardings=(shardings, replicated),
        donate_argnums=0,
    )
    return step, compiler.jit(begin, out_shardings=shardings)


def _loop(run: Run, current: state.TrainState, data, watch: preemption.Watch) -> state.TrainState:
    """Train from `current.step` to the last step; returns the final state."""
    first, t = int(current.step), run.config.train
    folder = run.workdir / "logs" / run.name
    writer = progress.Writer(folder, first) if jax.process_index() == 0 else None
    rate = progress.Rate(first, run.training.steps)
    preview = previews.Preview(run.config) if run.name == "score" and t.sample_every else None
    trace = profile.Trace(folder / "profile", first, t.profile)
    batch, metrics, unreported, n, stop = None, {}, None, first, False
    try:
        for n in range(first + 1, run.training.steps + 1):
            try:
                batch = {key: rows for key, rows in next(data).items() if key != "id"}
            except Exception:
                if n - 1 > first:
                    _keep_before_end(run, writer, rate, n - 1, metrics, current)
                raise
            current, metrics = run.step(current, mesh.put_batch(batch, run.devices))
            # One step late: the device works on this step while the host waits for the one before.
            if unreported:
                _report(run, writer, rate, *unreported)
                unreported = None
            if n == first + 1:
                jax.block_until_ready(metrics)
                rate.restart(n)
            trace.after(n, metrics)
            last = n == run.training.steps
            stop = watch.reached()
            keep = last or stop or n % t.checkpoint_every == 0
            if keep:  # only a state that was checked is saved
                _report(run, writer, rate, n, metrics)
            elif n % t.log_every == 0:
                unreported = n, metrics
            # Before the checkpoint: a program that is killed between them makes the sheet again.
            if preview is not None and (last or n % t.sample_every == 0):
                sheet = preview(mesh.to_host(current.ema, run.devices))
                if writer is not None:
                    writer.image(n, "samples", sheet)
                    write_png(folder / f"sheet_{n:07d}.png", sheet)
            if keep:
                _save(run, n, current)
            if stop:
                break
        run.saved.wait_until_finished()
        if stop or watch.received:  # also after the last step: there may be further stages
            raise watch.stopped(
                run.name,
                f"after step {n} of {run.training.steps}; the checkpoint is in "
                f"{run.saved.directory}/{n}, and the same command goes on from it",
            )
    finally:
        trace.close()
        batch = None  # the memory that it shares with a worker is freed with it
        data.close()  # ends the workers; at the end of the program it would be too late
        if writer is not None:
            writer.close()
    return current


def _report(run: Run, writer, rate: progress.Rate, n: int, metrics: dict) -> None:
    """Fetches the metrics of step n, checks that they are finite, and logs them."""
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    _check_finite(run, values, n)
    if writer is not None:
        _log(run, writer, rate, values, n)


def _keep_before_end(run: Run, writer, rate, n: int, metrics: dict, current) -> None:
    """Saves the state after step n where the data end the training, as a broken image does."""
    # Only one process may have the broken image, and all of them save together.
    if jax.process_count() > 1 or run.saved.latest_step() == n:
        return
    _report(run, writer, rate, n, metrics)
    _save(run, n, current)
    run.saved.wait_until_finished()
    logging.warning(
        "%s ends after step %d of %d; the checkpoint is in %s/%d, and the same command goes on "
        "from it",
        run.name,
        n,
        run.training.steps,
        run.saved.directory,
        n,
    )


def _log(run: Run, writer: progress.Writer, rate: progress.Rate, values: dict, n: int) -> None:
    speed, left = rate(n)
    writer.scalars(n, {**values, "steps_per_second": speed})
    logging.info(
        "%s %d/%d  %s  %.2f steps/s  %.1f images/s  left %s",
        run.name,
        n,
        run.training.steps,
        "  ".join(f"{k} {v:.4f}" for k, v in values.items()),
        speed,
        speed * run.training.batch_size,
        left,
    )


def _check_finite(run: Run, values: dict, n: int) -> None:
    # NaN stays in parameters and moments, so that a check at every log row misses none.
    if np.isfinite(values["loss"]) and np.isfinite(values["gradient_norm"]):
        return
    group = "cut" if run.name in config_lib.GANS else config_lib.network_group(run.name)
    warmup = " or raise its warmup" if "warmup" in run.config.train[group] else ""
    raise NonFiniteLoss(
        f"{run.name}: the loss is {values['loss']} and the gradient {values['gradient_norm']} at "
        f"step {n}; {_kept(run)}. Lower config.train.{group}.learning_rate"
        f"{warmup}, and start again"
    )


def _kept(run: Run) -> str:
    kept = run.saved.latest_step()
    where = f"the checkpoint of step {kept} is kept" if kept else "no checkpoint was written yet"
    return f"{where} in {run.saved.directory}"


def _parts(current: state.TrainState):
    """The items of a checkpoint: training state and EMA, which sampling reads alone."""
    rest = {"step": current.step, "key": current.key, "params": current.params}
    return {**rest, "opt_state": current.opt_state}, current.ema


def _save(run: Run, n: int, current: state.TrainState) -> None:
    rest, ema = _parts(current)
    # A bad checkpoint would replace a good one, and the averages are in no loss.
    if damaged := trees.not_finite({**rest, "ema": ema}):
        raise NonFiniteLoss(
            f"{run.name}: {len(damaged)} arrays of the training state hold NaN or infinite values "
            f"at step {n} (first: {damaged[0]}); {_kept(run)}"
        )
    checkpoint.save(run.saved, n, rest, ema, _plain(run.config))


def _plain(config: ConfigDict) -> dict:
    return json.loads(config.to_json_best_effort())


def _restore(run: Run, step: int, current: state.TrainState) -> state.TrainState:
    group = config_lib.network_group(run.name)
    keys = "train.clip_norm", f"train.{group}.optimizer", f"train.{group}.weight_decay"
    rest, ema = checkpoint.restore(run.saved, step, *_parts(current), _plain(run.config), keys)
    if damaged := trees.not_finite({**rest, "ema": ema}):
        older = [str(n) for n in sorted(run.saved.all_steps()) if 0 < n < step]
        remedy = f"from step {older[-1]}" if older else "from the beginning"
        raise ValueError(
            f"the checkpoint {run.saved.directory}/{step} is damaged: {len(damaged)} of its arrays "
            f"hold NaN or infinite values (first: {damaged[0]}); delete that folder, and training "
            f"goes on {remedy}"
        )
    return state.TrainState(ema=ema, **rest)
