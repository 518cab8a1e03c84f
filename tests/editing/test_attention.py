"""Prompt-to-prompt and null-text inversion: mappers by hand, and what may not change anything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_helpers import small_latent_unet

from cdsde.diffusion import schedules
from cdsde.editing import ddim, editors, null_text, prompt_to_prompt, word_alignment
from cdsde.networks.stable_diffusion import unet

pytestmark = pytest.mark.usefixtures("compile_quickly")
SCHEDULE = ddim.LatentSchedule(schedules.scaled_linear().alpha_bar)
TOKENS = 6


def test_alignment_by_hand():
    def aligned(source, target):
        words = {w: n for n, w in enumerate(dict.fromkeys([*source.split(), *target.split()]))}
        ids = [[words[w] for w in text.split()] for text in (source, target)]
        return word_alignment.aligned(*ids).tolist()

    assert aligned("a cat on grass", "a cat on grass") == [0, 1, 2, 3]
    assert aligned("a cat on grass", "a black cat on grass") == [0, -1, 1, 2, 3]
    assert aligned("a black cat", "a cat") == [0, 2]
    assert aligned("a cat sleeps", "a large dog sleeps") == [0, -1, -1, 2]
    assert aligned("cat", "dog") == [-1]
    # Of two equal words the first one takes the place, as in the published code.
    assert aligned("a b", "a a b") == [0, -1, 1]


def test_mappers_by_hand():
    """Start 8, end 9, and padding 9 as in CLIP."""
    none = np.zeros(TOKENS, bool)
    cat, dog = np.array([8, 1, 2, 9, 9, 9]), np.array([8, 1, 3, 9, 9, 9])
    shares, kept = word_alignment.mapper(cat, dog, (4, 4), none, lengths=([1, 1], [1, 1]))
    np.testing.assert_array_equal(shares, np.eye(TOKENS))  # replace
    np.testing.assert_array_equal(kept, 0)
    shares, kept = word_alignment.mapper(cat, dog, (4, 4), none)  # refine: the dog is new
    np.testing.assert_array_equal(shares, np.diag([1, 1, 0, 1, 1, 1]))
    np.testing.assert_array_equal(kept, [0, 0, 1, 0, 0, 0])
    # Replace a word of one token by one of two: both share its attention.
    hound = np.array([8, 1, 4, 5, 9, 9])
    shares, kept = word_alignment.mapper(cat, hound, (4, 5), none, lengths=([1, 1], [1, 2]))
    wanted = np.zeros((TOKENS, TOKENS))
    for source, target, share in (
        (0, 0, 1),
        (1, 1, 1),
        (2, 2, 0.5),
        (2, 3, 0.5),
        (3, 4, 1),
        (5, 5, 1),
    ):
        wanted[source, target] = share
    np.testing.assert_array_equal(shares, wanted)
    np.testing.assert_array_equal(kept, 0)
    # Refine: "a cat" → "a black cat"; the end is token 3 there and 4 here, padding by position.
    black = np.array([8, 1, 7, 2, 9, 9])
    shares, kept = word_alignment.mapper(cat, black, (4, 5), none)
    wanted = np.zeros((TOKENS, TOKENS))
    for source, target in ((0, 0), (1, 1), (2, 3), (3, 4), (5, 5)):
        wanted[source, target] = 1
    np.testing.assert_array_equal(shares, wanted)
    np.testing.assert_array_equal(kept, [0, 0, 1, 0, 0, 0])
    # Reweight: the factor acts on what is taken and on what is kept.
    words = none.copy()
    words[2:4] = True
    shares, kept = word_alignment.mapper(cat, black, (4, 5), words, 3.0)
    np.testing.assert_array_equal(shares, wanted * [1, 1, 3, 3, 1, 1])
    np.testing.assert_array_equal(kept, [0, 0, 3, 0, 0, 0])
    # A text that is cut at the window.
    long = np.array([8, 1, 2, 3, 4, 9])
    shares, _ = word_alignment.mapper(cat, long, (4, 9), none)
    assert shares.shape == (TOKENS, TOKENS) and shares.max() == 1


def test_words_are_exchanged_only_in_their_places():
    def exchanged(source, target):
        return word_alignment.exchanged(source.split(), target.split())

    assert exchanged("a cat on a bench", "a dog on a bench")
    assert exchanged("a cat on a bench", "a cat on a bench")
    assert not exchanged("a cat on a bench", "a cat on a wooden bench")
    # Equally many words of which one has moved: the rest would take another word's attention.
    assert not exchanged("a cat sitting on a bench", "a cat on a wooden bench")


def test_cross_attention_is_shared_out_by_the_mapper():
    """Equation (1) in float64, with a mapper that is neither the identity nor symmetric."""
    r = np.random.default_rng(0)
    p = r.random((3, 2, 5, TOKENS)).astype(np.float32)  # the last row takes from the first
    shares, kept = r.random((1, TOKENS, TOKENS)), r.random((1, TOKENS))
    found = unet._words_taken(
        jnp.asarray(p), np.array([0]), (jnp.asarray(shares), jnp.asarray(kept))
    )
    wanted = p.astype(np.float64)
    for n in range(TOKENS):
        taken = sum(p[0, ..., m].astype(np.float64) * shares[0, m, n] for m in range(TOKENS))
        wanted[2, ..., n] = taken + kept[0, n] * p[2, ..., n]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_self_attention_is_taken_where_the_map_is_small():
    small = unet.Injection(np.array([0]), attention=jnp.array(True), most=16)
    assert small.of_layer(16, None).attention is not None
    assert small.of_layer(17, None).attention is None


def mapped(shares=None, kept=None):
    shares = jnp.eye(TOKENS) if shares is None else shares
    kept = jnp.zeros(TOKENS) if kept is None else kept
    both = (jnp.broadcast_to(x, (2, *x.shape)) for x in (shares, kept))
    return prompt_to_prompt.Words(*both, jnp.ones((2, 2, len(kept)), bool))


def test_prompt_to_prompt_changes_what_it_is_asked_to():
    network, texts, top = small_latent_unet((8,), 4, TOKENS)
    down = ddim.sampling(SCHEDULE, 4)

    @jax.jit
    def edit(target, words, cross, attention):
        own = texts._replace(target=target)
        args = network, top, down, own, words, 5.0, cross, attention
        return prompt_to_prompt.prompt_to_prompt(*args)

    swap = jax.jit(
        lambda text: editors.word_swap(network, top, down, texts._replace(target=text))[0]
    )
    source, swapped = swap(texts.source), swap(texts.target)
    assert np.abs(swapped - source).max() > 0.05

    # Equal words: edit and source are the same, and are what sampling makes of them.
    for shares in ((0.8, 0.4), (0.0, 0.0)):
        edited, back = edit(texts.source, mapped(), *shares)
        np.testing.assert_array_equal(edited, back)
        np.testing.assert_allclose(back, source, atol=5e-5)
    # No share of the steps: word swap.
    edited, back = edit(texts.target, mapped(), 0.0, 0.0)
    np.testing.assert_allclose(edited, swapped, atol=5e-5)
    np.testing.assert_allclose(back, source, atol=5e-5)
    # Each kind of attention acts by itself; the source stays what it is.
    for shares in ((1.0, 0.0), (0.0, 1.0)):
        edited, back = edit(texts.target, mapped(), *shares)
        np.testing.assert_allclose(back, source, atol=5e-5)
        assert np.abs(edited - swapped).max() > 1e-3, shares
    # Tokens that are new keep their own maps, so that nothing taken is word swap; twice the
    # attention to one of them is not.
    new = jnp.zeros((TOKENS, TOKENS)), jnp.ones(TOKENS)
    edited, _ = edit(texts.target, mapped(*new), 1.0, 0.0)
    np.testing.assert_allclose(edited, swapped, atol=5e-5)
    more, _ = edit(texts.target, mapped(new[0], new[1].at[2].set(2.0)), 1.0, 0.0)
    assert np.abs(more - edited).max() > 1e-3


def plain(x, t, context, inject=None):
    """A network to which each value of the text is that of a place: `[B, 2, 2, 1]`, `[B, 4, 1]`."""
    return 0.3 * jnp.tanh(x) + context.reshape(x.shape)


def test_each_step_may_have_its_negative_text():
    down, top = ddim.sampling(SCHEDULE, 3), jax.random.normal(jax.random.key(1), (2, 2, 2, 1))
    source, target, negative = jax.random.normal(jax.random.key(2), (3, 2, 4, 1))
    words = mapped(jnp.eye(4), jnp.zeros(4))

    def both(negative):
        own = editors.Texts(source, target, negative)
        args = plain, top, down, own
        edited, _ = prompt_to_prompt.prompt_to_prompt(*args, words, 5.0, 0.7, 0.4)
        return np.stack([edited, editors.word_swap(*args, 5.0)[0]])

    every = jnp.broadcast_to(negative, (3, 2, 4, 1))
    np.testing.assert_allclose(both(every), both(negative), atol=1e-5)
    assert np.abs(both(every.at[2].add(1.0)) - both(every)).max((1, 2, 3, 4)).min() > 1e-3


def test_null_texts_reconstruct_where_guidance_does_not():
    z = jax.random.normal(jax.random.key(2), (2, 2, 2, 1))
    source, negative = 0.03 * jax.random.normal(jax.random.key(3), (2, 2, 4, 1))
    up, down = ddim.inversion(SCHEDULE, 20), ddim.sampling(SCHEDULE, 20)
    top, states = ddim.run(z, up, lambda x, t: plain(x, t, source))
    own = editors.Texts(source, source, negative)
    guided, _ = editors.word_swap(plain, top, down, own, 7.5)
    found, back = null_text.optimise(plain, states, down, source, negative, 7.5)
    lost, left = (np.mean((x - z) ** 2, (1, 2, 3)) for x in (guided, back))
    assert (lost > 0.02).all() and (left < 1e-3 * lost).all(), (lost, left)
    again, _ = editors.word_swap(plain, top, down, own._replace(negative=found), 7.5)
    np.testing.assert_allclose(again, back, atol=1e-5)


@pytest.mark.parametrize("steps", [50, 200])
def test_null_texts_are_improved_at_every_step_however_many(steps):
    z = jax.random.normal(jax.random.key(2), (1, 2, 2, 1))
    source, negative = 0.03 * jax.random.normal(jax.random.key(3), (2, 1, 4, 1))
    up, down = ddim.inversion(SCHEDULE, steps), ddim.sampling(SCHEDULE, steps)
    _, states = ddim.run(z, up, lambda x, t: plain(x, t, source))
    _, back = null_text.optimise(plain, states, down, source, negative, 7.5)
    assert np.mean((back - z) ** 2) < 1e-5


def test_null_texts_are_those_of_adam_in_float64():
    """Of a network that is linear in the text; one image stops early, the other goes on."""
    states = np.random.default_rng(0).normal(size=(3, 2, 2, 2, 1))
    states[:, 0] = 0  # guidance of nothing reconstructs nothing at once
    text = np.random.default_rng(1).normal(size=(2, 1, 1))
    negative = np.where(np.arange(2)[:, None, None] == 0, text, 0.3)

    def unet(x, t, context):
        return 0.1 * x + context[:, :, :, None]

    down = ddim.sampling(SCHEDULE, 2)
    found, back = null_text.optimise(
        unet, jnp.float32(states), down, jnp.float32(text), jnp.float32(negative), 2.0
    )
    x, null = states[-1], negative.copy()
    for n in range(2):
        a, b = (np.float64(field[n]) for field in (down.start, down.end))

        def moved(null, a=a, b=b, x=x):
            eps = unet(x, 0, null) + 2 * (unet(x, 0, text) - unet(x, 0, null))
            return np.sqrt(b / a) * (x - np.sqrt(1 - a) * eps) + np.sqrt(1 - b) * eps

        # d moved / d null: minus one times the coefficient of ε
        slope_of = -(np.sqrt(1 - b) - np.sqrt(b / a * (1 - a)))
        m, v, going = np.zeros_like(null), np.zeros_like(null), np.ones(2, bool)
        for j in range(1, 11):
            error = moved(null) - states[-2 - n]
            slope = 2 * slope_of * error.mean((1, 2, 3))[:, None, None]
            m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
            step = m / (1 - 0.9**j) / (np.sqrt(v / (1 - 0.999**j)) + 1e-8)
            null = np.where(going[:, None, None], null - 0.01 * (1 - n / 100) * step, null)
            going &= (error**2).mean((1, 2, 3)) >= 1e-5 + 2e-5 * n
        x = moved(null)
        np.testing.assert_allclose(found[n], null, atol=1e-5)
    np.testing.assert_allclose(back, x, rtol=1e-4, atol=1e-5)
    assert not going[0] or going[1]
