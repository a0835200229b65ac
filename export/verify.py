"""PyTorch's own outputs as the reference, and the gate each exported graph has to pass."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from gft_edge.bundle.images import ImageSet
from gft_edge.bundle.reports import FidelityReport
from gft_edge.bundle.specs import Preprocessing
from gft_edge.errors import GateError
from gft_edge.model.gft import recorded_scores, selection_reaches_logits
from gft_edge.model.networks import Network
from gft_edge.runtime.classifier import load_pixels
from gft_edge.runtime.outputs import Outputs, concatenate
from gft_edge.runtime.preprocess import batch_from_pixels

REFERENCE_BATCH = 16


def pixels_of(images: ImageSet, spec: Preprocessing) -> npt.NDArray[np.uint8]:
    """The images preprocessed, uint8 (images,S,S,3). Raises ImageError."""
    return np.stack([load_pixels(path, spec, images.crop_bottom_px) for path in images.paths])


def torch_outputs(
    model: Network,
    pixels: npt.NDArray[np.uint8],
    spec: Preprocessing,
    advance: Callable[[int], None] | None = None,
) -> Outputs:
    """What the network itself gives for uint8 (images,S,S,3), ranks included."""
    batches = []
    with torch.inference_mode(), recorded_scores(model) as scores:
        for start in range(0, len(pixels), REFERENCE_BATCH):
            part = pixels[start : start + REFERENCE_BATCH]
            images = torch.from_numpy(batch_from_pixels(part, spec, "float32"))
            scores.clear()
            logits, kept = model.forward_with_kept(images)
            ranks = [score.argsort(dim=1, descending=True).argsort(dim=1) for _, score in scores]
            batches.append(
                Outputs(
                    logits.numpy(),
                    tuple(chosen.numpy() for chosen in kept),
                    tuple(rank.numpy() for rank in ranks),
                )
            )
            if advance is not None:
                advance(len(part))
    return concatenate(batches)


def refuse_inert_selection(
    model: Network, pixels: npt.NDArray[np.uint8], spec: Preprocessing, keeps_all: bool = False
) -> None:
    """Raise GateError when some stage's choice of patches cannot change any logit.

    Such a stage looks deployed and is not: a graph optimiser would delete it as dead code. With
    `keeps_all` one may still keep all the patches there are.
    """
    if not model.selections:
        return
    left = model.backbone.patch_embed.num_patches
    choosing = []
    for number, selection in enumerate(model.selections, start=1):
        choosing.append(selection.keep < left)
        if not choosing[-1] and not keeps_all:
            raise GateError(
                f"stage {number} keeps all {left} patches there are: leave it out, keep fewer, or "
                "name these counts with --keep to export it as it is"
            )
        left = selection.keep
    images = torch.from_numpy(batch_from_pixels(pixels[:4], spec, "float32"))
    reached = zip(choosing, selection_reaches_logits(model, images), strict=True)
    for number, (chooses, reaches) in enumerate(reached, start=1):
        if chooses and not reaches:
            raise GateError(
                f"stage {number} is inert: keeping the worst patches in place of the best changes "
                "no logit. Train the network (a fresh GALA layer adds nothing), or move the stage "
                "before a block that attends to the kept patches"
            )


def gate(report: FidelityReport) -> FidelityReport:
    """The report itself, or GateError naming the stage and every bound it missed."""
    if report.failures:
        raise GateError(
            f"step {report.step!r} differs from PyTorch on {report.images} images: "
            f"{'; '.join(report.failures)}",
            "Nothing was written",
        )
    return report
