"""The published architectures with readable weights, and the properties of each."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cdsde.networks import (
    ADMEncoder,
    ADMUNet,
    CUTGenerator,
    DDPMUNet,
    PatchDiscriminator,
    PatchSampler,
)
from cdsde.networks.features.dino import DINO
from cdsde.networks.features.efficientnet import EfficientNetLite0
from cdsde.networks.features.inception import InceptionV3
from cdsde.networks.features.lpips import LPIPSVGG, LPIPSAlex, LPIPSSqueeze
from cdsde.networks.features.vgg import FirstLayers
from cdsde.weights.torch import layouts

StateDict = Mapping[str, Any]  # published names to arrays, or to anything with a shape


class Kind(NamedTuple):
    """Properties of one published architecture.

    Attributes:
      network: the linen class.
      infer: `(state dict, known fields) -> constructor fields`.
      module_name: path of a module, joined with dots -> its published name.
      pointwise: published module name -> number of trailing ones in its weight's shape.
      inputs: `(network, state dict) -> (arguments, keyword arguments)` of the network's `init`.
      prefixes: key prefixes that a state dict of this kind must contain.
      rename: published state dict -> the entries that the network needs, under its names.
      supplement: file of `cdsde/assets/features` with entries that a state dict may lack.
      constants: state dict of the parameters -> constants that a published file also contains.
      plain: whether the published file is made of dense tensors, readable without PyTorch.
    """

    network: type
    infer: Callable[[StateDict, Mapping[str, Any]], dict[str, Any]]
    module_name: Callable[[str], str]
    pointwise: Callable[[str], int]
    inputs: Callable[[Any, StateDict], tuple[tuple, dict]]
    prefixes: tuple[str, ...]
    rename: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda state_dict: state_dict
    supplement: str | None = None
    constants: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda state_dict: {}
    plain: bool = False


def contains(state_dict: Mapping[str, Any], spec: Kind) -> bool:
    """Whether a state dict has all key prefixes of a kind."""
    state_dict = spec.rename(state_dict)
    return all(layouts.has_prefix(state_dict, prefix) for prefix in spec.prefixes)


def of_name(kind: str) -> Kind:
    """The kind with a name of `KINDS`.

    Raises:
      ValueError: unknown name.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of weights '{kind}': choose from {', '.join(KINDS)}.")
    return KINDS[kind]


def _noisy_inputs(stem: str, network: Any, state_dict: StateDict) -> tuple[tuple, dict]:
    """Image with the input channels of `stem`, the first convolution; time index; class label."""
    channels = state_dict[stem].shape[1] if stem in state_dict else 3
    side = getattr(network, "image_size", 2 ** (len(network.channel_mult) - 1))
    x = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    conditional = getattr(network, "num_classes", None) is not None
    return (x, 0), {"y": jax.ShapeDtypeStruct((1,), jnp.int32)} if conditional else {}


def _image_inputs(count: int, network: Any, state_dict: StateDict) -> tuple[tuple, dict]:
    """`count` images."""
    return count * (jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32),), {}


def _map_inputs(network: Any, state_dict: StateDict) -> tuple[tuple, dict]:
    """For each MLP a feature map with its input channels, and a position."""
    count = len({key.split(".")[0] for key in state_dict})
    widths = [state_dict[f"mlp_{n}.0.weight"].shape[1] for n in range(count)]
    maps = [jax.ShapeDtypeStruct((1, 1, 1, width), jnp.float32) for width in widths]
    return (maps, [jax.ShapeDtypeStruct((1,), jnp.int32)] * count), {}


_ADM = {
    "module_name": layouts.dotted_name,
    "pointwise": layouts.adm_pointwise,
    "inputs": functools.partial(_noisy_inputs, "input_blocks.0.0.weight"),
}
_CUT = {
    "module_name": layouts.dotted_name,
    "pointwise": lambda module: 0,
    "rename": layouts.without_blurs,
    "plain": True,
}
_FEATURES = {
    "infer": lambda state_dict, known: {},
    "pointwise": lambda module: 0,
    "plain": True,
}


