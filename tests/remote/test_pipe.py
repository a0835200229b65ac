"""The desk and the agent over a pipe of this machine in place of ssh: what they do without a network."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gft_edge.errors import RemoteError, UsageError
from gft_edge.remote import channel as channel_room
from gft_edge.remote.agent.environment import RECORD, env_folder, unpacked
from gft_edge.remote.agent.serve import UNUSED_S
from gft_edge.remote.channel import Channel
from gft_edge.remote.content import content_of, send_files
from gft_edge.remote.device import Device
from gft_edge.remote.package import package_zip, requirements
from tests.remote.conftest import until
from tests.support.cli import refusal, run, run_json
from tests.support.files import write
from tests.support.refusals import refusal_of

# It takes ssh's words, and runs the last of them in a shell of this machine.
_SSH = """#!/bin/sh
[ "$1" = -G ] && exit 0
for word; do :; done
{before}
exec /bin/sh -c "$word"
"""

LABELS = hashlib.sha256(b"labels").hexdigest()


def quiet(text: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The agent's folder at the other end of an ssh that stays here."""
    home = tmp_path / "a home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(channel_room, "_PYTHONS", sys.executable)
    answers_with(tmp_path, "")
    return home / ".cache" / "gft-edge" / "device"


def answers_with(tmp_path: Path, before: str) -> None:
    """Let the login shell do something before it starts what it was asked for."""
    path = tmp_path / "bin" / "ssh"
    path.parent.mkdir(exist_ok=True)
    path.write_text(_SSH.format(before=before))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def contact(folder: Path) -> Iterator[Callable[[], Channel]]:
    """Opens connections whose agent has its folder, and closes them."""
    opened: list[Channel] = []

    def begin() -> Channel:
        channel = Channel("board", lambda text: None)
        channel.open()
        opened.append(channel)
        channel.ask("begin")
        return channel

    yield begin
    for channel in opened:
        channel.close()


@pytest.fixture
def ready(folder: Path) -> None:
    """An environment that has all: its Python is that of the tests."""
    env = Path(env_folder(str(folder)))
    (env / "bin").mkdir(parents=True)
    python = env / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    facts = {"numpy": None}
    (env / RECORD).write_text(json.dumps(requirements({"onnx"}, facts)))


# The connection.


@pytest.mark.parametrize(
    "greeting", ["echo welcome", "printf 'no end of line'", "printf '\\377\\0\\n{}\\n'"]
)
def test_what_the_login_shell_prints_is_skipped(
    folder: Path, tmp_path: Path, greeting: str
) -> None:
    answers_with(tmp_path, greeting)
    with Device("board", quiet, lambda text: None) as device:
        assert device.facts["folder"] == str(folder)


def test_a_device_without_python_is_named_with_what_it_takes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_room, "_PYTHONS", "no-python")
    refusal_of(RemoteError, Channel("board", lambda text: None).open, "board", "3.10")


def test_without_ssh_its_package_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refusal_of(UsageError, Channel("board", lambda text: None).open, "OpenSSH")


def test_a_shell_that_ends_gives_its_last_words(folder: Path, tmp_path: Path) -> None:
    answers_with(tmp_path, "echo some noise; echo This account is not available. >&2; exit 1")
    refusal_of(RemoteError, Channel("board", lambda text: None).open, "account is not available")


