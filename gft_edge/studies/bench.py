"""The machine that a study measures on: this one, or a device that the desk reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from gft_edge.bundle.images import ImageSet
from gft_edge.bundle.specs import Progress, Say
from gft_edge.nvidia.build import build_engine
from gft_edge.profiling.machine import summary, this_machine
from gft_edge.profiling.profile import ProfileRequest, profile
from gft_edge.profiling.report import Profile
from gft_edge.runtime.backends import backend_for


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

    def profile(self, request: ProfileRequest, progress: Progress, say: Say) -> Profile:
        """Measure bundles there, as `profile` does."""


class ThisMachine:
    """The machine that exports measures too."""

    def machine(self) -> str:
        """One line that names it."""
        return summary(this_machine())

    def unfit(self, target: str, precision: str) -> str | None:
        """Why there is no engine here, or none for the precision."""
        engine = backend_for(target)
        return engine.missing() or engine.unsupported(precision)

    def build(self, bundle: Path, explain: bool, progress: Progress, say: Say) -> None:
        """Build the engine here."""
        build_engine(bundle, explain=explain, progress=progress, say=say)

    def misses(
        self, bundle: Path, fp32: Path, images: ImageSet, progress: Progress
    ) -> tuple[str, ...]:
        """None: the export was judged here."""
        return ()

    def judge_backend(self, target: str) -> str | None:
        """The bundle's own engine."""
        return None

    def profile(self, request: ProfileRequest, progress: Progress, say: Say) -> Profile:
        """Measure here."""
        return profile(request, progress, say)


HERE: Bench = ThisMachine()
