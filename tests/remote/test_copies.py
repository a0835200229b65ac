"""Files travel by content, once; a copy that breaks off goes on, and a command that loses its desk ends."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gft_edge.bundle.store import read_manifest, sha256_of, write_manifest
from gft_edge.remote import content as content_room
from tests.remote.conftest import left_in_work, until
from tests.support.bundles import sign
from tests.support.cli import refusal, run, run_json
from tests.support.ssh import Sshd
from tests.support.wire import Wire

pytestmark = pytest.mark.slow

Wired = Callable[[Sshd], tuple[Wire, str]]
Desk = Callable[..., "subprocess.Popen[str]"]

MB = 1_000_000
LONG = ("--duration", 60, "--warmup-ms", 20, "--min-samples", 20)


@pytest.fixture(params=["rsync", "stream"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How files travel: by rsync, or through the connection where one side has none."""
    if request.param == "stream":
        monkeypatch.setattr(content_room, "_rsync_here", lambda: False)
    return str(request.param)


def test_only_what_changed_travels(
    device: Sshd, wired: Wired, large_bundle: Path, tmp_path: Path, way: str
) -> None:
    wire, host = wired(device)
    bundle = Path(shutil.copytree(large_bundle, tmp_path / "it's a bundle of $HOME"))
    (bundle / "more.bin").write_bytes(os.urandom(16 * MB))
    told = run_json("verify", bundle, "--on", host)
    assert told["verdict"] == "pass"
    assert 16 * MB < wire.count() < 18 * MB
    relabel(bundle)
    assert run_json("verify", bundle, "--on", host)["verdict"] == "pass"
    assert wire.count() < MB / 4


def test_a_copy_that_breaks_off_goes_on(
    device: Sshd, wired: Wired, large_copy: Path, way: str
) -> None:
    wire, host = wired(device)
    wire.cut_at = 10 * MB
    line = refusal("verify", large_copy, "--on", host, exit_code=1)
    assert "the same command goes on" in line
    assert wire.count() < 11 * MB
    wire.mend()
    assert run("verify", large_copy, "--on", host).exit_code == 0
    # The other 6 MB, and what was on its way when the wire was cut.
    assert wire.count() < 9 * MB
    assert left_in_work(device) == []
    assert os.listdir(device.folder / "store" / "incoming") == []


