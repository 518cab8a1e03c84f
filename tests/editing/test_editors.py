"""Ladders, inversions, losses and whole edits against the published methods (golden/latent)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from latent_vectors import close as close
from latent_vectors import folder as folder
from latent_vectors import nchw, nhwc

from cdsde.data import tokenizer
from cdsde.diffusion import schedules
from cdsde.edit import text_directions
from cdsde.editing import ddim, editors, guidance, regularise
from cdsde.weights import diffusers

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(scope="module")
def model(golden):
    """`(unet(x, t, context, ...) with parameters bound, the schedule)` of the small model."""
    module, params = diffusers.load_unet(golden / "latent" / "model" / "unet")
    schedule = diffusers.read_schedule(golden / "latent" / "model" / "scheduler")
    return lambda *args, **kwargs: module.apply(params, *args, **kwargs), schedule


def load(folder, name):
    return dict(np.load(folder / f"{name}.npz"))


def test_ladders(folder, close, model):
    schedule = model[1]
    v = load(folder, "ddim")
    close(schedule.alpha_bar, "ddim", "alphas_cumprod")
    for steps in (10, 20, 50, 100):
        np.testing.assert_array_equal(ddim.sampling(schedule, steps).t, v[f"timesteps_{steps}"])
    eps = np.moveaxis(v["eps"], -3, -1)
    x0 = nhwc(v["x0"])

    def follow(x, ladder, noises):
        states = []
        for _, start, end, e in zip(*ladder, noises, strict=True):
            x = ddim.move(x, e, start, end)
            states.append(nchw(x))
        return x, np.stack(states)

    top, states = follow(x0, ddim.inversion(schedule, 50), eps)
    close(states, "ddim", "inversion_states")
    _, states = follow(top, ddim.sampling(schedule, 50), eps[::-1])
    close(states, "ddim", "reverse_states")
    official = ddim.inversion(schedule, 50, "p2p0")
    assert len(official.t) == 48
    close(follow(x0, official, eps[:48])[1], "ddim", "p2pzero_official_inversion_states")


@pytest.mark.slow
def test_inversions(folder, close, model):
    unet, schedule = model
    v = load(folder, "inversion")
    x0 = nhwc(v["x0"])[None]
    empty = load(folder, "edit_direction")["c_empty"]

    def run(x, ladder, text, **kwargs):
        def eps_fn(x, t):
            return unet(x, t, jnp.asarray(text)[None])

        return nchw(jax.jit(lambda x: ddim.run(x, ladder, eps_fn, **kwargs)[1])(x))[:, 0]

    states = run(x0, ddim.inversion(schedule, 10), v["c"])
    close(states, "inversion", "states")
    again = run(nhwc(v["states"][-1])[None], ddim.sampling(schedule, 10), v["c"])
    close(again, "inversion", "recon_states")
    current = run(x0, ddim.inversion(schedule, 10, "current"), v["c"])
    close(current, "inversion", "states_eps_at_current_t")
    states = run(x0, ddim.inversion(schedule, 10), empty)
    close(states, "inversion", "states_empty_prompt")
    rolls = jnp.asarray(v["p2pzero_official_rolls"])
    official = ddim.inversion(schedule, 10, "p2p0")
    adjusted = dict(adjust=regularise.towards_noise, per_step=rolls)
    close(run(x0, official, v["c"], **adjusted), "inversion", "p2pzero_official_states")
    adjusted["per_step"] = rolls[jnp.arange(10) % 8]
    states = run(x0, ddim.inversion(schedule, 10), v["c"], **adjusted)
    close(states, "inversion", "states_regularised")


def test_noise_regularisation(folder, close):
    v = load(folder, "noise_reg")
    e = nhwc(v["eps"])
    first = v["rolls"][0, 0]
    for function, name in (
        (lambda e: regularise.autocorrelation(e, first), "auto_corr_first"),
        (regularise.divergence, "kl_first"),
    ):
        value, slope = jax.value_and_grad(function)(e)
        close(value, "noise_reg", name)
        close(nchw(slope), "noise_reg", f"grad_{name}")
    close(nchw(regularise.towards_noise(e[None], v["rolls"])[0]), "noise_reg", "eps_regularised")


@pytest.mark.parametrize("side", [4, 6, 8, 24, 64])
def test_shifts_are_never_none_and_fit(side):
    shifts = np.asarray(regularise.draw_shifts(jax.random.key(0), (5, 5), 4, side))
    sides = regularise.levels(side)
    assert shifts.shape == (5, 5, 4, len(sides)) and shifts.min() >= 1
    for level, n in enumerate(sides):
        assert shifts[..., level].max() <= max(1, n // 2 - 1)
    e = jax.random.normal(jax.random.key(1), (1, side, side, 4))
    assert np.isfinite(regularise.towards_noise(e, shifts)).all()


@pytest.mark.parametrize("patch", [1, 2])
def test_patch_loss(folder, close, patch):
    v = load(folder, "nce")
    source, edit = (jnp.asarray(v[n]).reshape(1, 16, 16, 20) for n in ("feat_ref", "feat_trg"))
    ids = v[f"ids_ps{patch}"]

    def each(edit):
        return guidance.patch_loss(edit, source, ids, patch, 0.07)[0]

    close(each(edit), "nce", f"loss_per_patch_cds_ps{patch}")
    slope = jax.grad(lambda e: each(e).mean())(edit).reshape(256, 20)
    close(each(edit).mean(), "nce", f"loss_cds_ps{patch}")
    close(slope, "nce", f"grad_trg_cds_ps{patch}")


@pytest.mark.slow
def test_losses_through_the_network(folder, close, model):
    unet, _ = model
    v = load(folder, "unet")
    x, t = nhwc(v["sample"][:1]), v["timesteps"][:1]
    _, maps, features = editors.observe(unet, x, t, v["encoder_hidden_states_ref"])
    ids = {}
    for name, chosen in v.items():
        if name.startswith("cut_ids/"):
            layer, patch = name.removeprefix("cut_ids/").rsplit("/ps", 1)
            ids.setdefault(layer, {})[int(patch)] = chosen
    assert len(ids) == 9

    def of(x):
        _, own, own_features = editors.observe(unet, x, t, v["encoder_hidden_states"][:1])
        return (
            guidance.map_loss(own, maps)[0],
            guidance.feature_loss(own_features, features, ids, (16, 16))[0],
        )

    for n, name in enumerate(("loss_headmean", "cut_loss")):
        value, slope = jax.jit(jax.value_and_grad(lambda x, n=n: of(x)[n]))(x)
        close(value, "unet", name)
        close(nchw(slope[0]), "unet", f"grad_{name}")


def texts_of(v, negative="c"):
    return editors.Texts(*(jnp.asarray(v[n]) for n in ("c", "c_hat", negative)))


def ids_of(v, run):
    ids = {}
    for name, chosen in v.items():
        if name.startswith(f"{run}ids/"):
            layer, patch = name.removeprefix(f"{run}ids/").rsplit("/ps", 1)
            ids.setdefault(layer, {})[int(patch)] = jnp.asarray(chosen)
    return ids


def edit(model, v, settings, ids, name="x_T"):
    unet, schedule = model
    x = nhwc(v[name])[None]
    run = jax.jit(
        lambda x, ids: editors.zerocon(
            unet, x, ddim.sampling(schedule, 10), texts_of(v), settings, ids
        )
    )
    _, states, told = run(x, ids)
    told.pop("source")
    return nchw(states)[:, 0], {k: np.asarray(value)[..., 0] for k, value in told.items()}


@pytest.mark.slow
def test_pix2pix_zero(folder, close, model):
    v = load(folder, "traj_pix2pix_zero")
    settings = editors.Zerocon(step=0.05, feature_weight=0.0, pair=True)
    states, told = edit(model, v, settings, {})
    close(states, "traj_pix2pix_zero", "states")
    close(told["map"], "traj_pix2pix_zero", "loss_c")
    close(told["gradient"], "traj_pix2pix_zero", "grad_norms_pair")
    states, told = edit(model, v, settings._replace(step=0.0), {})
    close(states, "traj_pix2pix_zero", "states_no_guidance")
    close(told["map"], "traj_pix2pix_zero", "loss_c_no_guidance")


@pytest.mark.slow
def test_zerocon(folder, close, model):
    v = load(folder, "traj_zerocon")
    plain = editors.Zerocon(step=0.02)
    ids = ids_of(v, "B1/")
    states, told = edit(model, v, plain, ids)
    close(states, "traj_zerocon", "B1/states")
    close(told["map"], "traj_zerocon", "B1/loss_c")
    close(told["feature"], "traj_zerocon", "B1/loss_e")
    close(told["gradient"], "traj_zerocon", "B1/grad_norm")
    states, _ = edit(model, v, plain._replace(feature_weight=0.0), ids)
    close(states, "traj_zerocon", "B1_only_c/states")
    states, _ = edit(model, v, plain._replace(step=0.0), ids)
    close(states, "traj_zerocon", "B1_no_guidance/states")


def test_zerocon_decoded(folder, close):
    v = load(folder, "traj_zerocon")
    module, params, factor = diffusers.load_vae(folder / "model" / "vae")
    z = nhwc(v["B1/states"][-1])[None] / factor
    image = module.apply(params, z, method="decode")
    close(nchw(jnp.clip((image + 1) / 2, 0, 1)[0]), "traj_zerocon", "B1/image")


@pytest.mark.slow
def test_zerocon_in_pairs(folder, close, model):
    v = load(folder, "traj_zerocon")
    states, told = edit(model, v, editors.Zerocon(step=0.02, pair=True), ids_of(v, "B3/"))
    close(states, "traj_zerocon", "B3/states")
    close(told["feature"], "traj_zerocon", "B3/loss_e")
    close(told["gradient"], "traj_zerocon", "B3/grad_norms_pair")


def test_word_swap(folder, close, model):
    unet, schedule = model
    v = load(folder, "traj_wordswap")
    empty = jnp.asarray(v["c_empty"])
    texts = editors.Texts(empty, jnp.asarray(v["c_target"]), empty)
    ladder = ddim.sampling(schedule, 10)
    _, states = jax.jit(lambda x: editors.word_swap(unet, x, ladder, texts))(nhwc(v["x_T"])[None])
    close(nchw(states)[:, 0], "traj_wordswap", "states")


@pytest.mark.slow
def test_plug_and_play(folder, close, model):
    unet, schedule = model
    v = load(folder, "traj_pnp")
    texts = editors.Texts(*(jnp.asarray(v[n]) for n in ("c_empty", "c_target", "c_negative")))
    ladder = ddim.sampling(schedule, 10)
    inverted = nhwc(v["source_states"])[:, None]
    _, states = jax.jit(lambda s: editors.plug_and_play(unet, s, ladder, texts))(inverted)
    close(nchw(states)[:, 0], "traj_pnp", "states")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dds", "cds"])
def test_delta_denoising(folder, close, model, method):
    unet, schedule = model
    v = load(folder, "traj_dds")
    texts = editors.Texts(*(jnp.asarray(v[n]) for n in ("c_source", "c_target", "c_empty")))
    more = {}
    if method == "cds":
        more = dict(feature_weight=3.0, ids=ids_of(load(folder, "traj_cds"), ""))
    run = jax.jit(
        lambda z: editors.delta_denoising(
            unet, z, schedule, texts, jnp.asarray(v["timesteps"]),
            nhwc(v["eps"])[:, None], rate=0.01, **more,
        )
    )  # fmt: skip
    _, states, told = run(nhwc(v["z0"])[None])
    close(nchw(states)[:, 0], f"traj_{method}", "states")
    close(told["score"][:, 0], f"traj_{method}", "dds_grad_norm")
    if method == "cds":
        both = jnp.stack([told["feature"], told["gradient"]], -1)[:, 0]
        close(both, "traj_cds", "cut_loss_and_grad_norm")


def test_edit_direction(folder, close):
    v = load(folder, "edit_direction")
    tokenize = tokenizer.load(folder / "model" / "tokenizer")
    module, params = diffusers.load_text_encoder(folder / "model" / "text_encoder")
    said = json.loads((folder / "params.json").read_text())
    np.testing.assert_array_equal(tokenize(said["source_sentences"]), v["source_ids"])
    np.testing.assert_array_equal(tokenize(said["target_sentences"]), v["target_ids"])

    encode = text_directions.Encoder(module, params, tokenize)
    delta = text_directions.direction(encode, said["source_sentences"], said["target_sentences"])
    close(delta, "edit_direction", "delta_c")
    np.testing.assert_array_equal(delta[0], 0)
    close(encode([said["source_prompt"]])[0] + delta, "edit_direction", "c_hat")


@pytest.mark.parametrize("kind", ["next", "current"])
@pytest.mark.parametrize("finer", [100, 999])
def test_a_finer_inversion_passes_the_levels_of_sampling(kind, finer):
    schedule = ddim.LatentSchedule(schedules.scaled_linear().alpha_bar)
    down, up = ddim.sampling(schedule, 50), ddim.inversion(schedule, finer, kind)
    at = ddim.shared(schedule, 50, finer, kind)
    assert at[0] == 0 and len(at) == 51
    # By the level that a state has reached, not that of its prediction.
    np.testing.assert_array_equal(up.end[at[1:] - 1], down.start[::-1])
    # Predicting no noise, both ways come to the same states.
    x = jnp.ones((1, 2, 2, 4))
    _, states = ddim.run(x, up, lambda x, t: jnp.zeros_like(x))
    _, coarse = ddim.run(x, ddim.inversion(schedule, 50), lambda x, t: jnp.zeros_like(x))
    np.testing.assert_allclose(states[at], coarse, rtol=1e-4)


@pytest.mark.parametrize("offset", [0, 1, 2])
@pytest.mark.parametrize("steps", [7, 30, 50, 998])
def test_an_inversion_of_other_levels_is_told_those_that_pass(offset, steps):
    schedule = ddim.LatentSchedule(schedules.scaled_linear().alpha_bar, offset)
    for kind in ("next", "current"):
        with pytest.raises(ValueError, match=f"does not pass the levels of {steps} samp") as error:
            ddim.shared(schedule, steps, steps - 1, kind)
        named = str(error.value).split("take one of ")[1].split(", ")
        assert all(len(ddim.shared(schedule, steps, int(n), kind)) == steps + 1 for n in named)


def test_p2p0_has_moves_and_no_finer_ones():
    schedule = ddim.LatentSchedule(schedules.scaled_linear().alpha_bar)
    for steps in (1, 2):
        with pytest.raises(ValueError, match="nothing is inverted; take at least 3 steps"):
            ddim.inversion(schedule, steps, "p2p0")
    assert len(ddim.inversion(schedule, 3, "p2p0").t) == 1
    with pytest.raises(ValueError, match="set it to None, or take edit.inversion=next"):
        ddim.shared(schedule, 50, 999, "p2p0")


def test_levels_beyond_the_schedule_are_refused():
    schedule = ddim.LatentSchedule(schedules.scaled_linear().alpha_bar, offset=20)
    with pytest.raises(ValueError, match=r"50 steps from level 20 on .* end at level 1000, and"):
        ddim.sampling(schedule, 50)


def test_a_network_may_predict_the_clean_latent():
    a = schedules.scaled_linear().alpha_bar
    z, e = jax.random.normal(jax.random.key(0), (2, 1, 4, 4, 4))
    x = schedules.perturb(z, e, a[500])
    for prediction, out in (
        ("epsilon", e),
        ("sample", z),
        ("v_prediction", np.sqrt(a[500]) * e - np.sqrt(1 - a[500]) * z),
    ):
        got = ddim.to_eps(ddim.LatentSchedule(a, prediction=prediction), x, out, 500)
        np.testing.assert_allclose(got, e, atol=1e-5)