def test_modules_of_the_users_own_are_not_imported(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ssh starts in the home folder, where a random.py may lie."""
    home = Path(os.environ["HOME"])
    for name in ("zlib", "random", "json", "tempfile"):
        (home / f"{name}.py").write_text("raise ImportError('of the home folder')\n")
    monkeypatch.chdir(home)
    with Device("board", quiet, lambda text: None) as device:
        assert device.clean() == (str(folder), False)


def test_a_clock_that_is_off_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10 * 24 * 3600)
    with Device("board", quiet, told.append):
        pass
    (line,) = told
    assert "board is 10 days slow" in line


def test_what_a_contact_placed_goes_with_it(contact: Callable[[], Channel], folder: Path) -> None:
    channel = contact()
    (left,) = os.listdir(folder / "work")
    channel.close()
    assert os.listdir(folder / "work") == []
    # Here it kills the agent, which can then remove nothing.
    contact().abort()
    contact()
    (other,) = os.listdir(folder / "work")
    assert left != other


# Files.


def test_a_copy_goes_on_where_it_broke_off(
    contact: Callable[[], Channel], folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "labels"
    file.write_bytes(b"labels")
    first = contact()
    first.ask("have", json.dumps({LABELS: 6}).encode(), send=True)
    first.send("put", b"lab", sha256=LABELS, offset=0)
    first.close()
    assert send_files(contact(), {LABELS: file}, quiet) == 3
    assert (folder / "store" / LABELS).read_bytes() == b"labels"
    assert os.listdir(folder / "store" / "incoming") == []


def test_what_arrives_damaged_is_not_kept(
    contact: Callable[[], Channel], folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "labels"
    file.write_bytes(b"lapels")
    refusal_of(RemoteError, lambda: send_files(contact(), {LABELS: file}, quiet), str(file))
    assert not (folder / "store" / LABELS).exists()
    file.write_bytes(b"labels")
    assert send_files(contact(), {LABELS: file}, quiet) == 6


def test_a_file_without_its_content_counts_as_missing(
    contact: Callable[[], Channel], folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "labels"
    file.write_bytes(b"labels")
    channel = contact()
    (folder / "store" / LABELS).touch()
    assert send_files(channel, {LABELS: file}, quiet) == 6
    assert send_files(channel, {LABELS: file}, quiet) == 0


def test_a_desk_waits_for_one_that_sends(contact: Callable[[], Channel], tmp_path: Path) -> None:
    file = tmp_path / "labels"
    file.write_bytes(b"labels")
    first, second = contact(), contact()
    told: list[str] = []
    second._say = told.append
    first.ask("have", json.dumps({LABELS: 6}).encode(), send=True)
    sent: list[int] = []
    waiting = threading.Thread(
        target=lambda: sent.append(send_files(second, {LABELS: file}, quiet))
    )
    waiting.start()
    until(lambda: told != [])
    assert "another desk" in told[0]
    first.send("put", b"labels", sha256=LABELS, offset=0)
    assert first.ask("sent")["failed"] == {}
    waiting.join(timeout=20)
    assert sent == [0]


def test_what_nobody_asked_for_in_months_is_removed_when_nobody_is_there(
    contact: Callable[[], Channel], folder: Path
) -> None:
    """A device whose clock jumps finds everything old: what another desk uses stays."""
    first = contact()
    long_ago = time.time() - UNUSED_S - 3600
    old = [folder / "store" / LABELS, folder / "package" / LABELS]
    old[0].touch()
    old[1].mkdir()
    for path in old:
        os.utime(path, (long_ago, long_ago))
    (folder / "cache" / "tmp" / "left").touch()
    contact().close()
    assert all(path.exists() for path in old)
    first.close()
    contact()
    assert not any(path.exists() for path in old)
    assert os.listdir(folder / "cache" / "tmp") == []


def test_clean_waits_until_no_other_desk_is_there(
    contact: Callable[[], Channel], folder: Path
) -> None:
    channel = contact()
    assert "another desk" in refusal("doctor", "--on", "board", "--clean", exit_code=1)
    channel.close()
    assert run_json("doctor", "--on", "board", "--clean")["removed"] is True
    assert not folder.parent.exists()
    assert folder.parent.parent.is_dir()


@pytest.mark.parametrize(
    ("path", "sha256"),
    [("out/../../.bashrc", LABELS), ("/etc/passwd", LABELS), ("out/a.png", "../../.bashrc")],
)
def test_a_device_cannot_have_files_written_elsewhere_on_the_desk(path: str, sha256: str) -> None:
    device: Any = Device("board", quiet, lambda text: None)
    answer = json.dumps({path: sha256}).encode()
    device._channel = SimpleNamespace(send=lambda *a, **k: None, receive=lambda: ({}, answer))
    refusal_of(RemoteError, lambda: device.made("/device/1"), "board", path)


def test_a_package_that_another_desk_unpacked_meanwhile_is_kept(tmp_path: Path) -> None:
    archive = tmp_path / "package.zip"
    archive.write_bytes(package_zip())
    place = tmp_path / "package"
    for _ in range(2):
        unpacked(str(archive), str(place))
    assert (place / "gft_edge" / "export" / "pipeline.py").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["package", "package.zip"]


def test_the_package_has_its_version_however_it_is_installed_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editable checkout that is first on the path says so in PKG-INFO, without METADATA."""
    write(tmp_path / "gft_edge.egg-info", {"PKG-INFO": 0})
    told = "Metadata-Version: 2.1\nName: gft-edge\nVersion: 7.8.9\n"
    (tmp_path / "gft_edge.egg-info" / "PKG-INFO").write_text(told)
    monkeypatch.syspath_prepend(tmp_path)
    with zipfile.ZipFile(io.BytesIO(package_zip())) as archive:
        assert archive.read("gft_edge-7.8.9.dist-info/METADATA").decode() == told


def test_folders_travel_with_what_links_lead_to_and_no_circles(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", {"a": 1, "deep/b": 2, ".lock": 0, "deep/.lock": 0})
    (folder / "linked").symlink_to(folder / "a")
    (folder / "deep" / "round").symlink_to(folder)
    (folder / "empty").mkdir()
    content = content_of({"1/it's": folder, "2": folder / "a"})
    assert {*content.files} == {"1/it's/a", "1/it's/deep/b", "1/it's/linked", "2"}
    assert content.folders == ("1/it's/empty",)
    assert content.files["2"] == content.files["1/it's/a"] == content.files["1/it's/linked"]
    assert {*content_of({"": folder}).files} == {"a", "deep/b", "linked"}
    refusal_of(UsageError, lambda: content_of({"1": tmp_path / "gone"}), "gone")


# A whole command.


@pytest.mark.slow
def test_a_host_that_fails_leaves_the_others_theirs(
    ready: None, folder: Path, tmp_path: Path
) -> None:
    answers_with(tmp_path, 'case "$*" in *nowhere*) echo no route >&2; exit 255;; esac')
    result = run("doctor", "--on", "board", "--on", "nowhere", "--json")
    assert result.exit_code == 1
    good, bad = json.loads(result.stdout)
    here = run_json("doctor")
    assert (good["host"], bad["host"]) == ("board", "nowhere")
    assert good["machine"]["cpu"] == here["machine"]["cpu"]
    assert good["engines"].keys() == here["engines"].keys()
    assert "no route" in bad["error"]
    assert os.listdir(folder / "work") == []
