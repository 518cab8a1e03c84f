"""What training carries from step to step, and the one step that all stages share."""

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
      step: int32 scalar, optimiser steps done.
      key: the run's key; step n draws from `fold_in(key, n)`.
      params: float32 parameters.
      ema: their moving average, which sampling uses.
      opt_state: the optimiser's.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def learning_rate(c: ConfigDict, peak: float | None = None) -> optax.Schedule:
    """Linear warm-up to `peak` (default: `c.learning_rate`), then what `c.schedule` says.

    "constant"; "cosine": to 0 at the last step; "linear", CUT's: constant, then a linear decay per
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
    if not warmup:  # which optax takes for "stay at the start", at 0
        return optax.constant_schedule(peak)
    return optax.warmup_constant_schedule(0.0, peak, warmup)


def steps_before_decay(c: ConfigDict) -> int:
    """Steps at the full rate, for "linear"; all of them otherwise."""
    return (c.steps // c.epoch - c.decay) * c.epoch if c.schedule == "linear" else c.steps


def optimiser(c: ConfigDict) -> optax.GradientTransformation:
    """Clipping, then what `c.optimizer` names.

    "adam", or AdamW where there is weight decay (matrices and kernels only); "muon" (Jordan 2024):
    the momentum of every matrix and kernel is made orthogonal before it is applied, at a rate of
    its own, `muon_rate`; vectors (biases, gains) have Adam's, with Nesterov's momentum.
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
    """How Muon sees each parameter: everything but the last axis, the outputs, is one axis."""

    def numbers(p):
        inputs = tuple(range(p.ndim - 1))
        return optax.contrib.MuonDimensionNumbers(inputs, p.ndim - 1) if inputs else None

    return jax.tree.map(numbers, params)


def each_part(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimiser of its own for each part of `{name: parameters}`; `update` takes any of them."""

    def update(updates, state, params=None):
        done = {k: tx.update(g, state[k], params and params[k]) for k, g in updates.items()}
        return {k: u for k, (u, _) in done.items()}, {k: s for k, (_, s) in done.items()}

    return optax.GradientTransformation(lambda p: {k: tx.init(v) for k, v in p.items()}, update)


def init_state(
    init: Callable,
    tx: optax.GradientTransformation,
    seed: int,
    averaged: Callable = lambda params: params,
) -> TrainState:
    """A fresh state; `init(key) -> params`, `averaged(params)` what the average is of."""
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
    """`step(state, batch) -> (state, metrics)`, pure.

    Args:
      loss: `(params, batch, key) -> (scalar, {name: scalar})`.
      tx: the optimiser.
      c: `config.train.STAGE`; `accumulate` cuts the batch into that many micro-batches, whose
        gradients are averaged in a scan (memory of one micro-batch).
      gather: `params -> params`, applied before the loss; where the state is split over devices it
        brings a network together, and its transpose scatters the gradient.
    """
    grad = jax.value_and_grad(lambda params, *rest: loss(gather(params), *rest), has_aux=True)

    def micro(batch):
        # Every n-th row, not contiguous parts: a batch split over devices stays where it is.
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
    """The state after a step; `averaged` is what of the parameters the average follows."""
    # A young average follows the parameters closely, else it would remember the start.
    n = state.step.astype(jnp.float32)
    decay = jnp.minimum(c.ema, (1 + n) / (10 + n))
    ema = optax.incremental_update(averaged, state.ema, 1 - decay)
    return TrainState(state.step + 1, state.key, params, ema, opt_state)
