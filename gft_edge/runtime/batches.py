"""Images through a session in its static batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.specs import InputSpec, Preprocessing
from gft_edge.runtime.backends import Session
from gft_edge.runtime.outputs import Outputs, concatenate
from gft_edge.runtime.preprocess import batch_from_pixels

# Told how many more images are done.
Advance = Callable[[int], None]


def session_outputs(
    session: Session,
    pixels: npt.NDArray[np.uint8],
    given: InputSpec,
    preprocessing: Preprocessing,
    advance: Advance | None = None,
) -> Outputs:
    """Run uint8 (images,S,S,3) through a session in its static batch."""
    batches = (batch for batch, _ in static_batches(pixels, given, preprocessing))
    # One batch has no other to be in flight with: the plain call takes a tenth of a millisecond less.
    one = len(pixels) <= given.batch
    runs = map(session.run, batches) if one else (f.outputs for f in session.run_many(batches))
    results: list[Outputs] = []
    for start, outputs in zip(range(0, len(pixels), given.batch), runs, strict=True):
        count = min(given.batch, len(pixels) - start)
        results.append(Outputs(outputs[0][:count], tuple(kept[:count] for kept in outputs[1:])))
        if advance is not None:
            advance(count)
    return results[0] if len(results) == 1 else concatenate(results)


def static_batches(
    pixels: npt.NDArray[np.uint8], given: InputSpec, preprocessing: Preprocessing
) -> Iterator[tuple[npt.NDArray[Any], int]]:
    """uint8 (images,S,S,3) -> what the graph takes, and how many images each batch holds.

    The last batch is padded with its last image.
    """
    for start in range(0, len(pixels), given.batch):
        part = pixels[start : start + given.batch]
        batch: npt.NDArray[Any] = batch_from_pixels(part, preprocessing, given.dtype)
        short = given.batch - len(part)
        if short:
            batch = np.concatenate([batch, np.repeat(batch[-1:], short, axis=0)])
        yield batch, len(part)
