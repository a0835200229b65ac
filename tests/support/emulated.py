"""An arm64 Debian under user-mode emulation, and gft-edge's commands carried out in it.

It lies in a folder of this clone. Packages are unpacked, never installed, and nothing is registered
with the kernel: each command runs in a mount namespace of its own that ends with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gft_edge.remote.package import requirements, wheel_options
from tests.support.paths import ROOT
from tests.support.sources import built_wheel, last_line
from tests.support.tools import lacking

FOLDER = ROOT / ".arm64"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PROGRAMS = ("apt-get", "dpkg-deb", "tar", "unshare", "mount", "chroot")

# Python 3.11 comes from Debian 12. The emulator of Debian 12 shows this machine's processor to the
# guest, and ONNX Runtime dies at import: 13's shows the emulated one. Both of its packages are static.
_SOURCES = """
deb [arch=arm64 signed-by={keyring}] http://deb.debian.org/debian bookworm main
deb [arch=amd64 signed-by={keyring}] http://deb.debian.org/debian trixie main
"""
_GUEST_PACKAGES = ("python3", "libstdc++6", "libgomp1")
_HOST_PACKAGES = ("qemu-user:amd64", "busybox-static:amd64")
_GLIBC = "2.36"  # of Debian 12

# It has instructions that a Cortex-A72 lacks: https://github.com/microsoft/onnxruntime/issues/23957
_UNFIT = "onnxruntime==1.21.0"

# The kernel cannot start an arm64 program by itself, so the guest's Python is this script, which a
# shell of this machine's architecture reads: a child process of the guest's is emulated too.
_PYTHON = """#!/opt/emulator/sh
exec /opt/emulator/qemu -0 "$0" /usr/bin/python3.11.bin "$@"
"""

_ENTER = """
ulimit -c 0
root=$1 work=$2
shift 2
mount -t tmpfs none "$root/tmp"
mount -t tmpfs none "$root/dev"
mkdir "$root/dev/shm"
for device in null zero random urandom; do
  : > "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t proc none "$root/proc"
mount --bind /sys "$root/sys"
mount --bind "$work" "$root/work"
# The shell stays: the kernel lets no signal end the first process of a namespace, and a guest that dies
# of an illegal instruction would hang.
chroot "$root" /opt/emulator/sh -c 'cd /work && exec /usr/bin/python3.11 "$@"' python3.11 "$@" || exit $?
"""

# One process for many commands: under emulation importing takes most of the time.
_DRIVER = """
import json, sys
from click.testing import CliRunner
from gft_edge.cli import main
for words in json.load(sys.stdin):
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    print(json.dumps([done.exit_code, done.stdout, done.stderr]), flush=True)
"""


@dataclass(frozen=True)
class Answer:
    """What a command ended with and printed."""

    exit_code: int
    stdout: str
    stderr: str

    def lines(self) -> list[dict[str, Any]]:
        """The JSON objects that it printed, one a line."""
        return [json.loads(line) for line in self.stdout.splitlines()]

    def content(self) -> dict[str, Any]:
        """The one JSON object that it printed."""
        content: dict[str, Any] = json.loads(self.stdout)
        return content


@dataclass(frozen=True)
class Userland:
    """An arm64 Debian 12 with Python 3.11, and below /opt/app gft-edge and what it needs."""

    root: Path

    def python(
        self, processor: str, work: Path, *words: str, given: str = "", unfit: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run the guest's Python on a processor, by QEMU's name for it, with `work` as its folder.

        With `unfit` it has an ONNX Runtime that does not run on every processor. An exit code of 128
        and a number is the signal that ended it.
        """
        environment = {
            "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": "/tmp", "XDG_CACHE_HOME": "/tmp",
            "PYTHONPATH": "/opt/unfit:/opt/app" if unfit else "/opt/app", "QEMU_CPU": processor,
        }  # fmt: skip
        own = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
        return subprocess.run(
            [*own, "sh", "-ec", _ENTER, "sh", str(self.root), str(work), *words],
            input=given, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def commands(
        self, processor: str, work: Path, commands: Sequence[Sequence[str]]
    ) -> list[Answer]:
        """Carry out gft-edge's commands in turn, in one process of the guest's."""
        done = self.python(processor, work, "-c", _DRIVER, given=json.dumps(commands))
        return _answers(done, commands, processor)


def commands_here(work: Path, commands: Sequence[Sequence[str]]) -> list[Answer]:
    """Carry out gft-edge's commands in turn, in one process of this machine's."""
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER], input=json.dumps(commands), cwd=work,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return _answers(done, commands, "this machine")


