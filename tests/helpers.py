"""What several tests need: networks of a few layers on 16² pictures, and weights for them."""

import contextlib
import json
import socket
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from cdsde import load_config
from cdsde.evaluate import extractors, realism
from cdsde.weights import exported, resolve
from cdsde.weights.torch import convert

FOLDER = Path(__file__).parent.parent / "configs" / "folder.py"
# Networks of a few layers on 16² pictures, and a report and a checkpoint every other moment.
TINY = {
    "data.image_size": 16,
    "score.patch_size": 1,
    "score.fourier": (),
    "score.channel_mult": (1,),
    "score.attention_resolutions": (),
    "train.batch_size": 8,
    "train.checkpoint_every": 2,
    "train.log_every": 1,
    "train.sample_every": 0,
    "train.score.warmup": 2,
    "train.encoder.warmup": 2,
    "train.classifier.warmup": 2,
    "sample.steps": 2,
}
for _stage in ("encoder", "classifier"):
    TINY |= {
        f"{_stage}.patch_size": 2,
        f"{_stage}.channels": 32,
        f"{_stage}.channel_mult": (1,),
        f"{_stage}.attention_resolutions": (),
    }
TINY |= {
    "cut.channels": 4,
    "cut.num_blocks": 5,
    "cut.discriminator_channels": 8,
    "cut.discriminator_layers": 1,
    "cut.patch_features": 8,
    "cut.num_patches": 16,
    "train.cut.epoch": 2,
}


def compile_cached(folder: str) -> None:
    """Compile in little time, and each program once for all processes."""
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()


def random_params(config, stage: str, seed: int = 0):
    """Parameters of which none is zero, so that every part of a network has a say."""
    r = np.random.default_rng(seed)

    def draw(path, shape):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return r.normal(centre, 0.2 / np.sqrt(max(1, len(shape.shape))), shape.shape).astype("f4")

    return jax.tree_util.tree_map_with_path(draw, resolve.shapes(config, stage))


def overrides(changes: dict) -> list[str]:
    """The changes as arguments of the command line."""
    return [f"--config.{key}={value}" for key, value in changes.items()]


def with_random_weights(folder, changes: dict, *stages: str) -> dict:
    """The changes of a config, and `weights.STAGE`: a file in the folder for each stage."""
    config = load_config(FOLDER, changes)
    weights = {}
    for stage in stages:
        weights[f"weights.{stage}"] = path = Path(folder) / f"{stage}.safetensors"
        exported.save(path, config, stage, random_params(config, stage), {})
    return changes | weights


def published_shapes(shapes, kind: str) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of a network's parameters, of what `jax.eval_shape` gives."""
    zeros = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes)
    named = convert.to_state_dict(zeros, kind)
    # Without CUT's blur kernels, which are constants.
    return {name: value.shape for name, value in named.items() if not name.endswith(".filt")}


def one_sentence(text: str) -> bool:
    return bool(text) and "\n" not in text and "Traceback" not in text


@contextlib.contextmanager
def no_new_programs():
    """Fails where anything is compiled inside."""
    compiled = []

    def listen(event: str, duration: float, **about):
        if event.endswith("backend_compile_duration"):
            compiled.append(about)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled, f"{len(compiled)} programs were compiled"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def files(folder) -> dict[str, int]:
    """Time of the last change of every file right in a folder, by name."""
    return {p.name: p.stat().st_mtime_ns for p in Path(folder).iterdir()}


def read_json(path):
    return json.loads(Path(path).read_text())


def quick_extractor(monkeypatch) -> extractors.Extractor:
    """A feature network that takes no time: three values of a picture's corners."""

    @jax.jit
    def apply(params, pictures):
        x = pictures.astype(jnp.float32) * params["scale"]
        return {"corners": jnp.stack([x[:, 0, 0, 0], x[:, -1, 0, 1], x[:, 0, -1, 2]], 1)}

    measure = realism.Measure({"FD": "corners"}, {"KD": "corners"}, {"corners": "corners"})
    monkeypatch.setitem(realism.MEASURES, "quick", measure)
    return extractors.Extractor("quick", apply, {"scale": jnp.float32(1 / 255)}, "00")
