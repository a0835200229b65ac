"""An engine without an engine: applications test their own code with it. Never in a report.

Its logits say how close the mean colour of an image is to a colour assigned to each class.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.manifest import Artifact
from gft_edge.bundle.store import sha256_of
from gft_edge.errors import UsageError
from gft_edge.runtime.backends import (
    BuildRequest,
    CallTimes,
    Finished,
    InTurn,
    LayerRun,
    OpenRequest,
    check_images,
    run_in_turn,
    run_on_host,
)

TARGET = "fake"
PRECISIONS = ("fp32",)


def missing() -> str | None:
    """Nothing is."""
    return None


def unsupported(precision: str) -> str | None:
    """Nothing is."""
    return None


def runtime_precision(precision: str) -> str:
    """It has but one."""
    return "f32"


def version() -> str:
    """It has none."""
    return "fake"


def build(graph: Path, folder: Path, request: BuildRequest) -> Artifact:
    """Copy the ONNX file, which `open_session` does not read."""
    path = folder / "model.onnx"
    shutil.copyfile(graph, path)
    return Artifact(path.name, "fake", request.precision, sha256_of(path), request.parent_sha256)


def open_session(path: Path, request: OpenRequest) -> FakeSession:
    """Raises UsageError when kept patches are asked for: a fake looks at nothing."""
    if request.inner_outputs:
        raise UsageError("the fake backend keeps no patches: choose a real one")
    return FakeSession(request)


def layer_times(
    path: Path, request: OpenRequest, images: npt.NDArray[Any], runs: int, in_turn: InTurn
) -> LayerRun:
    """Raises UsageError: it has no layers."""
    raise UsageError("the fake backend has no layers to time: choose a real one")


class FakeSession:
    """Deterministic logits from the mean colour."""

    def __init__(self, request: OpenRequest):
        self._shape = request.input_shape
        self._colours = np.random.default_rng(0).uniform(0, 255, (request.classes, 3))

    def run(self, images: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """See Session."""
        check_images(images, self._shape)
        axes = (1, 2) if self._shape[-1] == 3 else (2, 3)
        means = images.astype(np.float64).mean(axis=axes)
        distances = np.linalg.norm(means[:, None] - self._colours[None], axis=2)
        return [(-distances / 16).astype(np.float32)]

    def run_split(self, images: npt.NDArray[Any]) -> tuple[list[npt.NDArray[Any]], CallTimes]:
        """See Session."""
        return run_on_host(self.run, images)

    def run_many(self, batches: Iterable[npt.NDArray[Any]]) -> Iterator[Finished]:
        """See Session; one after another."""
        return run_in_turn(self.run, batches)

    def flags(self) -> tuple[str, ...]:
        """It is told nothing."""
        return ()

    def close(self) -> None:
        """Nothing to release."""
