"""What a network itself gives in PyTorch: the reference for everything that is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gft_edge.bundle.images import ImageSet
from gft_edge.bundle.specs import Preprocessing
from gft_edge.model.gft import Selection
from gft_edge.model.network import Network
from gft_edge.runtime.classifier import load_pixels
from gft_edge.runtime.outputs import Outputs, concatenate
from gft_edge.runtime.preprocess import batch_from_pixels

BATCH = 16


def pixels_of(images: ImageSet, spec: Preprocessing) -> npt.NDArray[np.uint8]:
    """Load and preprocess the images: uint8 (images,S,S,3). Raises ImageError."""
    return np.stack([load_pixels(path, spec, images.crop_bottom_px) for path in images.paths])


def normalised_batches(pixels: npt.NDArray[np.uint8], spec: Preprocessing) -> list[torch.Tensor]:
    """Normalise uint8 (images,S,S,3) to float32 (B,3,S,S), at most BATCH at a time."""
    return [
        torch.from_numpy(batch_from_pixels(pixels[start : start + BATCH], spec, "float32"))
        for start in range(0, len(pixels), BATCH)
    ]


@contextmanager
def recorded_scores(model: Network) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """While open, each forward appends (grid positions, scores), (B,N) each, stage by stage."""
    record: list[tuple[Tensor, Tensor]] = []

    def note(selection: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(selection, Selection)
        record.append((given[3], selection.scores(*given)))

    with ExitStack() as stack:
        for selection in model.selections:
            stack.enter_context(selection.register_forward_pre_hook(note))
        yield record


def selection_reaches_logits(model: Network, images: Tensor) -> list[bool]:
    """Per stage, whether keeping the worst patches in place of the best changes any logit."""
    with torch.inference_mode():
        reference = model(images)
        reaches = []
        for selection in model.selections:
            selection.inverted = True
            reaches.append(not torch.equal(model(images), reference))
            selection.inverted = False
    return reaches


def torch_outputs(
    model: Network,
    pixels: npt.NDArray[np.uint8],
    spec: Preprocessing,
    advance: Callable[[int], None] | None = None,
) -> Outputs:
    """Run uint8 (images,S,S,3) through the network itself; ranks are part of what it gives."""
    results = []
    with torch.inference_mode(), recorded_scores(model) as scores:
        for images in normalised_batches(pixels, spec):
            scores.clear()
            logits, kept = model.forward_with_kept(images)
            ranks = [score.argsort(dim=1, descending=True).argsort(dim=1) for _, score in scores]
            results.append(
                Outputs(
                    logits.numpy(),
                    tuple(chosen.numpy() for chosen in kept),
                    tuple(rank.numpy() for rank in ranks),
                )
            )
            if advance is not None:
                advance(len(images))
    return concatenate(results)
