"""How far two artifacts of one network are from each other on a split, and on which images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from gft_edge.bundle.reports import FidelityReport
from gft_edge.bundle.specs import ModelSpec
from gft_edge.datasets import Split
from gft_edge.errors import FailedError
from gft_edge.fidelity.compare import NO_BOUND, compare, image_overlaps
from gft_edge.fidelity.verify import Reference, split_outputs
from gft_edge.reporting.pictures import kept_patches, sheet
from gft_edge.runtime.classifier import Advance, Classifier, load_pixels
from gft_edge.runtime.outputs import Outputs, grid_positions

PICTURED = 12
PICTURED_WHERE_ALL_AGREE = 4
PICTURE_PX = 192


@dataclass(frozen=True)
class Disagreement:
    """An image that the two classify differently: its own label, theirs, the overlap a stage."""

    path: str
    label: str
    reference: str
    candidate: str
    kept_overlap: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """What both gave for every image of a split. `overlaps` (images, stages) are Jaccard overlaps."""

    split: Split
    reference: Outputs
    candidate: Outputs
    fidelity: FidelityReport
    overlaps: npt.NDArray[np.float64]

    def by_overlap(self) -> list[int]:
        """Every image's index, least overlap first: at the last stage, then at those before it."""
        return sorted(range(len(self.overlaps)), key=lambda i: tuple(self.overlaps[i][::-1]))

    def disagreements(self) -> list[Disagreement]:
        """The images classified differently, least overlap first."""
        return [self._row(i) for i in self.by_overlap() if self._differs(i)]

    def pictured(self) -> list[int]:
        """The images worth a look: where the two disagree, or else where kept patches differ most."""
        order = self.by_overlap()
        differing = [i for i in order if self._differs(i)]
        return differing[:PICTURED] or order[:PICTURED_WHERE_ALL_AGREE]

    def picture(self, model: ModelSpec) -> Image.Image:
        """A sheet with a row for each pictured image: itself, then per stage what A and B kept of it.

        A is the reference, B the candidate. Raises ImageError.
        """
        scale = max(1, PICTURE_PX // model.preprocessing.image_size_px)
        stages = list(
            zip(
                grid_positions(self.reference.kept),
                grid_positions(self.candidate.kept),
                strict=True,
            )
        )
        rows = []
        for i in self.pictured():
            pixels = load_pixels(
                self.split.paths[i], model.preprocessing, self.split.crop_bottom_px
            )
            shown = [np.arange(model.patch_count), *(side[i] for both in stages for side in both)]
            row = self._row(i)
            overlaps = " / ".join(f"{overlap:.2f}" for overlap in row.kept_overlap)
            rows.append(
                (
                    f"{row.label}, A: {row.reference}, B: {row.candidate}, overlap {overlaps}",
                    [kept_patches(pixels, kept, model.patch_grid, scale) for kept in shown],
                )
            )
        sides = [f"{side} stage {n + 1}" for n in range(len(stages)) for side in "AB"]
        return sheet(rows, ["image", *sides])

    def _differs(self, image: int) -> bool:
        return bool(self.reference.logits[image].argmax() != self.candidate.logits[image].argmax())

    def _row(self, image: int) -> Disagreement:
        labels = self.split.labels
        return Disagreement(
            path=str(self.split.paths[image]),
            label=labels[self.split.targets[image]],
            reference=labels[int(self.reference.logits[image].argmax())],
            candidate=labels[int(self.candidate.logits[image].argmax())],
            kept_overlap=tuple(map(float, self.overlaps[image])),
        )


def compare_on_split(
    reference: Reference, candidate: Classifier, split: Split, advance: Advance | None = None
) -> Comparison:
    """Run both on every image of a split and compare them; nothing is a failure but NaN.

    `candidate` is loaded with `kept`, `reference` is of the same network. Raises ImageError, and
    FailedError where logits hold NaN or infinity.
    """
    ours, theirs = split_outputs(candidate, split, advance, reference)
    assert theirs is not None
    for name, outputs in (("A (the reference)", theirs), ("B (the candidate)", ours)):
        broken = np.flatnonzero(~np.isfinite(outputs.logits).all(axis=1))
        if broken.size:
            raise FailedError(
                f"the logits of {name} hold NaN or infinity on {broken.size} of {len(outputs)} "
                f"images, first on {split.paths[broken[0]]}: run gft-edge verify on the bundle, or "
                "export it anew"
            )
    overlaps = [
        image_overlaps(x, y)
        for x, y in zip(grid_positions(theirs.kept), grid_positions(ours.kept), strict=True)
    ]
    return Comparison(
        split=split,
        reference=theirs,
        candidate=ours,
        fidelity=compare("compare", theirs, ours, NO_BOUND, split.targets),
        overlaps=np.stack(overlaps, axis=1) if overlaps else np.zeros((len(ours), 0)),
    )
