"""A bundle is measured in a process of its own, in turns, whatever happens to clock or process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gft_edge.errors import FailedError, UsageError
from gft_edge.profiling.latency import Series, Worker, measure_in_turn, warm_up
from gft_edge.profiling.worker import MOST_LOST, timed_turn
from tests.support.refusals import refusal_of


def test_a_turn_lasts_its_time_and_numbers_its_calls() -> None:
    numbers = []

    def measure(number: int) -> Sequence[float]:
        numbers.append(number)
        return (3.0, 7.0)

    parts, lost = timed_turn(measure, 0.1, 5, settle_s=0.02)
    # Two calls settle with the number of the first, then ten of 10 ms make 100 ms.
    assert numbers == [5, 5, *range(5, 15)]
    assert parts == [[3.0, 7.0]] * 10
    assert lost == 0


def test_a_call_in_which_the_clock_went_backwards_is_lost_and_counted() -> None:
    times = iter([1.0, 1.0, -5000.0, 1.0, 0.0, 1.0])
    parts, lost = timed_turn(lambda number: (next(times),), 0.003, 0, settle_s=0)
    assert parts == [[1.0], [1.0], [1.0]]
    assert lost == 2


def test_a_clock_that_stands_still_ends_the_turn() -> None:
    parts, lost = timed_turn(lambda number: (0.0,), 1.0, 0, settle_s=0.05)
    assert parts == []
    assert lost == MOST_LOST + 1


def opened_by(worker: Worker, bundle: Path) -> dict[str, Any]:
    return worker.ask("open", bundle=str(bundle))


@pytest.mark.slow
def test_two_bundles_take_as_many_turns_each(micro_bundles: dict[str, Path]) -> None:
    with Worker("a") as a, Worker("b") as b:
        opened = [opened_by(a, micro_bundles["onnx"]), opened_by(b, micro_bundles["openvino"])]
        assert all(float(str(reply["load_ms"])) > 0 for reply in opened)
        series = [Series(a, "engine"), Series(b, "engine"), Series(a, "end_to_end")]
        turn_s = warm_up(series, 10, 0.2)
        assert [one.turns for one in series] == [[], [], []]
        said: list[float] = []
        assert measure_in_turn(series, 0.2, 20, turn_s, said.append)
    assert len({len(one.turns) for one in series}) == 1
    assert all(one.count >= 20 and one.measured_s >= 0.2 for one in series)
    assert said == sorted(said)
    assert said[-1] == 1.0
    # Decode, preprocess, copy, compute, copy, postprocess.
    assert {len(parts) for turn in series[2].turns for parts in turn} == {6}


def test_an_interrupt_keeps_whole_rounds_and_a_usable_worker(
    micro_bundles: dict[str, Path],
) -> None:
    def interrupt(done: float) -> None:
        if len(series[0].turns) == 3:
            raise KeyboardInterrupt

    with Worker("a") as worker:
        opened_by(worker, micro_bundles["onnx"])
        series = [Series(worker, "engine"), Series(worker, "end_to_end")]
        assert not measure_in_turn(series, 600, 10**9, 0.01, interrupt)
        assert [len(one.turns) for one in series] == [3, 3]
        # What an interrupt left unread is not taken for the next reply, nor a turn in its middle.
        assert worker.ask("usage")["peak_rss_bytes"] > 2**20
        worker._process.stdin.write(  # type: ignore[union-attr]
            '{"do": "turn", "id": 99, "boundary": "engine", "seconds": 0.01, "settle_s": 0}\n'
        )
        assert "cpu_s" in worker.ask("usage")


def test_what_a_worker_refuses_its_parent_raises(tmp_path: Path) -> None:
    with Worker("a") as worker:
        refusal_of(UsageError, lambda: opened_by(worker, tmp_path / "absent"), "a: ", "absent")


def test_a_worker_that_died_is_named_and_not_taken_for_a_closed_pipe(
    micro_bundles: dict[str, Path],
) -> None:
    def measured() -> None:
        with Worker("bundles/a") as worker:
            opened_by(worker, micro_bundles["onnx"])
            worker._process.kill()
            worker._process.wait()
            worker.ask("usage")

    with pytest.raises(FailedError) as caught:
        measured()
    assert caught.value.bundle == Path("bundles/a")
    assert "SIGKILL" in str(caught.value)


def test_a_worker_has_its_own_memory_and_imports_nothing_from_the_working_folder(
    micro_bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('this ran')")
    monkeypatch.chdir(tmp_path)
    # As large as an export: the peak that a child inherits across exec.
    held = np.ones(600 * 2**20, np.uint8)
    with Worker("a") as worker:
        assert opened_by(worker, micro_bundles["onnx"])["flags"]
        peak = worker.ask("usage")["peak_rss_bytes"]
    assert 20 * 2**20 < peak < held.nbytes
