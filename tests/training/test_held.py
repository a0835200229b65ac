"""A run belongs to one training at a time, and goes on only with the images that it began with."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gft_edge.bundle.images import DataSource
from gft_edge.bundle.locks import locked
from gft_edge.errors import DataError, LockedError, UsageError
from gft_edge.studies.evaluation import evaluate_run
from gft_edge.training.loop import resume, train
from tests.support.training import QUICK, coloured_spec, config, interrupt

SPEC = coloured_spec("none", depth=2)
TWO_EPOCHS = dataclasses.replace(QUICK, epochs=2)

FOREVER = """
import sys
from pathlib import Path
from tests.training.test_held import begin
begin(Path(sys.argv[1]), Path(sys.argv[2]), epochs=10_000)
"""


def begin(data: Path, out: Path, epochs: int = 2) -> None:
    """Train a dense micro network."""
    train(out, SPEC, config(data, dataclasses.replace(QUICK, epochs=epochs)), None)


@pytest.fixture
def data(tmp_path: Path, coloured: Path) -> Path:
    return Path(shutil.copytree(coloured, tmp_path / "data"))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, coloured: Path) -> Path:
    """A run of two epochs on `coloured` that was interrupted in the second."""
    out = tmp_path_factory.mktemp("begun") / "run"
    interrupt("epoch 2/2", train, out, SPEC, config(coloured, TWO_EPOCHS), None)
    return out


@pytest.fixture
def interrupted(tmp_path: Path, begun: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run"))


def test_a_run_that_is_being_written_is_neither_trained_nor_resumed(
    tmp_path: Path, data: Path, interrupted: Path
) -> None:
    with locked(interrupted), pytest.raises(LockedError, match=str(interrupted)):
        resume(interrupted)
    (tmp_path / "new").mkdir()
    with locked(tmp_path / "new"), pytest.raises(LockedError, match=str(tmp_path / "new")):
        begin(data, tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]


@pytest.fixture
def training(data: Path, tmp_path: Path) -> Iterator[Path]:
    """The run of another process that trains until it is killed."""
    out = tmp_path / "theirs"
    process = subprocess.Popen([sys.executable, "-c", FOREVER, str(data), str(out)])
    try:
        while not (out / "train.json").exists():
            assert process.poll() is None
            time.sleep(0.1)
        yield out
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_second_training_into_one_folder_is_refused_while_the_first_goes_on(
    training: Path, data: Path
) -> None:
    before = (training / "train.json").read_bytes()
    with pytest.raises(LockedError, match=str(training)):
        resume(training)
    with pytest.raises(UsageError, match=str(training)):
        begin(data, training)
    assert (training / "train.json").read_bytes() == before


def test_a_run_does_not_go_on_with_classes_that_changed_places(
    data: Path, interrupted: Path
) -> None:
    """The same names and sizes, other pictures."""
    for name in ("0.png", "1.png"):
        ours, theirs = data / "train" / "r" / name, data / "train" / "g" / name
        content = ours.read_bytes()
        ours.write_bytes(theirs.read_bytes())
        theirs.write_bytes(content)
    with pytest.raises(DataError, match="train"):
        resume(interrupted, data=str(data))


def test_an_evaluation_is_kept_for_as_long_as_the_pictures_are_the_same(
    data: Path, interrupted: Path
) -> None:
    def reused() -> bool:
        return evaluate_run(interrupted, DataSource(data), "test", device="cpu").reused

    assert [reused(), reused()] == [False, True]
    first, second = data / "test" / "r" / "0.png", data / "test" / "b" / "0.png"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert [reused(), reused()] == [False, True]
