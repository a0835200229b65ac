"""The machine that a study measures on: this one, or a device that the desk reaches."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gft_edge.bundle.images import ImageSet
from gft_edge.bundle.specs import Progress, Say, counter
from gft_edge.bundle.store import read_manifest
from gft_edge.datasets import Photographs
from gft_edge.fidelity.verify import verify
from gft_edge.nvidia.build import build_engine
from gft_edge.profiling.machine import summary, this_machine
from gft_edge.profiling.profile import ProfileRequest, profile
from gft_edge.profiling.report import Profile
from gft_edge.runtime.backends import backend_for
from gft_edge.runtime.classifier import Classifier


class Bench(Protocol):
    """What a study asks of the machine that it measures on."""

    def machine(self) -> str:
        """One line that names it."""

    def unfit(self, target: str, precision: str) -> str | None:
        """Why it cannot run a target's engine in a precision, or None."""

    def build(self, bundle: Path, explain: bool, progress: Progress, say: Say) -> None:
        """Build the engine of a bundle for TensorRT there, and record it in the bundle."""

    def misses(
        self, bundle: Path, fp32: Path, images: ImageSet, progress: Progress
    ) -> tuple[str, ...]:
        """The bounds that a bundle misses there; none where the export's own verdict is of that machine."""

    def judge_backend(self, target: str) -> str | None:
        """The engine that judges a bundle here, None for its own."""

    def judge_device(self, target: str) -> str | None:
        """The device of OpenVINO's that a bundle is judged on here, None for the CPU."""

    def profile(self, request: ProfileRequest, progress: Progress, say: Say) -> Profile:
        """Measure bundles there, as `profile` does."""


@dataclass(frozen=True)
class ThisMachine:
    """The machine that exports measures too; bundles for OpenVINO on `device`, None for the CPU."""

    device: str | None = None

    def machine(self) -> str:
        """One line that names it, and the device."""
        on = "" if self.device is None else f", OpenVINO on {self.device}"
        return f"{summary(this_machine())}{on}"

    def unfit(self, target: str, precision: str) -> str | None:
        """Why there is no engine here, or none for the precision."""
        engine = backend_for(target)
        return engine.missing() or engine.unsupported(precision, self.judge_device(target))

    def build(self, bundle: Path, explain: bool, progress: Progress, say: Say) -> None:
        """Build the engine here."""
        build_engine(bundle, explain=explain, progress=progress, say=say)

    def misses(
        self, bundle: Path, fp32: Path, images: ImageSet, progress: Progress
    ) -> tuple[str, ...]:
        """None on the CPU: the export was judged there. On another device the bundle is verified on it."""
        target = read_manifest(bundle).target
        if self.judge_device(target) is None:
            return ()
        photographs = Photographs(
            "the images of the export",
            tuple(map(Path, images.paths)),
            images.targets,
            read_manifest(bundle).model.labels,
            Path(os.path.commonpath(images.paths)),
            images.crop_bottom_px,
        )
        advance = counter(progress, f"verify on {self.device}", len(images.paths))
        with Classifier.load(fp32, kept=True) as reference:
            found = verify(
                bundle, None, photographs, reference.outputs, advance, device=self.device
            )
        return found.failures

    def judge_backend(self, target: str) -> str | None:
        """The bundle's own engine."""
        return None

    def judge_device(self, target: str) -> str | None:
        """The device, for OpenVINO."""
        return self.device if backend_for(target).TARGET == "openvino" else None

    def profile(self, request: ProfileRequest, progress: Progress, say: Say) -> Profile:
        """Measure here."""
        return profile(dataclasses.replace(request, device=self.device), progress, say)


HERE: Bench = ThisMachine()
