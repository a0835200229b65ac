"""Devices of the remote room's tests: one is prepared once a session, the others are copies of it."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import Result

from tests.support.cli import run
from tests.support.paths import ROOT
from tests.support.ssh import Loopback, Sshd, why_none
from tests.support.tools import lacking
from tests.support.wire import Wire

_numbers = itertools.count()


@dataclass(frozen=True)
class Prepared:
    """A device after its first contact: what that printed, and its user's files before it."""

    sshd: Sshd
    result: Result
    at_home_before: set[str]
    elsewhere_before: set[str]


@pytest.fixture(scope="session")
def loopback() -> Iterator[Loopback]:
    """What the devices of a session share. Skipped with the reason where none can be had."""
    if reason := why_none():
        lacking(reason)
    made = Loopback()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(made.bin), prepend=os.pathsep)
        try:
            made.sshd(made.home("probe")).ssh("true")
        except (OSError, subprocess.CalledProcessError) as error:
            made.close()
            lacking(f"no sshd serves {made.user} here: {error}")
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(scope="session")
def onnx_bundle(micro_bundles: dict[str, Path]) -> Path:
    return micro_bundles["onnx"]


@pytest.fixture(scope="session")
def large_bundle(onnx_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with 16 MB more, which its manifest does not list."""
    folder = tmp_path_factory.mktemp("large") / "a bundle's $HOME"
    shutil.copytree(onnx_bundle, folder)
    (folder / "more.bin").write_bytes(random.Random(0).randbytes(16_000_000))
    return folder


@pytest.fixture
def large_copy(large_bundle: Path) -> Path:
    """The large bundle with other bytes in its large file, which no device has."""
    large = large_bundle / "more.bin"
    large.write_bytes(random.Random(next(_numbers)).randbytes(large.stat().st_size))
    return large_bundle


@pytest.fixture
def shims(loopback: Loopback) -> Path:
    """A folder for a device's PYTHONPATH."""
    folder = loopback.folder / f"shims-{next(_numbers)}"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def prepared(loopback: Loopback, onnx_bundle: Path) -> Prepared:
    """A device whose first contact verified a bundle with ONNX Runtime."""
    sshd = loopback.sshd(loopback.home("prepared"))
    at_home, elsewhere = files_at_home(sshd), files_elsewhere(loopback)
    result = run("verify", onnx_bundle, "--on", sshd.host, "--json")
    return Prepared(sshd, result, at_home, elsewhere)


@pytest.fixture
def device(prepared: Prepared) -> Sshd:
    """The prepared device, which a test leaves as it was."""
    assert prepared.result.exit_code == 0, prepared.result.output
    return prepared.sshd


@pytest.fixture(scope="session")
def prepared_home(prepared: Prepared) -> Path:
    """The home folder of the prepared device, to copy."""
    assert prepared.result.exit_code == 0, prepared.result.output
    return prepared.sshd.home


@pytest.fixture
def copied(loopback: Loopback, device: Sshd) -> Callable[..., Sshd]:
    """Makes devices that were prepared too, in homes of their own: Python compiles all anew there."""

    def make(name: str = "home", env: Mapping[str, str] | None = None) -> Sshd:
        return loopback.sshd(loopback.home(f"{next(_numbers)} {name}", like=device.home), env)

    return make


@pytest.fixture
def fresh(loopback: Loopback) -> Callable[..., Sshd]:
    """Makes devices that nobody contacted."""

    def make(env: Mapping[str, str] | None = None) -> Sshd:
        return loopback.sshd(loopback.home(f"{next(_numbers)}"), env)

    return make


@pytest.fixture
def wired(loopback: Loopback) -> Iterator[Callable[[Sshd], tuple[Wire, str]]]:
    """Puts a wire before a device; gives it and the host that lies behind it."""
    with contextlib.ExitStack() as stack:

        def make(sshd: Sshd) -> tuple[Wire, str]:
            wire = stack.enter_context(contextlib.closing(Wire(sshd.port)))
            loopback.alias(f"wire-{wire.port}", wire.port)
            return wire, f"wire-{wire.port}"

        yield make


@pytest.fixture
def silent(loopback: Loopback) -> Iterator[str]:
    """A host that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        loopback.alias(f"silent-{port}", port)
        yield f"silent-{port}"


@pytest.fixture
def desk() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts gft-edge in a process of its own, which can be interrupted; ends those that are left."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: object, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "gft_edge", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=stderr, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            # A shell that runs the tests in the background has it ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def files_at_home(sshd: Sshd) -> set[str]:
    """The files of a device's user but for those in gft-edge's folder."""
    found: set[str] = set()
    for place, folders, files in os.walk(sshd.home):
        if Path(place) == sshd.folder.parent and "device" in folders:
            folders.remove("device")
        found.update(str(Path(place, name).relative_to(sshd.home)) for name in files)
    return found


def files_elsewhere(loopback: Loopback) -> set[str]:
    """The files of the devices' user in the folders that everybody may write to.

    Files of a user who was removed belong to the next one, who gets that user's number.
    """
    shared = ["/tmp", "/var/tmp", "/dev/shm"]
    others = ["-not", "-path", f"{loopback.folder}/*"]
    found = subprocess.run(
        ["find", *shared, "-user", loopback.user, *others],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return set(found.stdout.splitlines())


def until(done: Callable[[], bool], limit_s: float = 30) -> None:
    """Wait for something to come true."""
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)


def left_in_work(sshd: Sshd) -> list[str]:
    """What contacts left in the folder of what they placed."""
    return os.listdir(sshd.folder / "work")
