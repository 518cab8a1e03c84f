"""Colour profiles (ICC): pixels become sRGB, which is what networks take and results are."""

import io

import numpy as np
from absl import logging
from PIL import Image, ImageCms

# Pillow's mode of the pixels that a profile of each colour space describes.
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
# A profile that changes no value by more than this many levels is sRGB but for rounding.
ROUNDING = 2


def to_srgb(image: Image.Image, profile: bytes, name: str) -> Image.Image:
    """The image in sRGB; unchanged where the profile is sRGB.

    Args:
      image: 8 bits a channel, any mode.
      profile: the ICC profile of its pixels.
      name: name of the image in the warning that its profile cannot be used.

    Returns:
      An image of mode RGB, or RGBA where `image` has transparency.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = MODES[source.profile.xcolor_space.strip()]
        if (image.mode == "CMYK") != (mode == "CMYK"):
            raise ValueError(f"a profile of {mode} with pixels of {image.mode}")
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode != "CMYK" and _is_srgb(transform, mode):
            return image
        if mode == "L" and image.convert("RGB").convert("L").convert("RGB") != image.convert("RGB"):
            raise ValueError("a profile of grey with pixels of colour")
        result = ImageCms.applyTransform(image.convert(mode), transform)
    except (ImageCms.PyCMSError, KeyError, OSError, ValueError) as error:
        logging.warning(
            "the colour profile of '%s' cannot be used (%s); its colours are taken for sRGB",
            name,
            error,
        )
        return image
    assert result is not None
    if image.has_transparency_data:
        result.putalpha(image.convert("RGBA").getchannel("A"))
    return result


def _is_srgb(transform, mode: str) -> bool:
    """Whether a transform to sRGB leaves every value of a sample as it is, but for rounding."""
    values = np.linspace(0, 255, 9).round().astype(np.uint8)
    if mode == "RGB":
        sample = np.stack(np.meshgrid(values, values, values), -1).reshape(1, -1, 3)
    else:
        sample = np.arange(256, dtype=np.uint8)[None]
    image = Image.fromarray(sample)
    moved = np.asarray(ImageCms.applyTransform(image, transform), np.int32)
    return np.abs(moved - np.asarray(image.convert("RGB"), np.int32)).max() <= ROUNDING
