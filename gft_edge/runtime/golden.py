"""The golden file of a bundle: real images and what the export measured for them."""

from __future__ import annotations

import zipfile
import zlib

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.store import GOLDEN_FILE, Bundle
from gft_edge.errors import BundleError
from gft_edge.runtime.outputs import Outputs


def read_golden(bundle: Bundle) -> tuple[npt.NDArray[np.uint8], Outputs]:
    """The golden images and what the export measured for them. Raises BundleError."""
    path = bundle.folder / GOLDEN_FILE
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            kept = tuple(arrays[name] for name in bundle.manifest.kept_outputs)
            pixels, expected = arrays["images"], Outputs(arrays["logits"], kept)
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError(f"{path} holds no golden outputs ({error}): export it anew") from error
    model = bundle.manifest.model
    count, size = len(pixels), model.preprocessing.image_size_px
    shapes = {
        "images": (pixels.shape, (count, size, size, 3)),
        "logits": (expected.logits.shape, (count, len(model.labels))),
        **{
            name: (indices.shape, (count, stage.keep))
            for name, indices, stage in zip(
                bundle.manifest.kept_outputs, kept, model.stages, strict=True
            )
        },
    }
    for name, (shape, needed) in shapes.items():
        if shape != needed or not count:
            raise BundleError(f"{path}: {name} is {shape}, expected {needed}: export it anew")
    return pixels, expected
