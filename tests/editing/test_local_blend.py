"""Prompt-to-prompt's local blend: the published formula, and what it may not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import one_sentence
from network_helpers import small_latent_unet

from cdsde.diffusion import schedules
from cdsde.editing import ddim, editors, local_blend, prompt_to_prompt

pytestmark = pytest.mark.usefixtures("compile_quickly")
SCHEDULE = ddim.LatentSchedule(schedules.scaled_linear().alpha_bar)
TOKENS, STEPS = 6, 10


def words(places, shares=None, kept=None):
    """Those of a batch of two, which are the same; places are `[2, TOKENS]`."""
    shares = jnp.eye(TOKENS) if shares is None else shares
    kept = jnp.zeros(TOKENS) if kept is None else kept
    both = (jnp.broadcast_to(x, (2, *x.shape)) for x in (shares, kept, jnp.asarray(places, bool)))
    return prompt_to_prompt.Words(*both)


CAT = np.eye(TOKENS, dtype=bool)[[2, 3]]  # a token of the caption, and one of the edited text
ALL, NONE = np.ones((2, TOKENS), bool), np.zeros((2, TOKENS), bool)


def test_the_rest_is_the_sources_by_the_published_formula():
    """In float64, of two layers of 16x16 and one that does not count."""
    r, down = np.random.default_rng(0), ddim.sampling(SCHEDULE, STEPS)
    # A table of maps: smooth ones, so that the place has a shape, anew for each level and row.
    shapes = {"down": (2, 256), "up": (2, 256), "other": (3, 1024)}
    table = {name: r.random((STEPS, 8, *s, TOKENS), np.float32) ** 4 for name, s in shapes.items()}
    wide = np.zeros((32, 32))
    wide[8:20, 4:22] = 1
    for name, factor in (("down", 1), ("up", 2)):
        table[name][:, 4:6, ..., 2] *= factor * wide[::2, ::2].reshape(-1)
        table[name][:, 6:8, ..., 3] *= factor * np.roll(wide, 6)[::2, ::2].reshape(-1)

    def unet(x, t, context, inject, mutable=None):
        maps = {name: {"probabilities": jnp.asarray(m)[t // 100]} for name, m in table.items()}
        eps = 0.3 * jnp.tanh(x) + context.mean(1)[:, None, None]
        return (eps, {"maps": maps, "features": {}}) if mutable else eps

    top = jnp.asarray(r.normal(size=(2, 32, 32, 4)), jnp.float32)
    texts = editors.Texts(*jnp.asarray(r.normal(size=(3, 2, TOKENS, 4)), jnp.float32))
    edit = functools.partial(prompt_to_prompt.prompt_to_prompt, unet, top, down, texts, scale=2.0)
    edited, back = jax.jit(lambda places: edit(words=places, blend=0.3))(words(CAT))

    x = np.concatenate([top, top]).astype(np.float64)
    total, covered = np.zeros((4, 16, 16)), []
    for n, (t, a, b) in enumerate(zip(*down, strict=True)):
        eps = [
            0.3 * np.tanh(x) + np.float64(np.concatenate(c)).mean(1)[:, None, None]
            for c in ([texts.negative] * 2, texts[:2])
        ]
        eps = eps[0] + 2.0 * (eps[1] - eps[0])
        a, b = np.float64(a), np.float64(b)
        x = np.sqrt(b / a) * (x - np.sqrt(1 - a) * eps) + np.sqrt(1 - b) * eps
        heads = np.concatenate(
            [table[k][t // 100, 4:].astype(np.float64) for k in ("down", "up")], 1
        )
        attention = heads.mean(1).reshape(4, 16, 16, TOKENS)
        total += np.concatenate([attention[:2, ..., 2], attention[2:, ..., 3]])
        if n < 2:  # a fifth of the steps
            continue
        padded = np.pad(total, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        most = np.max([padded[:, i : i + 16, j : j + 16] for i in range(3) for j in range(3)], 0)
        large = most.repeat(2, 1).repeat(2, 2)
        large = large / large.max((1, 2), keepdims=True) > 0.3
        mask = (large[:2] | large[2:])[..., None]
        x[2:] = x[:2] + mask * (x[2:] - x[:2])
        covered.append(mask.mean())
    assert 0.2 < min(covered) and max(covered) < 0.8
    np.testing.assert_allclose(edited, x[2:], atol=1e-4)
    np.testing.assert_allclose(back, x[:2], atol=1e-4)
    assert (np.asarray(edited == back).all(-1) == ~mask[..., 0]).all()


@pytest.fixture(scope="module")
def edit():
    """`edit(target, words, blend, **shares)` of a small U-Net, and the texts."""
    network, texts, top = small_latent_unet((8, 8), 16, TOKENS)
    down = ddim.sampling(SCHEDULE, 5)

    @functools.partial(jax.jit, static_argnames="side")
    def run(target, own, blend=None, side=16, attention=0.5):
        args = network, top, down, texts._replace(target=target), own, 5.0, 0.8, attention
        return prompt_to_prompt.prompt_to_prompt(*args, side=side, blend=blend)

    return run, texts


def test_what_the_blend_may_not_change(edit):
    run, texts = edit
    plain, source = run(texts.target, words(CAT))
    assert np.abs(plain - source).max() > 0.05
    # Every place, by the threshold or by the words: as without it.
    for own, blend in ((CAT, 0.0), (ALL, 0.3)):
        edited, back = run(texts.target, words(own), blend=blend)
        np.testing.assert_allclose(edited, plain, atol=5e-5)
        np.testing.assert_allclose(back, source, atol=5e-5)
    # No place: the source itself.
    edited, back = run(texts.target, words(NONE), blend=0.3)
    np.testing.assert_array_equal(edited, back)
    # Equal texts.
    edited, back = run(texts.source, words(CAT), blend=0.3)
    np.testing.assert_array_equal(edited, back)
    np.testing.assert_allclose(back, source, atol=5e-5)
    # Some places: the source's outside.
    edited, back = run(texts.target, words(CAT), blend=0.95)
    same = np.asarray(edited == back).all(-1)
    assert same.any((1, 2)).all() and not same.all((1, 2)).any()


def test_self_attention_is_taken_on_maps_of_a_side(edit):
    run, texts = edit
    without, _ = run(texts.target, words(ALL), attention=0.0)
    np.testing.assert_allclose(run(texts.target, words(ALL), side=7)[0], without, atol=5e-5)
    one, both = (run(texts.target, words(ALL), side=side)[0] for side in (8, 16))
    assert min(np.abs(x - y).max() for x, y in ((one, without), (one, both))) > 1e-3


def test_a_network_without_such_maps_is_told():
    maps = {"down": jnp.ones((4, 2, 64, TOKENS))}
    with pytest.raises(ValueError, match=r"no cross-attention on 16x16 positions, .* 64x64") as e:
        local_blend.with_step(0, maps, jnp.asarray([CAT]), (64, 64))
    assert one_sentence(str(e.value))
