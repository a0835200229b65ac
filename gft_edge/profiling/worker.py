"""One bundle in a process of its own, measured when it is told to.

Memory, load time and the engine's thread pool are then this bundle's alone, and an engine that dies
takes nothing with it. Requests and replies are JSON, a line each: `open`, `turn`, `usage`, `layers`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.store import read_bundle
from gft_edge.errors import GftEdgeError
from gft_edge.nvidia.cuda import open_cuda
from gft_edge.profiling.layers import layer_profile
from gft_edge.runtime.backends import Hint, Session
from gft_edge.runtime.batches import static_batches
from gft_edge.runtime.classifier import Classifier
from gft_edge.runtime.golden import read_golden
from gft_edge.runtime.image_inputs import ImageLike

At = Literal["engine", "end_to_end"]

# The parts of one measured call, in milliseconds, that sum to it. Called with its running number.
Measure = Callable[[int], Sequence[float]]

# Uncounted at the start of each turn: caches hold another bundle, and threads are asleep.
SETTLE_S = 0.05

# A turn gives up here: it would never end where the clock stands still.
MOST_LOST = 100


class LoadedBundle:
    """A loaded bundle and what it is measured on: `images`, or the golden frames of the bundle `golden`.

    `opened` is what is known once it is loaded: load_ms, first_ms, flags, `inputs` (after how many calls
    the images come round again) and, with `on_gpu`, device_bytes. Raises as Classifier.load.
    """

    def __init__(
        self,
        bundle: str,
        backend: str | None = None,
        threads: int | None = None,
        device: str | None = None,
        cuda_graph: bool = False,
        hint: Hint = "latency",
        images: Sequence[str] = (),
        golden: str | None = None,
        on_gpu: bool = False,
    ):
        free = _free_device_bytes() if on_gpu else None
        started = time.perf_counter()
        self._classifier = Classifier.load(
            bundle, backend, threads, cuda_graph=cuda_graph, hint=hint, device=device
        )
        load_ms = (time.perf_counter() - started) * 1000
        self._backend, self._threads, self._device = backend, threads, device
        self._in_flight = hint == "throughput"
        manifest = self._classifier.bundle.manifest
        self._batch = manifest.input.batch
        self._images: list[ImageLike] = [Path(path).read_bytes() for path in images]
        if not images:
            self._images = list(read_golden(read_bundle(golden or bundle))[0])
        size = max(len(self._images), self._batch)
        self._images = [self._images[n % len(self._images)] for n in range(size)]
        first = [self._classifier.prepare(image) for image in self._images[: self._batch]]
        preprocessing = manifest.model.preprocessing
        self._prepared, _ = next(static_batches(np.stack(first), manifest.input, preprocessing))
        self.opened: dict[str, Any] = {
            "load_ms": load_ms,
            "first_ms": self._engine(0)[0],
            "flags": self._classifier.session.flags(),
            "inputs": len(self._images),
        }
        if free is not None:
            self.opened["device_bytes"] = free - (_free_device_bytes() or free)
        self._counts = {"engine": 0, "end_to_end": 0}

    def turn(self, boundary: At, seconds: float, settle_s: float) -> dict[str, Any]:
        """See timed_turn and requests_turn; calls are numbered on from turn to turn."""
        if self._in_flight:
            latencies_ms, elapsed_s = requests_turn(
                self._classifier.session, self._prepared, seconds, settle_s
            )
            return {"parts": [[one] for one in latencies_ms], "lost": 0, "elapsed_s": elapsed_s}
        measure = self._engine if boundary == "engine" else self._end_to_end
        parts, lost = timed_turn(measure, seconds, self._counts[boundary], settle_s)
        self._counts[boundary] += len(parts)
        return {"parts": parts, "lost": lost, "elapsed_s": sum(map(sum, parts)) / 1000}

    def layers(self) -> dict[str, Any]:
        """The JSON of a Breakdown, timed in sessions of their own. Raises as layer_profile."""
        breakdown = layer_profile(
            self._classifier.bundle, self._backend, self._threads, device=self._device
        )
        return {"layers": to_json(breakdown)}

    def _engine(self, number: int) -> Sequence[float]:
        return (self._classifier.session.run_split(self._prepared)[1].compute_ms,)

    def _end_to_end(self, number: int) -> Sequence[float]:
        images = [self._images[(number + n) % len(self._images)] for n in range(self._batch)]
        timing = self._classifier.predict_timed(images)[1]
        return dataclasses.astuple(timing)


def timed_turn(
    measure: Measure, seconds: float, number: int, settle_s: float
) -> tuple[list[list[float]], int]:
    """Call for `seconds` of measured time, at least once: the parts of each call, and how many were lost.

    Lost is a call that took no time or less: the clock went backwards. Calls are numbered from
    `number`; those that settle the engine use that number too.
    """
    _calls(measure, settle_s, number, step=0)
    return _calls(measure, seconds, number, step=1)


def _calls(
    measure: Measure, seconds: float, number: int, step: int
) -> tuple[list[list[float]], int]:
    """Call until the sum of what the calls took reaches `seconds`."""
    kept: list[list[float]] = []
    elapsed_ms, lost = 0.0, 0
    while True:
        parts = list(measure(number + step * len(kept)))
        if sum(parts) > 0 and min(parts) >= 0:
            kept.append(parts)
            elapsed_ms += sum(parts)
        else:
            lost += 1
        if elapsed_ms >= seconds * 1000 or lost > MOST_LOST:
            return kept, lost


def requests_turn(
    session: Session, batch: npt.NDArray[Any], seconds: float, settle_s: float
) -> tuple[list[float], float]:
    """Keep requests in flight for `seconds`: the latency of each in ms, and how long all of them took in s.

    Those completed while the engine settles are not counted.
    """
    started = time.perf_counter()

    def batches() -> Iterator[npt.NDArray[Any]]:
        while time.perf_counter() - started < settle_s + seconds:
            yield batch

    latencies_ms: list[float] = []
    counted_from = started
    for finished in session.run_many(batches()):
        if time.perf_counter() - started < settle_s:
            counted_from = time.perf_counter()
        else:
            latencies_ms.append(finished.latency_ms)
    return latencies_ms, time.perf_counter() - counted_from


def _free_device_bytes() -> int | None:
    """What the GPU has left; None without one."""
    try:
        return open_cuda().memory()[0]
    except GftEdgeError:
        return None


def _peak_rss_bytes() -> int:
    """The most memory that this process has held so far."""
    # Not ru_maxrss, where there is better: it survives exec, so that a child begins with its parent's.
    with suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, others KiB.
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Answer requests until stdin ends; what an engine prints on stdout goes to stderr."""
    # Ctrl-C goes to the whole group of processes: what was measured so far is the parent's to report.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        subject: LoadedBundle | None = None
        for line in sys.stdin:
            request = json.loads(line)
            number, do = request.pop("id"), request.pop("do")
            try:
                if do == "open":
                    subject = LoadedBundle(**request)
                    reply = subject.opened
                elif do == "usage":
                    reply = {"peak_rss_bytes": _peak_rss_bytes(), "cpu_s": time.process_time()}
                else:
                    reply = getattr(subject, do)(**request)
            except (GftEdgeError, OSError) as error:
                reply = {"error": str(error), "exit_code": getattr(error, "exit_code", 1)}
            replies.write(json.dumps({**reply, "id": number}) + "\n")
            replies.flush()


if __name__ == "__main__":
    main()
