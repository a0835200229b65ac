"""One process at a time writes a folder; what it holds is refused to any other and freed with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gft_edge.bundle.locks import LOCK_FILE, claimed_folder, claimed_name, locked
from gft_edge.errors import LockedError, UsageError

HOLD = """
import sys
from pathlib import Path
from gft_edge.bundle import locks
with getattr(locks, sys.argv[1])(Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(how: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a folder until it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, how, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_that_another_process_writes_is_refused_and_free_when_it_dies(
    tmp_path: Path,
) -> None:
    with held_elsewhere("locked", tmp_path), pytest.raises(LockedError, match=str(tmp_path)):
        locked(tmp_path).__enter__()
    with locked(tmp_path):
        pass


def test_a_name_is_held_before_its_folder_is_there_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with held_elsewhere("claimed_name", out), pytest.raises(LockedError, match=str(out)):
        claimed_name(out).__enter__()
    with claimed_name(out), claimed_name(tmp_path / "other"):
        assert len(list(tmp_path.iterdir())) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_to_fill_is_new_or_marked(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with claimed_folder(out, ".mark", "study"):
        # The lock alone is nothing yet: the marker need not have been written.
        (out / ".mark").touch()
        with pytest.raises(LockedError, match=str(out)):
            claimed_folder(out, ".mark", "study").__enter__()
    (out / "result").touch()
    with claimed_folder(out, ".mark", "study"):
        assert (out / LOCK_FILE).exists()
    for folder, marker in (
        (out, ".other"),
        (out / "result", ".mark"),
        (out / "result" / "below", ".mark"),
    ):
        with pytest.raises(UsageError, match=str(folder)):
            claimed_folder(folder, marker, "study").__enter__()
