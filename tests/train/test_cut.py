"""CUT's objective, steps and learning rate against the published code's, and its stage whole."""

import csv
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FOLDER, one_sentence, read_json

from cdsde import config as config_lib
from cdsde import data, load_config
from cdsde.data import inputs
from cdsde.evaluate import translations
from cdsde.runtime import records
from cdsde.train import cut, loop, state
from cdsde.translation import run as translation_run
from cdsde.weights import exchange
from cdsde.weights.torch import convert

KINDS = {
    "generator": ("G", "cut_generator"),
    "discriminator": ("D", "cut_discriminator"),
    "patch_sampler": ("F", "cut_patch_sampler"),
}
SLOW = ("cut_b2", "fastcut_flip_b1", "fastcut_noflip_b1", "cut_b1_xavier")
SCENARIOS = ["cut_b1"]
SCENARIOS += [pytest.param(name, marks=pytest.mark.slow) for name in SLOW]
RATE = 2e-4


def nhwc(x):
    return jnp.asarray(np.transpose(x, (0, 2, 3, 1)))


class Scenario:
    """One of the published runs: networks, initial weights, images, patches and coin."""

    def __init__(self, folder, name):
        self.name, self.folder = name, folder / "objective"
        xavier = "_xavier" if "xavier" in name else ""
        self.params, applies = {}, {}
        for part, (letter, kind) in KINDS.items():
            path = self.folder / f"init{xavier}_{letter}.pt"
            apply, self.params[part] = convert.load_torch(path, kind)
            applies[part] = apply
        layers = (0, 4, 8, 12, 16)
        generate = applies["generator"]
        self.networks = cut.Networks(
            generate=generate,
            encode=lambda p, x: generate(p, x, layers, encode_only=True),
            discriminate=applies["discriminator"],
            sample=applies["patch_sampler"],
        )
        config = load_config(FOLDER)
        method = "fastcut" if "fastcut" in name else "cut"
        self.settings = config_lib.gan_settings(config, method)
        self.training = config_lib.stage_training(config, "cut")
        self.arrays = dict(np.load(self.folder / f"{name}.npz"))
        draw = self.arrays.get
        self.a, self.b = nhwc(draw("real_A")), nhwc(draw("real_B"))
        self.ids = [draw(f"NCE_patch_ids_{n}") for n in range(5)]
        self.same_ids = [draw(f"NCE_Y_patch_ids_{n}") for n in range(5)]
        if not self.settings.identity:
            self.same_ids = self.ids
        self.flip = jnp.asarray("_flip" in name)

    def published(self, part, tree):
        named = convert.to_state_dict(tree, KINDS[part][1])
        return {k: v for k, v in named.items() if not k.endswith(".filt")}  # constants


@pytest.fixture(scope="module", params=SCENARIOS)
def scenario(request, golden):
    return Scenario(golden / "cut", request.param)


def relative(got, expected) -> float:
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def test_objective_and_gradients(scenario):
    s = scenario

    @jax.jit
    def whole(params):
        loss_d, values_d, for_d, finish = cut.gradients(
            s.networks, s.settings, params, s.a, s.b, s.ids, s.same_ids, s.flip
        )
        loss_g, values_g, grads = finish(params["discriminator"])
        return {"D": loss_d, "G": loss_g, **values_d, **values_g}, {**grads, "discriminator": for_d}

    values, grads = whole(s.params)
    names = {
        "D": "loss_D",
        "G": "loss_G",
        "discriminator_fake": "loss_D_fake",
        "discriminator_real": "loss_D_real",
        "gan": "loss_G_GAN",
        "nce": "loss_NCE",
        "nce_identity": "loss_NCE_Y",
    }
    assert set(values) >= set(names) - {"nce_identity"}
    for name, value in values.items():
        expected = s.arrays[f"obj/{names[name]}"]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7, err_msg=name)
    compared = 0
    for part, (letter, _) in KINDS.items():
        for name, gradient in s.published(part, grads[part]).items():
            expected = s.arrays[f"obj/grad/{letter}/{name}"]
            if _zero_by_construction(letter, name):
                assert np.abs(gradient).max() < 1e-4, name
                continue
            assert relative(gradient, expected) < 1e-4, (letter, name)
            compared += 1
    assert compared > 50


def _zero_by_construction(letter: str, name: str) -> bool:
    """A bias right before an instance norm, which no reader sees."""
    if not name.endswith(".bias"):
        return False
    if letter == "D":
        return name.split(".")[1] in ("3", "7", "11")
    return letter == "G" and (".conv_block." in name or name.split(".")[1] in ("1", "22", "26"))


