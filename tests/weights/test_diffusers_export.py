"""Score networks go out as pipelines of diffusers, and come back."""

import diffusers_steps
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import one_sentence, random_params
from network_helpers import SMALL_ADM, SMALL_DDPM, error, noise, randomised

from cdsde.networks import ADMUNet, DDPMUNet, build
from cdsde.weights import exchange, exported, resolve
from cdsde.weights.diffusers import schedule
from cdsde.weights.formats import diffusers_unet, unet2d_of

pytestmark = pytest.mark.usefixtures("exact_products", "compile_quickly")
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 100,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 2e-2,
}
T = jnp.asarray([3.0, 97.0])
NETWORKS = {
    "ddpm": DDPMUNet(**SMALL_DDPM | {"channel_mult": (1, 2, 2)}),
    "adm": ADMUNet(**SMALL_ADM, out_channels=3),
    "adm by convolutions, of classes": ADMUNet(
        **SMALL_ADM | {"num_res_blocks": 2, "num_head_channels": -1},
        num_heads=1,
        resblock_updown=False,
        new_attention_order=True,
        use_scale_shift_norm=False,
        num_classes=3,
    ),
}


REPEATS = {"adm", "adm by convolutions, of classes"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in REPEATS else n for n in NETWORKS],
)
def test_a_written_network_is_the_same(name, tmp_path):
    network = NETWORKS[name]
    y = {"y": jnp.asarray([2, 0])} if getattr(network, "num_classes", None) else {}
    x = np.moveaxis(noise(1, 0, (2, 3, 8, 8)), 1, -1)
    params = randomised(network, x, **y)
    fields, converted = unet2d_of.of_network(network, params)
    learned = {"variance_type": "learned_range" if network.out_channels == 6 else "fixed_small"}
    diffusers_unet.write(tmp_path, fields, converted, SCHEDULER | learned, 8)
    found = diffusers_unet.read(tmp_path)
    same = jax.tree.map(np.array_equal, converted, jax.tree.map(np.asarray, found.params))
    assert all(jax.tree.leaves(same))
    expected = jax.jit(network.apply)(params, x, T, **y)
    got = jax.jit(diffusers_unet.module(found.fields).apply)(found.params, x, T, **y)
    assert error(got, np.asarray(expected)) < 1e-5
    if isinstance(network, DDPMUNet):
        again, back = unet2d_of.to_ddpm(found.fields, found.params, network.image_size)
        assert again == network
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, back, params)))


OTHERS = [
    (ADMUNet(**SMALL_ADM | {"channel_mult": (2, 2)}), "channel_mult begins with 2"),
    (ADMUNet(**SMALL_ADM, resblock_updown=False, conv_resample=False), "conv_resample are False"),
    (ADMUNet(**SMALL_ADM, group_channels=2), "group_channels is 2, which gives 16 to 32 groups"),
    (
        ADMUNet(**SMALL_ADM | {"attention_factors": (1,), "num_head_channels": -1}, num_heads=2),
        "num_heads is 2 in levels of 32 to 64 channels",
    ),
    (DDPMUNet(**SMALL_DDPM, resamp_with_conv=False), "conv_resample is False"),
]


@pytest.mark.parametrize(("network", "told"), OTHERS, ids=[told[:20] for _, told in OTHERS])
def test_a_network_that_diffusers_has_not_is_refused(network, told):
    params = randomised(network, jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match=told) as caught:
        unet2d_of.of_network(network, params)
    assert one_sentence(str(caught.value))


def test_another_network_does_not_become_ddpms(golden):
    found = diffusers_unet.read(golden / "pixel" / "diffusers" / "b_train_unconditional")
    with pytest.raises(ValueError, match="flip_sin_to_cos is True, and DDPM's network"):
        unet2d_of.to_ddpm(found.fields, found.params, 16)


# --- the export of the program ---

ADM = {"score.patch_size": 1, "score.channels": 32, "score.group_channels": 1}
DDPM = {"score.arch": "ddpm", "score.patch_size": 1, "score.channels": 32}


