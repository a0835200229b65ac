"""How the graph of each step is held to PyTorch, and what the steps leave behind of themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch

from gft_edge.bundle.images import ImageSet
from gft_edge.bundle.manifest import Artifact
from gft_edge.bundle.reports import Change, FidelityReport, Tolerance
from gft_edge.bundle.specs import ModelSpec, Preprocessing, Progress, Say, counter
from gft_edge.errors import GateError, GftEdgeError, PipelineError
from gft_edge.export.graph import kept_names
from gft_edge.export.request import ExportRequest
from gft_edge.fidelity.compare import compare, low_floor, noise_floor_of
from gft_edge.fidelity.metrics import accuracy_of
from gft_edge.fidelity.noise_floor import NAMES, changed
from gft_edge.model.network import Network
from gft_edge.model.reference import pixels_of, selection_reaches_logits
from gft_edge.model.remembered import Remembered
from gft_edge.runtime.backends import backend_for, ort
from gft_edge.runtime.batches import session_outputs
from gft_edge.runtime.opening import open_request
from gft_edge.runtime.outputs import Outputs
from gft_edge.runtime.preprocess import batch_from_pixels


class Made(NamedTuple):
    """What a step made: the graph, what it gave for the images, and how far that is from PyTorch.

    OpenVINO's graph is a file, all others are in memory.
    """

    graph: onnx.ModelProto | Path
    outputs: Outputs
    report: FidelityReport


@dataclass(frozen=True)
class Trail:
    """What the steps so far leave to the manifest: their files, each the next one's parent, and reports."""

    files: tuple[Artifact, ...] = ()
    reports: tuple[FidelityReport, ...] = ()

    def then(
        self,
        name: str,
        kind: str,
        precision: str,
        sha256: str,
        report: FidelityReport | None = None,
    ) -> Trail:
        """Return the trail with one more file, and its report where it was measured."""
        parent = self.files[-1].sha256 if self.files else None
        file = Artifact(name, kind, precision, sha256, parent)
        return Trail((*self.files, file), (*self.reports, *([report] if report else [])))


class Steps:
    """The steps of one export as they pass: they tell progress, and a failure names those before it."""

    def __init__(self, progress: Progress, say: Say):
        self.progress, self.say = progress, say
        self._finished: list[str] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Name what runs inside: an unexpected failure becomes a PipelineError with the history."""
        self.progress(name, 0, 0)
        try:
            yield
        except PipelineError as error:
            raise PipelineError(str(error), step=name, finished=self._finished) from error
        # An OSError is the folder's (disk full, read-only), not the step's: `replacing` words it.
        except (GftEdgeError, OSError, MemoryError):
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise PipelineError(lines[0], step=name, finished=self._finished) from error
        self._finished.append(name)

    def counter(self, text: str, total: int) -> Callable[[int], None]:
        """Return a callback that reports how many of `total` are done."""
        return counter(self.progress, text, total)


@dataclass(frozen=True)
class Judge:
    """What an export asks for, the images that it is verified on, and PyTorch's outputs for them.

    `floor_of` gives PyTorch's outputs for the same images after a change, computed once.
    """

    spec: ModelSpec
    request: ExportRequest
    images: ImageSet
    pixels: npt.NDArray[np.uint8]
    reference: Outputs
    steps: Steps
    floor_of: Callable[[Change], Outputs]

    @property
    def kept_names(self) -> tuple[str, ...]:
        """The names of the tensors that hold the kept patches, one a stage."""
        return kept_names(self.spec)

    def measured(
        self,
        step: str,
        graph: onnx.ModelProto | Path,
        tolerance: Tolerance,
        target: str = "onnx",
        precision: str = "f32",
        images: int | None = None,
    ) -> Made:
        """Measure a graph on `target`'s engine, one that is in memory on ONNX Runtime.

        On the first so many `images`, None for all.
        """
        pixels = self.pixels[:images]
        outputs = self.outputs(step, graph, pixels, target, precision)
        floor = None
        if tolerance.change is not None:
            floor = self.floor_of(tolerance.change).first(len(pixels))
        reference, targets = self.reference.first(len(pixels)), self.images.targets[: len(pixels)]
        report = compare(
            step, reference, outputs, tolerance, targets, floor, self.spec.labels,
            self.request.confidence.temperature,
        )  # fmt: skip
        return Made(graph, outputs, report)

    def outputs(
        self,
        step: str,
        graph: onnx.ModelProto | Path,
        pixels: npt.NDArray[np.uint8],
        target: str,
        precision: str = "f32",
    ) -> Outputs:
        """Return what a graph gives for uint8 (images,S,S,3)."""
        given = self.request.input
        asked = open_request(self.spec, given, precision, self.kept_names)
        if isinstance(graph, Path):
            session = backend_for(target).open_session(graph, asked)
        else:
            session = ort.open_graph(graph.SerializeToString(), asked)
        advance = self.steps.counter(f"verify {step}", len(pixels))
        with closing(session):
            return session_outputs(session, pixels, given, self.spec.preprocessing, advance)

    def accuracy(self, outputs: Outputs) -> float | None:
        """Return the share of the images of known class that outputs classify rightly."""
        return accuracy_of(outputs.logits, self.images.targets)


def judge_by(
    model: Network, spec: ModelSpec, request: ExportRequest, images: ImageSet, steps: Steps
) -> Judge:
    """Return the judge of everything that is made of `model`, which is the reference.

    Raises GateError as refuse_inert_selection does.
    """
    name = "reference in PyTorch"
    with steps(name):
        pixels = pixels_of(images, spec.preprocessing)
        refuse_inert_selection(model, pixels, spec.preprocessing, request.keeps_all)
        remembered = Remembered(model, spec)
        reference = remembered.outputs(pixels, steps.counter(name, len(pixels)))

    @functools.cache
    def floor_of(change: Change) -> Outputs:
        advance = steps.counter(f"reference after {NAMES[change]}", len(pixels))
        outputs = remembered.outputs(changed(pixels, change), advance)
        if warning := low_floor(noise_floor_of(change, reference, outputs)):
            steps.say(f"Warning: {warning}")
        return outputs

    return Judge(spec, request, images, pixels, reference, steps, floor_of)


def refuse_inert_selection(
    model: Network, pixels: npt.NDArray[np.uint8], spec: Preprocessing, keeps_all: bool
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


def refuse_constant_decisions(judge: Judge) -> None:
    """Raise GateError for a network that calls everything the same: any wreck agrees with it.

    Images of one class, or of none that it knows, may be all the same: it is said.
    """
    decisions = judge.reference.logits.argmax(axis=1)
    if len(decisions) < 2 or (decisions != decisions[0]).any():
        return
    text = f"the FP32 network calls all {len(decisions)} images {judge.spec.labels[decisions[0]]!r}"
    if len(set(judge.images.targets) - {None}) > 1:
        raise GateError(
            f"{text}: agreement with it would mean nothing; train it, or take an earlier checkpoint"
        )
    judge.steps.say(f"Warning: {text}: agreement with it says little; give images that differ more")


def passed(made: Made) -> Made:
    """Return what a step made, or raise GateError naming the step and every bound it missed."""
    report = made.report
    if report.failures:
        raise GateError(
            f"step {report.step!r} differs from PyTorch on {report.images} images: "
            f"{'; '.join(report.failures)}",
            "Nothing was written",
        )
    return made
