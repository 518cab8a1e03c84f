"""Edit-friendly inversion and LEDITS++: what they promise, and their equations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdsde import load_config
from cdsde.diffusion import schedules
from cdsde.edit import pipeline
from cdsde.editing import ddim, edit_friendly, editors, ledits

pytestmark = pytest.mark.usefixtures("compile_quickly")
SCHEDULE = ddim.LatentSchedule(schedules.scaled_linear().alpha_bar)
DOWN = ddim.sampling(SCHEDULE, 20)
TEXT = jax.random.normal(jax.random.key(9), (3, 5, 4))  # three texts of five tokens


def unet(x, t, context, **kwargs):
    """A network of a text and a latent: smooth, not linear, and far from a denoiser."""
    pull = jnp.tanh(context.mean((1, 2)))[:, None, None, None]
    return jnp.sin(x + 3 * pull) + pull * jnp.roll(x, 1, 1) + t / 1000


def latents(batch=3):
    z = jax.random.normal(jax.random.key(0), (batch, 8, 8, 4))
    return z, jax.random.normal(jax.random.key(1), (len(DOWN.t), *z.shape))


def eps_with(text, scale, batch=3):
    own = [jnp.broadcast_to(x, (batch, *x.shape)) for x in (text, text, TEXT[2])]
    return lambda x, t: editors.guided_eps(unet, x, t, editors.Texts(*own), scale)


def test_the_same_text_brings_the_latent_back_and_another_one_edits():
    z, noise = latents()

    @jax.jit
    def run(z, noise):
        x, shifts, back = edit_friendly.invert(z, noise, DOWN, eps_with(TEXT[0], 3.5))
        again = edit_friendly.replay(x, shifts, DOWN, eps_with(TEXT[0], 3.5))
        other = edit_friendly.replay(x, shifts, DOWN, eps_with(TEXT[1], 3.5))
        return back, again, other

    back, again, other = run(z, noise)
    np.testing.assert_allclose(back, z, atol=2e-6)
    np.testing.assert_allclose(again, z, atol=2e-5)
    assert np.abs(other - z).max() > 0.1


def test_the_last_step_comes_back_where_it_has_no_noise():
    """A scheduler with `set_alpha_to_one` ends at ᾱ = 1, where σ is 0."""
    down = ddim.sampling(SCHEDULE._replace(clean=1.0), 20)
    z, noise = latents()
    eps_fn = eps_with(TEXT[0], 3.5)
    x, shifts, _ = edit_friendly.invert(z, noise, down, eps_fn)
    again = edit_friendly.replay(x, shifts, down, eps_fn)
    np.testing.assert_allclose(again, z, atol=2e-5)


def test_a_step_is_the_ddpm_posterior():
    a, b = 0.3, 0.45
    x, eps = np.random.default_rng(0).normal(size=(2, 1, 2, 2, 4))
    variance = (1 - b) / (1 - a) * (1 - a / b)
    wanted = np.sqrt(b / a) * (x - np.sqrt(1 - a) * eps) + np.sqrt(1 - b - variance) * eps
    np.testing.assert_allclose(edit_friendly.mean(x, eps, a, b), wanted, rtol=1e-5)


def test_the_states_have_the_moments_of_the_forward_process_and_independent_noises():
    z = jnp.full((1, 64, 64, 4), 2.0)
    noise = jax.random.normal(jax.random.key(1), (len(DOWN.t), *z.shape))
    states = np.asarray(edit_friendly.noisy(z, noise, DOWN), np.float64)[:, 0].reshape(20, -1)
    np.testing.assert_allclose(states.mean(1), 2 * np.sqrt(DOWN.start), atol=0.03)
    np.testing.assert_allclose(states.var(1), 1 - DOWN.start, atol=0.03)
    assert np.abs(np.corrcoef(states) - np.eye(20)).max() < 0.05


@pytest.mark.parametrize(
    ("method", "count", "first"), [("ledits", 30, 842), ("edit_friendly", 64, 631)]
)
def test_the_levels_are_those_with_which_an_editor_is_published(method, count, first):
    e = load_config("edit_cat2dog", {"method": method}).edit
    t = pipeline.replayed(SCHEDULE, e).t
    assert (len(t), t[0], t[-1]) == (count, first, 1)
    if method == "ledits":  # as diffusers' pipeline sets them, of 30 steps and its `skip` of 0.15
        scheduler = pytest.importorskip("diffusers").DDIMScheduler(steps_offset=1)
        scheduler.set_timesteps(int(30 * (1 + 0.15)))
        np.testing.assert_array_equal(t, scheduler.timesteps[-30:])


def test_noises_depend_on_the_image_and_not_on_its_batch():
    z, ids = jnp.zeros((3, 4, 4, 4)), jnp.array([7, 8, 9], jnp.uint32)
    together = pipeline._noise(jax.random.key(0), ids, 5, z)
    alone = pipeline._noise(jax.random.key(0), ids[2:], 5, z[:1])
    np.testing.assert_array_equal(together[:, 2], alone[:, 0])
    assert (together[:, 0] != together[:, 1]).any()


# --- LEDITS++ ---


def maps_of(sharp):
    """Attention of 4x4 positions to five tokens, in two layers of two heads, and a smaller one."""
    p = jax.nn.softmax(sharp * jax.random.normal(jax.random.key(3), (2, 3, 2, 16, 5)), -1)
    return {"a": p[0], "b": p[1], "c": jnp.ones((3, 2, 4, 5))}


def test_masks_by_hand():
    maps = maps_of(3.0)
    words = np.zeros((3, 5), bool)
    words[:2, 1:3] = True
    mask = np.asarray(ledits.attention_mask(maps, jnp.asarray(words), (8, 8), 0.7))
    attention = np.mean(
        [np.asarray(maps[n], np.float64)[..., 1:3].sum(-1).mean(1) for n in "ab"], 0
    )
    kernel = np.exp([[-2, -1, -2], [-1, 0, -1], [-2, -1, -2]])
    for n, own in enumerate(attention.reshape(3, 4, 4)):
        padded = np.pad(own, 1, mode="reflect")
        smooth = [
            (padded[i : i + 3, j : j + 3] * kernel / kernel.sum()).sum()
            for i in range(4)
            for j in range(4)
        ]
        wanted = np.reshape(smooth >= np.quantile(smooth, 0.7), (4, 4)).repeat(2, 0).repeat(2, 1)
        assert wanted.sum() == 20  # 5 of 16 places, 4 times enlarged
        np.testing.assert_array_equal(mask[n], wanted if n < 2 else np.zeros((8, 8), bool))
    values = np.random.default_rng(0).normal(size=(2, 3, 4))
    above = np.asarray(ledits.above(jnp.asarray(values), 0.5))
    np.testing.assert_array_equal(above.sum((1, 2)), [6, 6])
    np.testing.assert_array_equal(above[0], values[0] >= np.median(values[0]))


@pytest.fixture
def concepts(monkeypatch):
    """Two concepts, and a network whose attention is known."""
    maps = maps_of(3.0)

    def observe(unet, x, t, context):
        every = {k: jnp.concatenate([m] * (len(x) // 3)) for k, m in maps.items()}
        return unet(x, t, context), every, {}

    monkeypatch.setattr(editors, "observe", observe)
    words = jnp.zeros((3, 5), bool).at[:, 1].set(True)
    texts = [jnp.broadcast_to(text, (3, 5, 4)) for text in TEXT]
    return texts[2], [ledits.Concept(texts[0], words, 1), ledits.Concept(texts[1], words, -1)]


@pytest.mark.parametrize("t", [100, 900])
def test_outside_of_its_mask_a_concept_changes_nothing(concepts, t):
    negative, (added, removed) = concepts
    z, _ = latents()
    plain = np.asarray(unet(z, t, negative), np.float64)
    got, masks = ledits.guided_eps(unet, z, t, negative, [added, removed], 5.0, 0.8)
    masks = np.asarray(masks)
    assert 0 < masks.mean() < 0.5 and not masks.all(0).all()
    wanted = plain.copy()
    for sign, text, mask in zip((1, -1), (added.text, removed.text), masks, strict=True):
        difference = np.asarray(unet(z, t, text), np.float64) - plain
        size = np.abs(difference).sum(-1)
        limit = np.quantile(size.reshape(3, -1), 0.8, axis=1)[:, None, None]
        first = np.asarray(ledits.attention_mask(maps_of(3.0), added.words, (8, 8), 0.8))
        np.testing.assert_array_equal(mask, first & ((size >= limit) | (t > 800)))
        wanted += sign * 5 * difference * mask[..., None]
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    outside = ~masks.any(0)
    np.testing.assert_allclose(np.asarray(got)[outside], plain[outside], atol=1e-6)


def test_without_guidance_the_latent_comes_back(concepts):
    negative, both = concepts
    z, noise = latents()
    x, shifts, _ = edit_friendly.invert(z, noise, DOWN, lambda x, t: unet(x, t, negative))

    def replayed(scale):
        def eps_fn(x, t):
            return ledits.guided_eps(unet, x, t, negative, both, scale, 0.8)[0]

        return edit_friendly.replay(x, shifts, DOWN, eps_fn)

    np.testing.assert_allclose(replayed(0.0), z, atol=2e-5)
    assert np.abs(replayed(2.0) - z).max() > 0.1