def test_a_file_that_arrives_damaged_is_not_kept(
    device: Sshd, large_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file does that is written while it travels."""

    def before_a_change(path: Path) -> str:
        digest = sha256_of(path)
        if path.name == "more.bin":
            with path.open("r+b") as file:
                file.write(b"changed")
        return digest

    monkeypatch.setattr(content_room, "sha256_of", before_a_change)
    assert "more.bin" in refusal("verify", large_copy, "--on", device.host, exit_code=1)
    monkeypatch.undo()
    assert run("verify", large_copy, "--on", device.host).exit_code == 0


def test_a_stored_file_without_its_content_is_sent_again(device: Sshd, onnx_bundle: Path) -> None:
    """As a power cut leaves it."""
    stored = device.folder / "store" / sha256_of(onnx_bundle / "labels.txt")
    size = stored.stat().st_size
    os.truncate(stored, 0)
    assert run("verify", onnx_bundle, "--on", device.host).exit_code == 0
    assert stored.stat().st_size == size


def test_progress_is_shown_as_if_the_command_ran_here(
    device: Sshd, onnx_bundle: Path, large_copy: Path
) -> None:
    words = ("profile", large_copy, "--duration", 0.3, "--min-samples", 20, "--warmup-ms", 20)
    here, there = run(*words), run(*words, "--on", device.host)
    expected = [line for line in here.stderr.splitlines() if not line.startswith("warning")]
    sent = ["send  by rsync, percent"]
    assert there.stderr.splitlines() == [*sent, *expected]


# Connections and commands that end.


def test_a_lost_connection_ends_the_profile_there(
    device: Sshd, wired: Wired, desk: Desk, onnx_bundle: Path
) -> None:
    wire, host = wired(device)
    process = desk("profile", onnx_bundle, "--on", host, *LONG)
    until(lambda: bool(device.running("profile")))
    time.sleep(1)
    wire.cut()
    _, told = process.communicate(timeout=40)
    assert process.returncode == 1
    assert "the same command goes on" in told.splitlines()[-1]
    assert "Traceback" not in told
    until(lambda: not device.running("gft"))
    until(lambda: left_in_work(device) == [])


def test_a_killed_desk_leaves_nothing_running(device: Sshd, desk: Desk, onnx_bundle: Path) -> None:
    process = desk("profile", onnx_bundle, "--on", device.host, *LONG)
    until(lambda: bool(device.running("profile")))
    process.kill()
    until(lambda: not device.running("gft"))
    until(lambda: left_in_work(device) == [])


def test_ctrl_c_in_a_profile_reports_the_samples_so_far(
    device: Sshd, desk: Desk, onnx_bundle: Path
) -> None:
    # A terminal, which is shown how far the measuring is.
    terminal, end = pty.openpty()
    process = desk("profile", onnx_bundle, "--on", device.host, *LONG, "--json", stderr=end)
    os.close(end)
    shown = ""
    while not re.search(r"measure.*[1-9]\d*/100", shown):
        shown += os.read(terminal, 4096).decode(errors="replace")
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=40)
    with contextlib.suppress(OSError):
        while piece := os.read(terminal, 4096):
            shown += piece.decode(errors="replace")
    os.close(terminal)
    assert process.returncode == 1
    result = json.loads(printed)
    assert (result["complete"], result["host"]) == (False, device.host)
    assert result["reports"][0]["boundaries"]["engine"]["samples_ms"]
    assert "interrupted: these are the samples so far" in shown
    until(lambda: not device.running("gft"))
    assert left_in_work(device) == []


@pytest.mark.parametrize("after_s", [0, 0.1, 0.3])
def test_ctrl_c_while_the_command_starts_says_no_more_than_that(
    device: Sshd, desk: Desk, onnx_bundle: Path, after_s: float
) -> None:
    process = desk("profile", onnx_bundle, "--on", device.host, *LONG)
    until(lambda: bool(device.running("gft_edge profile")))
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=40)
    assert process.returncode == 1
    assert told.startswith(f"Error: {device.host}: interrupted"), told
    assert len(told.splitlines()) == 1, told


def test_ctrl_c_in_a_copy_ends_it(device: Sshd, wired: Wired, desk: Desk, large_copy: Path) -> None:
    wire, host = wired(device)
    wire.slow_s = 0.05
    process = desk("verify", large_copy, "--on", host)
    until(lambda: wire.up > MB)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 1
    assert told.splitlines()[-1] == f"Error: {host}: interrupted"
    until(lambda: left_in_work(device) == [])


def test_ctrl_c_before_there_is_a_connection_ends_at_once(
    silent: str, desk: Desk, onnx_bundle: Path
) -> None:
    process = desk("verify", onnx_bundle, "--on", silent)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=5)
    assert (process.returncode, told.splitlines()[-1]) == (1, f"Error: {silent}: interrupted")


@pytest.mark.parametrize(
    ("name", "why"), [("KILL", "out of memory"), ("ILL", "gft-edge doctor --on")]
)
def test_a_command_that_a_signal_ends_there_says_which_and_why(
    device: Sshd, desk: Desk, onnx_bundle: Path, name: str, why: str
) -> None:
    process = desk("profile", onnx_bundle, "--on", device.host, *LONG)
    until(lambda: bool(device.running("profile")))
    device.ssh(f"pkill -{name} -u $(id -u) -f 'gft_edge profile'")
    _, told = process.communicate(timeout=40)
    assert process.returncode == 1
    assert f"SIG{name}" in told.splitlines()[-1]
    assert why in told.splitlines()[-1]
    assert "Traceback" not in told


def relabel(bundle: Path) -> None:
    """Name the classes anew, in the bundle's manifest too."""
    manifest = read_manifest(bundle)
    labels = [f"kind of {label}" for label in manifest.model.labels]
    model = dataclasses.replace(manifest.model, labels=tuple(labels))
    write_manifest(bundle, dataclasses.replace(manifest, model=model))
    (bundle / "labels.txt").write_text("".join(f"{line}\n" for line in labels))
    sign(bundle, "labels.txt")