def _answers(
    done: subprocess.CompletedProcess[str], commands: Sequence[Sequence[str]], where: str
) -> list[Answer]:
    answers = [Answer(*json.loads(line)) for line in done.stdout.splitlines()]
    if done.returncode or len(answers) != len(commands):
        code = done.returncode
        # A shell adds 128 to the signal, Python turns its sign.
        number = -code if code < 0 else code - 128
        how = signal.Signals(number).name if number > 0 else f"exit code {code}"
        words = " ".join(commands[len(answers)]) if len(answers) < len(commands) else "the last"
        raise AssertionError(f"{where}: {how} ended {words}\n{done.stderr[-2000:]}")
    return answers


def made_userland(folder: Path) -> Userland:
    """Return the userland with this tree's wheel, built in `folder`; it is made anew when needs change.

    A test that asks for it is told what this machine lacks.
    """
    _check_machine()
    wheel = built_wheel(folder)
    root = FOLDER / "userland"
    stamp = FOLDER / "made-for"
    wanted = hashlib.sha256(
        (ROOT / "pyproject.toml").read_bytes() + Path(__file__).read_bytes()
    ).hexdigest()
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.rmtree(FOLDER, ignore_errors=True)
        root.mkdir(parents=True)
        _unpack(root, FOLDER / "apt")
        facts = {"python": (3, 11, 0), "glibc": _GLIBC, "machine": "aarch64", "numpy": None}
        chosen = wheel_options(facts)
        _pip_install(root / "opt" / "app", *chosen, *requirements(("onnx", "openvino"), facts))
        _pip_install(root / "opt" / "unfit", *chosen, "--no-deps", _UNFIT)
        stamp.write_text(wanted)
    _pip_install(root / "opt" / "app", "--no-deps", "--upgrade", str(wheel))
    made = Userland(root)
    told = made.python(
        "cortex-a72", root / "work", "-c", "import platform; print(platform.machine())"
    )
    if told.stdout != "aarch64\n":
        lacking(f"the arm64 userland does not run here: {last_line(told)}")
    return made


def _check_machine() -> None:
    """Say what this machine lacks to make a userland and to run it."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        lacking("the emulator is unpacked for Linux on x86-64, and this is another machine")
    if os.geteuid() != 0:
        lacking("only root may enter the arm64 userland: sudo make test-arm64")
    for program in PROGRAMS:
        if shutil.which(program) is None:
            lacking(f"no {program} here: the arm64 userland is made on Debian")
    if not KEYRING.is_file():
        lacking(f"no {KEYRING} here: apt install debian-archive-keyring")


def _unpack(root: Path, apt: Path) -> None:
    """Fetch Debian's packages with an apt of their own in `apt`, unpack them into `root`, drop `apt`."""
    for folder in ("state/lists/partial", "cache/archives/partial", "host", "emulator"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(_SOURCES.format(keyring=KEYRING))
    options = {
        "Dir::State": apt / "state", "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache", "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null", "APT::Architecture": "arm64",
        "APT::Sandbox::User": "root", "APT::Update::Error-Mode": "any",
    }  # fmt: skip
    words = [f"--option={name}={value}" for name, value in options.items()]
    words += [f"--option=APT::Architectures::={name}" for name in ("arm64", "amd64")]
    get = ["apt-get", *words, "--quiet=2"]
    _do([*get, "update"], apt)
    only = ("--download-only", "--yes", "--no-install-recommends")
    _do([*get, "install", *only, *_GUEST_PACKAGES], apt)
    _do([*get, "download", *_HOST_PACKAGES], apt / "host")
    # A package without Debian's install scripts is its files; the links stand for the folders that
    # Debian has merged into usr.
    for name in ("bin", "lib", "sbin"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in (apt / "cache" / "archives").glob("*.deb"):
        _unpack_package(package, root)
    for package in (apt / "host").glob("*.deb"):
        _unpack_package(package, apt / "emulator")
    for name in ("proc", "sys", "dev", "tmp", "work", "opt/emulator"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for program, name in (("qemu-aarch64", "qemu"), ("busybox", "sh")):
        shutil.copy(apt / "emulator" / "usr" / "bin" / program, root / "opt" / "emulator" / name)
    python = root / "usr" / "bin" / "python3.11"
    python.rename(python.with_name("python3.11.bin"))
    python.write_text(_PYTHON)
    python.chmod(0o755)
    shutil.rmtree(apt)


def _unpack_package(package: Path, into: Path) -> None:
    files = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE, check=True
    ).stdout
    unpack = ["tar", "--extract", "--keep-directory-symlink", "--directory", str(into)]
    subprocess.run(unpack, input=files, check=True)


def _pip_install(folder: Path, *words: str) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _do([*pip, "--target", str(folder), *words], FOLDER)


def _do(command: Sequence[str], folder: Path) -> None:
    """Run a command that asks an index, and say why where it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lacking(f"no arm64 userland can be fetched: {Path(command[0]).name}: {last_line(done)}")
