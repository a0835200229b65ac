"""The memory of a study: whose folder it is, and results that are known by what decides them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gft_edge.errors import LockedError
from gft_edge.studies.memory import MARKER_FILE, Memory, claimed
from gft_edge.studies.variants import Accuracy, Variant


def test_a_folder_is_held_by_one_study_at_a_time_and_cleared_by_fresh(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claimed(out, "1", fresh=False) as memory:
        memory.keep("a", Accuracy(1, 1, 0, 1, (), (), ()), {"of": 1})
        with pytest.raises(LockedError), claimed(out, "1", fresh=True):
            pass
    (out / "bundles" / ".onnx-fp32.partial-x").mkdir()
    (out / "benchmark.csv").touch()
    with claimed(out, "1", fresh=False) as memory:
        assert list((out / "bundles").iterdir()) == []
        assert memory.recall("a", Accuracy, {"of": 1}) is not None
    with claimed(out, "2", fresh=True) as memory:
        assert memory.recall("a", Accuracy, {"of": 1}) is None
        assert sorted(path.name for path in out.iterdir()) == [MARKER_FILE, ".lock", "bundles"]


def test_what_is_remembered_is_of_what_decides_it(tmp_path: Path) -> None:
    memory, known = Memory(tmp_path), Accuracy(0.5, 0.75, 0.25, 1, (1.0,), ("a",), ())
    memory.keep("a", known, {"weights": "1"})
    assert memory.recall("a", Accuracy, {"weights": "1"}) == known
    assert memory.recall("a", Accuracy, {"weights": "2"}) is None
    assert memory.recall("a", Variant, {"weights": "1"}) is None
    assert memory.recall("b", Accuracy, {"weights": "1"}) is None
    for half in ("{", "[]", '{"decided_by": 1}'):
        (tmp_path / "a.json").write_text(half)
        assert memory.recall("a", Accuracy, {"weights": "1"}) is None