def _lpips(network: Any, name: str, *prefixes: str) -> Kind:
    """LPIPS on a network whose file has names that begin so; its linear heads are shipped."""
    return Kind(
        network=network,
        module_name=layouts.dotted_name,
        inputs=functools.partial(_image_inputs, 2),
        prefixes=prefixes,
        rename=functools.partial(layouts.rename_lpips, network.slices),
        supplement=f"lpips_{name}.safetensors",
        **_FEATURES,
    )


KINDS = {
    "adm": Kind(
        network=ADMUNet,
        infer=layouts.infer_adm,
        prefixes=("input_blocks.", "output_blocks."),
        **_ADM,
    ),
    "adm_encoder": Kind(
        network=ADMEncoder,
        infer=layouts.infer_adm_encoder,
        prefixes=("input_blocks.", "I2Iout."),
        **_ADM,
    ),
    "ddpm": Kind(
        network=DDPMUNet,
        infer=layouts.infer_ddpm,
        module_name=layouts.ddpm_name,
        pointwise=layouts.ddpm_pointwise,
        inputs=functools.partial(_noisy_inputs, "conv_in.weight"),
        prefixes=("temb.", "down."),
    ),
    "cut_generator": Kind(
        network=CUTGenerator,
        infer=layouts.infer_cut_generator,
        inputs=functools.partial(_image_inputs, 1),
        prefixes=("model.1.", "model.12.conv_block."),
        constants=layouts.cut_generator_blurs,
        **_CUT,
    ),
    "cut_discriminator": Kind(
        network=PatchDiscriminator,
        infer=layouts.infer_cut_discriminator,
        inputs=functools.partial(_image_inputs, 1),
        prefixes=("model.0.", "model.3."),
        constants=layouts.cut_discriminator_blurs,
        **_CUT,
    ),
    "cut_patch_sampler": Kind(
        network=PatchSampler,
        infer=layouts.infer_cut_patch_sampler,
        inputs=_map_inputs,
        prefixes=("mlp_0.",),
        **{**_CUT, "module_name": layouts.patch_sampler_name},
    ),
    "inception": Kind(
        network=InceptionV3,
        module_name=lambda module: module,
        inputs=functools.partial(_image_inputs, 1),
        prefixes=("Conv2d_1a_3x3.", "Mixed_5b."),
        rename=layouts.without_counters,
        **_FEATURES,
    ),
    "efficientnet_lite0": Kind(
        network=EfficientNetLite0,
        module_name=layouts.efficientnet_name,
        inputs=functools.partial(_image_inputs, 1),
        prefixes=("_conv_stem.", "_blocks."),
        rename=layouts.without_counters,
        **_FEATURES,
    ),
    "dino_vitb8": Kind(
        network=DINO,
        module_name=lambda module: module,
        inputs=functools.partial(_image_inputs, 1),
        prefixes=("patch_embed.", "blocks."),
        **_FEATURES,
    ),
    "vgg": Kind(
        network=FirstLayers,
        module_name=lambda module: module.removeprefix("layer_"),
        inputs=functools.partial(_image_inputs, 1),
        prefixes=("0.", "2."),
        rename=lambda state_dict: {k: state_dict[k] for k in state_dict if k[:2] in ("0.", "2.")},
        **_FEATURES,
    ),
    # SqueezeNet has slice2.3.squeeze where AlexNet has slice2.3.weight.
    "lpips_alex": _lpips(LPIPSAlex, "alex", "slice1.0.", "slice2.3.", "slice2.3.weight"),
    "lpips_vgg": _lpips(LPIPSVGG, "vgg", "slice1.0.", "slice1.2."),
    "lpips_squeeze": _lpips(LPIPSSqueeze, "squeeze", "slice1.0.", "slice2.3.squeeze."),
}