@pytest.mark.slow
def test_patch_losses_of_each_layer(scenario):
    s = scenario
    fake, same = jax.jit(lambda g: cut.generate(s.networks, s.settings, g, s.a, s.b, s.flip))(
        s.params["generator"]
    )
    np.testing.assert_allclose(fake, nhwc(s.arrays["obj/fake_B"]), rtol=0, atol=3e-5)
    terms = [("NCE", s.a, fake, s.ids, s.flip)]
    if s.settings.identity:
        terms.append(("NCE_Y", s.b, same, s.same_ids, jnp.asarray(False)))
    both = s.params["generator"], s.params["patch_sampler"]
    for name, source, made, ids, flip in terms:
        _, each = cut.nce(s.networks, s.settings, *both, source, made, ids, flip)
        for n, patches in enumerate(each):
            expected = s.arrays[f"obj/{name}_patch_loss_{n}"]
            np.testing.assert_allclose(patches.ravel(), expected, rtol=2e-4, atol=2e-4)
            np.testing.assert_allclose(patches.mean(), expected.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "cut_b1",
        pytest.param("fastcut_flip_b1", marks=pytest.mark.slow),
        pytest.param("fastcut_noflip_b1", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_parameters_after_steps(golden, name):
    s = Scenario(golden / "cut", name)
    tx = state.each_part(state.optimiser(s.training))
    update = jax.jit(cut.make_update(s.networks, s.settings, s.training, tx))
    now = state.init_state(lambda key: s.params, tx, 0, lambda p: p["generator"])
    masks = dict(np.load(s.folder / f"{name}_masks.npz"))
    reported = read_json(s.folder / "losses.json")[name]["steps"]
    for step in (1, 2, 3):
        now, metrics = update(now, s.a, s.b, s.ids, s.same_ids, s.flip)
        for key, value in (("D", "discriminator"), ("G_GAN", "gan"), ("NCE", "nce"), ("G", "loss")):
            expected = reported[step - 1][key]
            tolerance = 1e-5 if step == 1 else 1e-4
            np.testing.assert_allclose(metrics[value], expected, rtol=tolerance)
        for part, (letter, _) in KINDS.items():
            path = s.folder / f"{name}_after{step}_{letter}.pt"
            if not path.exists():
                continue
            expected = convert.read_state_dict(path, plain=True)
            for key, value in s.published(part, now.params[part]).items():
                mask = masks[f"after{step}/{letter}/{key}"]
                off = np.abs(value - expected[key])[mask]
                assert off.max(initial=0) < 1e-4, (letter, key)
                assert np.count_nonzero(off > 0.05 * RATE) <= 0.01 * off.size, (letter, key)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(now.ema), jax.tree.leaves(now.params["generator"]), strict=True
        )
    ), "the last weights are what translates: there is no average"


def test_learning_rate_is_the_published_one(golden):
    published = read_json(golden / "cut" / "lr_schedule.json")
    for method in ("cut", "fastcut"):
        c = config_lib.stage_training(config_lib.base(), method)
        rate = state.learning_rate(c)
        listed = published[method]["lr_in_force_during_training_epoch_1_based"]
        assert len(listed) > 4
        for epoch, expected in listed.items():
            first = (int(epoch) - 1) * c.epoch
            for step in (first, first + c.epoch - 1):
                np.testing.assert_allclose(rate(jnp.asarray(step)), expected, rtol=2e-7)


def test_images_are_read_as_published(golden):
    with np.load(golden / "cut" / "pipeline.npz") as v:
        resized = data.resize(v["src_u8"], 36, filter="bicubic", fit="stretch")
        np.testing.assert_array_equal(resized, v["resized_u8"])
        for n in range(3):
            x, y = v[f"crop_pos_xy_{n}"]
            out = resized[y : y + 32, x : x + 32]
            out = out[:, ::-1] if v[f"flip_{n}"] else out
            np.testing.assert_allclose(
                data.to_float(out), v[f"out_{n}"].transpose(1, 2, 0), atol=1e-6
            )
        out = data.resize(v["src_u8"], 32, filter="bicubic", fit="stretch")
        np.testing.assert_allclose(
            data.to_float(out), v["out_test_time"].transpose(1, 2, 0), atol=1e-6
        )