def task_of(tiny, tmp_path, **changes):
    config = tiny(method="sdedit", **{k.replace(".", "__"): v for k, v in changes.items()})
    path = tmp_path / "score.safetensors"
    params = random_params(config, "score")
    exported.save(path, config, "score", params, {})
    config.weights.score = str(path)
    with config.unlocked():
        config.export.format = "diffusers"
    return config, exchange.export_weights(config, tmp_path / "work")


SCORES = [
    ADM | {"score.prediction": "v", "score.learn_sigma": False},
    ADM | {"score.learn_sigma": True, "score.prediction": "eps", "sde.schedule": "cosine"},
    DDPM | {"score.prediction": "eps"},
]


@pytest.mark.parametrize("changes", SCORES, ids=("v", "learned variance", "ddpm"))
def test_the_program_exports_a_pipeline(tiny, tmp_path, changes):
    config, folder = task_of(tiny, tmp_path, **changes)
    assert folder == tmp_path / "work" / "export" / "score"
    found = diffusers_unet.read(folder)
    assert found.path["output"] == changes["score.prediction"]
    alpha_bar = np.float32(found.path["time"]["alpha_bar"])
    np.testing.assert_allclose(alpha_bar, build.schedule_of(config).alpha_bar, rtol=5e-7)
    params, _ = resolve.load(config, tmp_path / "work", "score")
    x = np.moveaxis(noise(1, 0, (2, 3, 16, 16)), 1, -1)
    expected = build.score_module(config).apply(params, x, T)
    got = diffusers_unet.module(found.fields).apply(found.params, x, T)
    assert error(got, np.asarray(expected)) < 1e-5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (ADM | {"score.patch_size": 2}, "config.score.patch_size is 2"),
        (ADM | {"score.fourier": (3,)}, r"config.score.fourier is \(3,\)"),
        (ADM | {"score.channel_mult": (1, 2), "score.resblock_updown": True,
                "score.group_channels": 4},
         "score network cannot be exported to diffusers: group_channels is 4"),
        ({"export.stage": "encoder"}, "config.export.stage is encoder"),
    ],
)  # fmt: skip
def test_what_the_program_cannot_export_is_told(tiny, tmp_path, changes, told):
    with pytest.raises(ValueError, match=told) as caught:
        task_of(tiny, tmp_path, **changes)
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize("changes", SCORES, ids=("v", "learned variance", "ddpm"))
def test_diffusers_opens_the_pipeline_and_agrees(tiny, tmp_path, changes):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    config, folder = task_of(tiny, tmp_path, **changes)
    pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
    x = noise(1, 0, (2, 3, 16, 16))
    with torch.no_grad():
        theirs = pipeline.unet(torch.from_numpy(x), torch.tensor([3.0, 97.0])).sample.numpy()
    params, _ = resolve.load(config, tmp_path / "work", "score")
    ours = build.score_module(config).apply(params, np.moveaxis(x, 1, -1), T)
    assert error(ours, np.moveaxis(theirs, 1, -1)) < 1e-5
    np.testing.assert_allclose(
        pipeline.scheduler.alphas_cumprod.numpy(), build.schedule_of(config).alpha_bar, rtol=5e-7
    )
    # The pipeline's pictures are those of our network by the same steps with the same noise.
    draws = torch.Generator().manual_seed(5)
    pictures = pipeline(2, generator=draws, num_inference_steps=5, output_type="np").images
    draws = torch.Generator().manual_seed(5)
    again = [torch.randn((2, 3, 16, 16), generator=draws).numpy() for _ in range(5)]
    scheduler = schedule.read_scheduler(folder / "scheduler")
    levels = schedule.timesteps(scheduler, 5)
    x, *noises = (np.moveaxis(draw, 1, -1) for draw in again)
    for t, before, z in zip(levels, np.append(levels[1:], -1), [*noises, None], strict=True):
        output = build.score_module(config).apply(params, x, jnp.full(2, float(t)))
        x, _ = diffusers_steps.ddpm(scheduler, x, np.asarray(output), t, before, z)
        x = np.float32(x)
    np.testing.assert_allclose(pictures, np.clip(x / 2 + 0.5, 0, 1), atol=5e-5)
