"""build --on: the engine that a board builds comes back into the bundle here, beside those of others."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gft_edge.bundle.store import read_bundle, read_manifest
from tests.remote.conftest import left_in_work, until
from tests.support.bundles import assert_untouched, files_of
from tests.support.cli import refusal, run, run_json
from tests.support.fake_board import become_board
from tests.support.ssh import Loopback, Sshd
from tests.support.wire import Wire

pytestmark = pytest.mark.slow

Wired = Callable[[Sshd], tuple[Wire, str]]
Desk = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def board(loopback: Loopback, prepared_home: Path) -> Sshd:
    """A board with TensorRT for its system's Python, and no package index that could be asked."""
    home = loopback.home("board", like=prepared_home)
    (env,) = (home / ".cache/gft-edge/device/env").glob("python*/")
    become_board(home, env.name.partition("-")[0])
    loopback.give(home)
    return loopback.sshd(home, {"PIP_INDEX_URL": "http://127.0.0.1:9"})


@pytest.fixture
def bundle(trt_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trt_bundle, tmp_path / "bundle"))


def other_board(
    board: Sshd, loopback: Loopback, multiprocessors: int = 4, build_s: int = 0
) -> Sshd:
    """The same home, as a board with another GPU."""
    env = {"FAKE_MULTIPROCESSORS": str(multiprocessors), "FAKE_BUILD_S": str(build_s)}
    return loopback.sshd(board.home, env)


def test_an_engine_comes_back_beside_those_of_other_boards(
    board: Sshd, loopback: Loopback, wired: Wired, bundle: Path
) -> None:
    wire, host = wired(board)
    told = run_json("build", bundle, "--on", host)
    path = "engines/tensorrt-10.3.0-linux-x86_64-fake-orin-8mp-sm87/model.engine"
    assert (told["host"], told["made"], told["engine"]["path"]) == (host, True, path)
    (first,) = read_bundle(bundle).manifest.engines
    assert first.timing_cache == path.replace("model.engine", "timing.cache")
    assert (bundle / first.path).is_file()
    assert (bundle / first.timing_cache).read_bytes() == b"used "

    # The second time nothing is built, and what came back does not travel again.
    wire.count()
    size = (bundle / first.path).stat().st_size
    assert run_json("build", bundle, "--on", host)["made"] is False
    assert wire.count() < min(size, 100_000)

    smaller = other_board(board, loopback)
    assert run("build", bundle, "--on", smaller.host).exit_code == 0
    engines = read_bundle(bundle).manifest.engines
    assert [engine.multiprocessors for engine in engines] == [8, 4]
    assert run_json("verify", bundle, "--on", host)["verdict"] == "pass"
    assert run_json("verify", bundle, "--on", smaller.host)["verdict"] == "pass"


def test_a_board_uses_its_timings_again(board: Sshd, bundle: Path) -> None:
    assert run("build", bundle, "--on", board.host).exit_code == 0
    assert run_json("build", bundle, "--fresh", "--on", board.host)["made"] is True
    (engine,) = read_manifest(bundle).engines
    assert engine.timing_cache is not None
    assert (bundle / engine.timing_cache).read_bytes() == b"used used "


def test_two_boards_build_into_one_bundle_at_once(
    board: Sshd, loopback: Loopback, bundle: Path
) -> None:
    hosts = [board.host, other_board(board, loopback).host]
    result = run("build", bundle, "--on", hosts[0], "--on", hosts[1], "--json")
    assert result.exit_code == 0, result.output
    assert [each["host"] for each in json.loads(result.stdout)] == hosts
    engines = read_bundle(bundle).manifest.engines
    assert {engine.multiprocessors for engine in engines} == {8, 4}


def test_ctrl_c_in_a_build_leaves_both_bundles_as_they_were(
    board: Sshd, loopback: Loopback, bundle: Path, desk: Desk
) -> None:
    slow = other_board(board, loopback, build_s=60)
    before = files_of(bundle)
    process = desk("build", bundle, "--on", slow.host)
    until(lambda: bool(slow.running("gft_edge build")), 30)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=40)
    assert process.returncode == 1
    assert told.splitlines()[-1] == f"Error: {slow.host}: interrupted"
    assert_untouched(bundle, before)
    until(lambda: not slow.running("gft_edge"))
    assert left_in_work(slow) == []


def test_the_timing_cache_is_no_file_of_the_desk(board: Sshd, bundle: Path) -> None:
    line = refusal("build", bundle, "--timing-cache", bundle / "t", "--on", board.host)
    assert "--timing-cache" in line
