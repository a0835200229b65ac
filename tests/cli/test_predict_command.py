"""One bad image, whatever is wrong with it, costs a batch that image alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.test_damaged_images import FORMATS, encoded, mutated
from tests.support.cli import refused, run


def test_the_batch_goes_on_after_damage_in_any_format_and_paths_that_cannot_be_opened(
    micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    chance = random.Random(0)
    paths: list[Path] = []
    for number, name in enumerate(FORMATS):
        paths.append(tmp_path / f"{number}.{name}")
        paths[-1].write_bytes(mutated(encoded(name), chance))
    os.mkfifo(tmp_path / "pipe.jpg")
    paths += [tmp_path / "pipe.jpg", tmp_path / ("a" * 300 + ".jpg"), tmp_path / "0.jpg" / "a.jpg"]
    good = micro_data / "test" / "apple" / "0.png"
    result = run("predict", micro_bundles["onnx"], *paths, good, "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["path"] for line in lines] == [str(path) for path in (*paths, good)]
    assert result.exit_code == 1
    failed = [line for line in lines if "error" in line]
    assert 3 < len(failed) < len(paths)
    for line in failed:
        assert line["error"].startswith(f"{line['path']}: ")
    assert "predictions" in lines[-1]
    assert f"{len(failed)} of {len(lines)} images" in result.stderr


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "cp932"])
def test_a_name_that_stdout_cannot_encode_is_printed_escaped(
    micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path, encoding: str
) -> None:
    names = ("りんご.png", "ä\u2028.png", "b.png")
    for name in names:
        shutil.copy(micro_data / "test" / "apple" / "0.png", tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-m", "gft_edge", "predict", micro_bundles["onnx"],
         *(tmp_path / name for name in names), tmp_path / "ない.png"],
        env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 1
    for name in names:
        assert name.encode(encoding, "backslashreplace") in done.stdout
    assert "ない".encode(encoding, "backslashreplace") in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_name_that_would_steer_a_terminal_is_printed_escaped(
    micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    names = ("a\x1b]0;b.png", "a\rb.png", "a\x9b31mb.png", "a\x07b.png")
    for name in names:
        shutil.copy(micro_data / "test" / "apple" / "0.png", tmp_path / name)
    missing = [tmp_path / f"no {name}" for name in names]
    result = run("predict", micro_bundles["onnx"], *(tmp_path / name for name in names), *missing)
    for name in names:
        assert repr(name)[1:-1] in result.stdout
        assert f"no {repr(name)[1:-1]}" in result.stderr
        assert name not in result.output
    refused(run("predict", micro_bundles["onnx"], tmp_path / "a\x1b[2J.png"), "a\\x1b[2J.png")
