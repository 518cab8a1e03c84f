"""Data: sources of images, decoding, and batches.

Names are imported on first use, so that `import cdsde.data` is fast and needs neither Grain nor
TFDS.
"""

import importlib

_MODULE_OF = {
    "Reading": "images",
    "BrokenImage": "images",
    "TooLargeImage": "images",
    "decode": "images",
    "resize": "images",
    "to_float": "images",
    "to_uint8": "images",
    "told_by": "images",
    "told_by_whole": "images",
    "write_png": "images",
    "contact_sheet": "contact_sheets",
    "list_images": "folders",
    "EmbeddedSource": "embedded",
    "FilesSource": "sources",
    "FolderSource": "sources",
    "JoinedSource": "domains",
    "Source": "sources",
    "metadata": "embedded",
    "all_captions": "sources",
    "captions": "sources",
    "content": "sources",
    "image_id": "sources",
    "open_domain": "domains",
    "open_pairs": "domains",
    "TfdsSource": "tfds",
    "train_iterator": "loader",
    "eval_batches": "loader",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"cdsde.data.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'cdsde.data' has no attribute '{name}'")


def __dir__():
    return __all__