class Numbered:
    """Pictures of 12 by 12 pixels whose colours tell where each is."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows, columns = np.meshgrid(np.arange(12), np.arange(12), indexing="ij")
        image = np.stack([10 * rows, 10 * columns, np.full((12, 12), index)], -1).astype(np.uint8)
        return {"image": image, "id": f"{index}"}


def test_crops_are_random_until_the_rate_decays():
    def batches(start, count):
        stream = data.train_iterator(
            [Numbered()], data.Reading(8), batch_size=3, seed=0, load_size=12, crop_until=4,
            flip=False, start=start,
        )  # fmt: skip
        return [next(stream)["image"] for _ in range(count)]

    whole = batches(0, 6)
    corners = {tuple(image[0, 0, :2]) for batch in whole[:4] for image in batch}
    assert len(corners) > 3
    for batch in whole[:4]:
        assert (np.diff(batch[..., 0].astype(int), axis=1) == 10).all(), "cut out, not scaled"
    whole_pictures = {data.resize(Numbered()[n]["image"], 8)[..., :2].tobytes() for n in range(3)}
    for batch in whole[4:]:
        assert {image[..., :2].tobytes() for image in batch} <= whole_pictures
    for a, b in zip(batches(3, 3), whole[3:], strict=True):
        np.testing.assert_array_equal(a, b)


def test_patches_are_drawn_once_each_and_anew():
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 5, 6, 3), (2, 20, 20, 8))]
    ids = cut.draw_ids(jax.random.key(0), shapes, 64)
    assert [len(set(np.asarray(i).tolist())) for i in ids] == [30, 64]
    assert max(np.asarray(ids[1])) < 400
    again = cut.draw_ids(jax.random.key(1), shapes, 64)
    assert not np.array_equal(again[1], ids[1])


@pytest.fixture
def small(tiny):
    """CUT of a few thousand parameters on 16² pictures."""

    def make(method="cut", **changes):
        return tiny(**{"method": method, **changes})

    return make


@pytest.mark.slow
@pytest.mark.usefixtures("compile_quickly")
def test_a_gan_resumes_exactly_and_runs_on_eight_devices(small, tmp_path, on_devices):
    def train(steps, name):
        # An epoch that does not end: the rate is constant.
        config = small(train__steps=steps, train__cut__epoch=100)
        return loop.train_stage(config, tmp_path / name, "cut")

    on_devices(1)
    whole = train(4, "whole")
    train(2, "cut")
    again = train(4, "cut")
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(a, b)
    # The first step's gradients, which the optimisers remember. After it weights may differ: Adam
    # makes whole steps of rounding noise where a gradient is zero.
    one = train(1, "one")
    on_devices(8)
    eight = train(1, "eight")
    one, eight = (
        [np.asarray(x) for x in jax.tree.leaves(s.opt_state) if x.ndim] for s in (one, eight)
    )
    largest = max(np.linalg.norm(x) for x in one)
    for a, b in zip(one, eight, strict=True):
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(a) + 1e-6 * largest
    first, same = (read_rows(tmp_path / n)[0] for n in ("one", "eight"))
    for name in ("loss", "discriminator", "nce"):
        assert first[name] == pytest.approx(same[name], rel=1e-5)


def read_rows(workdir) -> list[dict]:
    path = workdir / "logs" / "cut" / "metrics.csv"
    with path.open(newline="") as f:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(f)]


@pytest.mark.slow
@pytest.mark.usefixtures("compile_quickly")
@pytest.mark.parametrize("method", ["cut", "fastcut"])
def test_train_sample_eval(small, tmp_path, on_devices, monkeypatch, method):
    on_devices(2)
    config = small(method, train__steps=2, sample__split="val")
    loop.train(config, tmp_path)
    folder = translation_run.sample(config, tmp_path)
    made = sorted(p.name for p in folder.glob("*.png"))
    assert len(made) == 4  # three pictures and the sheet
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.png")}
    translation_run.sample(config, tmp_path)
    assert all((folder / n).stat().st_mtime_ns == t for n, t in before.items() if "sheet" not in n)
    results = translations.evaluate(config, tmp_path)
    assert results is None or math.isfinite(len(results))
    metrics = read_json(tmp_path / "eval" / method / "metrics.json")["metrics"]
    assert 0 < metrics["L2 to source"]["value"] < 100


def test_a_gan_of_two_sources(small, tmp_path):
    config = small(data__source="blue,yellow", data__target="yellow")
    with pytest.raises(ValueError, match="'blue,yellow'; cut is trained on one domain") as error:
        loop.train(config, tmp_path)
    assert one_sentence(str(error.value))


@pytest.mark.slow
@pytest.mark.usefixtures("compile_quickly")
def test_published_weights_come_in_translate_and_go_out(small, tmp_path, golden, on_devices):
    on_devices(1)
    published = golden / "cut" / "generator" / "resnet_6blocks.pt"
    changes = {"cut__channels": 8, "cut__num_blocks": 6, "weights__cut": published}
    config = small(sample__split="val", export__stage="cut", **changes)
    exchange.import_weights(config, tmp_path)
    config.weights.cut = None
    folder = translation_run.sample(config, tmp_path)
    apply, params = convert.load_torch(published, "cut_generator")
    name = next(p.name for p in folder.glob("*.png") if p.name != "sheet.png")
    source = inputs.open_input(config)
    (index,) = [j for j, n in enumerate(records.output_names(source.ids)) if n == name]
    x = data.to_float(data.resize(source[index]["image"], 16))[None]
    expected = data.to_uint8(apply(params, x))[0].astype(int)
    assert np.abs(expected - data.decode(folder / name)).max() <= 1
    config.export.path = str(tmp_path / "latest_net_G.safetensors")
    written = convert.read_state_dict(exchange.export_weights(config, tmp_path))
    original = convert.read_state_dict(published, plain=True)
    assert written.keys() == original.keys()
    assert all(np.array_equal(written[k], original[k]) for k in original)
