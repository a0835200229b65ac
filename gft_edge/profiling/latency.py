"""Bundles measured in turn, A B C A B C, so that a drift of the machine meets them alike."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gft_edge.errors import FailedError, GftEdgeError, UsageError
from gft_edge.profiling.worker import SETTLE_S, At

# Long enough to hold many inferences of a small network, short against what the clocks do.
TURN_S = 0.25
# With requests in flight: a turn begins and ends with fewer of them.
IN_FLIGHT_TURN_S = 1.0
# In a turn of a slow one.
LEAST_IN_TURN = 5
# Three windows of three: also where the duration is short.
LEAST_TURNS = 9

# Warm: the last three turns within this of each other. What never settles is measured as it is.
WARM_SPREAD = 0.05
MOST_WARM_UP_S = 2.0


# -m and -c put the working folder first on the path, and a user's numpy.py would be imported from it.
START = """
import sys
sys.path[:] = [folder for folder in sys.path if folder]
sys.path.append(sys.argv[1])
from gft_edge.profiling.worker import main
main()
"""


class Worker:
    """The process that holds the bundle in the folder `name`. Use it as a context manager."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._asked = 0
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, str(Path(__file__).parent.parent.parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its reply; `open` takes what LoadedBundle does.

        Raises UsageError or FailedError as the worker did, FailedError when it died.
        """
        assert self._process.stdin is not None
        self._asked += 1
        try:
            self._process.stdin.write(json.dumps({"do": do, "id": self._asked, **request}) + "\n")
            self._process.stdin.flush()
            reply = self._reply(self._asked)
        except BrokenPipeError:
            reply = None
        if reply is None:
            raise FailedError(self._how_it_died(), bundle=Path(self.name))
        if "error" in reply:
            kind: type[GftEdgeError] = UsageError if reply["exit_code"] == 2 else FailedError
            named = reply["error"].startswith(self.name)
            message = reply["error"] if named else f"{self.name}: {reply['error']}"
            raise kind(message, bundle=Path(self.name))
        return reply

    def _reply(self, asked: int) -> dict[str, Any] | None:
        """The reply to this request: an interrupt leaves the one before unread, or half read."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError):
                reply: dict[str, Any] = json.loads(line)
                if reply["id"] == asked:
                    return reply
        return None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if kind is not None:
            self._process.kill()
        # What could not be written to a worker that died is written again by close.
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _how_it_died(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["it said nothing"])[-1]
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"{self.name}: the process that measures it ended with {how}: {last}"


@dataclass
class Series:
    """The turns of one bundle at one boundary: per turn, the parts of each call in milliseconds."""

    worker: Worker
    boundary: At
    turns: list[list[list[float]]] = field(default_factory=list)
    elapsed_s: list[float] = field(default_factory=list)
    lost: int = 0

    def take_turn(self, seconds: float, settle_s: float = SETTLE_S) -> None:
        """Measure one turn more. Raises FailedError where the clock does not move."""
        reply = self.worker.ask("turn", boundary=self.boundary, seconds=seconds, settle_s=settle_s)
        self.lost += reply["lost"]
        if not reply["parts"]:
            raise FailedError(
                f"{self.worker.name}: the clock of this machine stands still or goes backwards: "
                "nothing can be timed on it",
                bundle=Path(self.worker.name),
            )
        self.turns.append(reply["parts"])
        self.elapsed_s.append(reply["elapsed_s"])

    @property
    def samples_ms(self) -> list[list[float]]:
        """What each call took, turn by turn."""
        return [[sum(parts) for parts in turn] for turn in self.turns]

    @property
    def count(self) -> int:
        """Calls so far."""
        return sum(map(len, self.turns))

    @property
    def measured_s(self) -> float:
        """Time in calls so far; of overlapping calls, from the first to the last of each turn."""
        return sum(self.elapsed_s)

    def forget(self, after: int = 0) -> None:
        """Drop all turns but the first `after`."""
        del self.turns[after:], self.elapsed_s[after:]


def warm_up(
    all_series: Sequence[Series], warm_up_ms: float, duration_s: float, longest_s: float = TURN_S
) -> float:
    """Take turns for at least `warm_up_ms` each and until the medians settle; the turns are forgotten.

    After MOST_WARM_UP_S a series it ends all the same. Returns the seconds of a turn for a measurement
    of `duration_s`, `longest_s` at most unless calls are slow.
    """
    started = time.perf_counter()
    turn_s = min(longest_s, duration_s / LEAST_TURNS)
    while True:
        for series in all_series:
            series.take_turn(min(turn_s, max(warm_up_ms / 1000, 0.01)))
        slowest_ms = max(statistics.median(series.samples_ms[-1]) for series in all_series)
        turn_s = max(turn_s, LEAST_IN_TURN * slowest_ms / 1000)
        lengths = [series.measured_s * 1000 >= warm_up_ms for series in all_series]
        spent_s = time.perf_counter() - started
        settled = all(map(_settled, all_series)) or spent_s > MOST_WARM_UP_S * len(all_series)
        if all(lengths) and settled:
            break
    for series in all_series:
        series.forget()
        series.lost = 0
    return turn_s


def _settled(series: Series) -> bool:
    medians = [statistics.median(turn) for turn in series.samples_ms[-3:]]
    return len(medians) == 3 and max(medians) / min(medians) - 1 <= WARM_SPREAD


def measure_in_turn(
    all_series: Sequence[Series],
    duration_s: float,
    min_samples: int,
    turn_s: float,
    advance: Callable[[float], None] = lambda done: None,
) -> bool:
    """Take turns until every series has its duration, samples and LEAST_TURNS. False when interrupted.

    `advance` is told the fraction done. Every series has as many turns as the others; one that an
    interrupt cut short is left out.
    """
    try:
        while True:
            for series in all_series:
                series.take_turn(turn_s)
            done = min(
                min(series.measured_s / duration_s, series.count / min_samples)
                for series in all_series
            )
            done = min(done, len(all_series[0].turns) / LEAST_TURNS)
            advance(min(done, 1.0))
            if done >= 1:
                return True
    except KeyboardInterrupt:
        whole = min(len(series.turns) for series in all_series)
        for series in all_series:
            series.forget(after=whole)
        return False
