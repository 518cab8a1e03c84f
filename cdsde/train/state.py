"""The training state, the optimiser, and the step that all stages share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from ml_collections import ConfigDict


class TrainState(NamedTuple):
    """Everything that a step reads and writes.

    Attributes:
      step: int32 scalar, number of finished optimiser steps.
      key: the run's key; step n draws from `fold_in(key, n)`.
      params: float32 parameters.
      ema: exponential moving average of the parameters, which sampling uses.
      opt_state: the optimiser's state.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def learning_rate(c: ConfigDict, peak: float | None = None) -> optax.Schedule:
    """The learning rate: linear warm-up to `peak` (default `c.learning_rate`), then `c.schedule`.

    "constant"; "cosine": to 0 at the last step; "linear" (CUT): constant, then linear decay per
    epoch over the last `c.decay` epochs, reaching 0 one epoch after the end.
    """
    warmup = min(c.warmup, c.steps // 2)
    peak = c.learning_rate if peak is None else peak
    if c.schedule == "linear":
        constant = steps_before_decay(c) // c.epoch

        def rate(step):
            epoch = step // c.epoch + 1
            left = c.decay + 1 - jnp.maximum(0, epoch - constant)
            return peak * (left / (c.decay + 1))

        return rate
    if c.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, c.steps)
    if not warmup:  # optax would stay at the initial value, 0
        return optax.constant_schedule(peak)
    return optax.warmup_constant_schedule(0.0, peak, warmup)


def steps_before_decay(c: ConfigDict) -> int:
    """Number of steps before a "linear" schedule decays; all steps for other schedules."""
    return (c.steps // c.epoch - c.decay) * c.epoch if c.schedule == "linear" else c.steps


def optimiser(c: ConfigDict) -> optax.GradientTransformation:
    """Gradient clipping by global norm, then the optimiser that `c.optimizer` names.

    "adam": Adam, or AdamW with weight decay on matrices and kernels. "muon" (Jordan et al. 2024):
    orthogonalised momentum for matrices and kernels, at the rate `c.muon_rate`; vectors (biases,
    gains) get Adam with Nesterov momentum.
    """
    parts = [optax.clip_by_global_norm(c.clip_norm)] if c.clip_norm else []
    if c.optimizer == "muon":
        parts.append(
            optax.contrib.muon(
                learning_rate(c, c.muon_rate),
                weight_decay=c.weight_decay,
                adam_b1=c.beta1,
                adam_b2=c.beta2,
                adam_learning_rate=learning_rate(c),
                muon_weight_dimension_numbers=_matrices,
            )
        )
    elif c.weight_decay:
        parts.append(
            optax.adamw(
                learning_rate(c),
                b1=c.beta1,
                b2=c.beta2,
                weight_decay=c.weight_decay,
                mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
            )
        )
    else:
        parts.append(optax.adam(learning_rate(c), b1=c.beta1, b2=c.beta2))
    return optax.chain(*parts)


def _matrices(params):
    """Muon's matrix view of each parameter: last axis = outputs, all others = inputs."""

    def numbers(p):
        inputs = tuple(range(p.ndim - 1))
        return optax.contrib.MuonDimensionNumbers(inputs, p.ndim - 1) if inputs else None

    return jax.tree.map(numbers, params)


def each_part(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """A separate optimiser for each part of `{name: parameters}`; `update` accepts any subset."""

    def update(updates, state, params=None):
        results = {k: tx.update(g, state[k], params and params[k]) for k, g in updates.items()}
        return {k: u for k, (u, _) in results.items()}, {k: s for k, (_, s) in results.items()}

    return optax.GradientTransformation(lambda p: {k: tx.init(v) for k, v in p.items()}, update)


def init_state(
    init: Callable,
    tx: optax.GradientTransformation,
    seed: int,
    averaged: Callable = lambda params: params,
) -> TrainState:
    """A fresh state from `init(key) -> params`; EMA follows `averaged(params)`."""
    init_key, run_key = jax.random.split(jax.random.key(seed))
    params = init(init_key)
    ema = jax.tree.map(jnp.copy, averaged(params))
    return TrainState(jnp.zeros((), jnp.int32), run_key, params, ema, tx.init(params))


def make_step(
    loss: Callable,
    tx: optax.GradientTransformation,
    c: ConfigDict,
    gather: Callable = lambda params: params,
) -> Callable:
    """The pure training step `(state, batch) -> (state, metrics)`.

    Args:
      loss: `(params, batch, key) -> (scalar, {name: scalar})`.
      tx: the optimiser.
      c: `config.stage_training`; `accumulate` splits the batch into that many micro-batches, whose
        gradients are averaged in a scan (memory of one micro-batch).
      gather: `params -> params`, applied before the loss; for a state that is split over devices it
        gathers the network, and its transpose scatters the gradient.
    """
    grad = jax.value_and_grad(lambda params, *rest: loss(gather(params), *rest), has_aux=True)

    def micro(batch):
        # Every n-th row, not contiguous parts: rows that are split over devices need not move.
        return jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(-1, c.accumulate, *x.shape[1:]), 1, 0), batch
        )

    def gradients(params, batch, key):
        if c.accumulate == 1:
            (value, metrics), g = grad(params, batch, key)
            return value, metrics, g

        def add(carry, part):
            index, rows = part
            out = grad(params, rows, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, carry, out), None

        parts = (jnp.arange(c.accumulate), micro(batch))
        shapes = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], parts[1]), key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        out, _ = jax.lax.scan(add, zeros, parts)
        (value, metrics), g = jax.tree.map(lambda x: x / c.accumulate, out)
        return value, metrics, g

    def step(state: TrainState, batch):
        key = jax.random.fold_in(state.key, state.step)
        value, metrics, g = gradients(state.params, batch, key)
        updates, opt_state = tx.update(g, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": value, "gradient_norm": optax.tree.norm(g), **metrics}
        return advance(state, params, params, opt_state, c), metrics

    return step


def advance(state: TrainState, params, averaged, opt_state, c: ConfigDict) -> TrainState:
    """The state after a step; `averaged` is the part of the parameters that EMA follows."""
    # A smaller decay in the first steps, so that the average forgets the initial parameters.
    n = state.step.astype(jnp.float32)
    decay = jnp.minimum(c.ema, (1 + n) / (10 + n))
    ema = optax.incremental_update(averaged, state.ema, 1 - decay)
    return TrainState(state.step + 1, state.key, params, ema, opt_state)
