"""A build that is watched: its progress as one count, and Ctrl-C heard while it runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from gft_edge.bundle.specs import Progress
from gft_edge.nvidia.library import Library

TASK = "build engine"
PARTS = 1000


def watched(build: Callable[[], Any], config: Any, library: Library, progress: Progress) -> Any:
    """What `build` returns, None where TensorRT made nothing. `config` is of its builder.

    Runs beside the main thread: the builder hears no Ctrl-C, but asks its monitor after each step.
    What `progress` raises ends the build and is raised here.
    """
    monitor = monitor_of(library.module, progress)
    config.progress_monitor = monitor
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(build)
        try:
            made = future.result()
        except BaseException:
            monitor.cancelled = True
            raise
    if monitor.error is not None:
        raise monitor.error
    if made is not None:
        progress(TASK, PARTS, PARTS)
    return made


@dataclass
class Phase:
    """One of the builder's phases under way. `filled` is how much of its next step is done."""

    parent: str | None
    steps: int
    done: int = 0
    filled: float = 0.0


def monitor_of(module: Any, progress: Progress) -> Any:
    """TensorRT's progress monitor: nested phases as one count that never falls.

    `cancelled` ends the build. What `progress` raises ends it too, and is kept in `error`.
    """
    base: Any = module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.cancelled = False
            self.error: BaseException | None = None
            self.phases: dict[str, Phase] = {}
            self.reached = 0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases[name] = Phase(parent, max(steps, 1))

        def step_complete(self, name: str, step: int) -> bool:
            phase = self.phases.get(name)
            if phase is not None and not self.cancelled:
                phase.done, phase.filled = max(phase.done, step + 1), 0.0
                done = min(int(PARTS * self.fraction(phase)), PARTS - 1)
                self.reached = max(self.reached, done)
                try:
                    progress(f"{TASK}  {name}", self.reached, PARTS)
                # TensorRT prints it with its traceback, and says that the user cancelled.
                except BaseException as error:
                    self.error, self.cancelled = error, True
            return not self.cancelled

        def phase_finish(self, name: str) -> None:
            phase = self.phases.pop(name, None)
            parent = self.phases.get(phase.parent or "") if phase else None
            if parent is not None:
                parent.filled += (1 - parent.filled) / 2

        def fraction(self, phase: Phase) -> float:
            """The share of the whole build that is done."""
            inner = 0.0
            at: Phase | None = phase
            while at is not None:
                # A step may hold several phases, how many nobody says: each takes half of the rest.
                step = at.filled + (1 - at.filled) * inner / 2
                inner = min((at.done + step) / at.steps, 1.0)
                at = self.phases.get(at.parent or "")
            return inner

    return Monitor()
