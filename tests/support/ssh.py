"""Devices for --on: real sshds on loopback, with keys and a configuration of their own.

Run by root, as CI does, they serve a user that is made for the session and removed with it; run by anybody
else, the one who runs the tests. Every device is an sshd of its own with a home folder of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SSHD = "/usr/sbin/sshd"
_USER = "gftedge"
_STARTS_S = 10


def why_none() -> str | None:
    """Why no sshd can run here, or None."""
    needed = (SSHD, "ssh", "ssh-keygen", "rsync", "setpriv")
    absent = [Path(name).name for name in needed if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt install openssh-server openssh-client rsync"
    return None


@dataclass(frozen=True)
class Sshd:
    """A device: the name that ssh knows it by, its port, and its home folder."""

    host: str
    port: int
    home: Path
    process: subprocess.Popen[bytes]

    @property
    def folder(self) -> Path:
        """Where gft-edge keeps everything on it."""
        return self.home / ".cache" / "gft-edge" / "device"

    def ssh(self, command: str) -> str:
        """Return what a command prints there."""
        done = subprocess.run(
            ["ssh", self.host, command], capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    def running(self, word: str) -> list[str]:
        """The command lines of the device's processes that have a word, but for sshd's own."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                home = f"HOME={self.home}".encode() in (folder / "environ").read_bytes().split(
                    b"\0"
                )
                if home and word.encode() in b" ".join(words):
                    found.append(b" ".join(words).decode(errors="replace"))
        return found


class Loopback:
    """The keys, the user and the client's configuration that the devices of a session share."""

    def __init__(self) -> None:
        # Below /tmp: the user has to reach it, whom pytest's own folders shut out.
        self.folder = Path(tempfile.mkdtemp(prefix="gft-edge-ssh-"))
        self.folder.chmod(0o755)
        self._config = self.folder / "config"
        self._sshds: list[Sshd] = []
        self._mounts: list[Path] = []
        for name in ("host", "other", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name],
                check=True,
            )
        self.user = _made_user(self.folder) if os.geteuid() == 0 else _own_name()
        # rsync and gft-edge call it by name, and read nothing of the developer's own.
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        real = shlex.quote(str(shutil.which("ssh")))
        wrapper = self.bin / "ssh"
        wrapper.write_text(f'#!/bin/sh\nexec {real} -F {self._config} "$@"\n')
        wrapper.chmod(0o755)

    def home(self, name: str, like: Path | None = None) -> Path:
        """A new home folder of the user's: empty, or a copy whose files have two names."""
        home = self.folder / "homes" / name
        home.parent.mkdir(exist_ok=True)
        if like is None:
            home.mkdir()
        else:
            subprocess.run(["cp", "-a", "--link", like, home], check=True)
        self.give(home)
        return home

    def give(self, path: Path) -> None:
        """Let the user own a file or folder, with all below it."""
        if os.geteuid() == 0:
            subprocess.run(["chown", "-R", "-h", self.user, path], check=True)

    def small_disk(self, path: Path, size: str) -> None:
        """Put a file system of a size at a folder of the user's. Raises OSError where none is allowed."""
        path.mkdir(parents=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise OSError(done.stderr.strip())
        self._mounts.append(path)
        self.give(path)

    def sshd(self, home: Path, env: Mapping[str, str] | None = None) -> Sshd:
        """Start a device that has a home folder and, besides HOME, these environment variables."""
        port = free_port()
        settings = {"HOME": str(home), **(env or {})}
        config = self.folder / f"sshd-{port}"
        config.write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {self.folder / 'host'}\nPidFile none\n"
            f"AuthorizedKeysFile {self.folder / 'user.pub'}\nPasswordAuthentication no\nUsePAM no\n"
            "KbdInteractiveAuthentication no\nStrictModes no\nMaxStartups 50\n"
            f"SetEnv {' '.join(_quoted(f'{name}={value}') for name, value in settings.items())}\n"
        )
        # No sftp subsystem: nothing here needs one. It ends with this process, however that ends.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", SSHD, "-D", "-f", config, "-E", f"{config}.log"],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        sshd = Sshd(f"device-{port}", port, home, process)
        self._sshds.append(sshd)
        if not _answers(port, process):
            raise OSError(f"sshd does not start: {Path(f'{config}.log').read_text()}")
        self.alias(sshd.host, port)
        return sshd

    def alias(self, host: str, port: int, key: str = "user", more: str = "") -> None:
        """Let ssh know a host by this name, which it opens with the key `user` or `other`.

        `more` is a line of its configuration, or several.
        """
        known = self.folder / f"known-{host}"
        known.write_text(f"[127.0.0.1]:{port} {(self.folder / 'host.pub').read_text()}")
        lines = (
            f"HostName 127.0.0.1\nPort {port}", f"User {self.user}\nUserKnownHostsFile {known}",
            f"IdentityFile {self.folder / key}\nIdentitiesOnly yes\nStrictHostKeyChecking yes",
            f"GlobalKnownHostsFile /dev/null\n{more}",
        )  # fmt: skip
        with self._config.open("a") as file:
            file.write(f"Host {host}\n" + "\n".join(lines) + "\n")

    def close(self) -> None:
        """End the servers and what runs in their sessions; remove folders and user."""
        for sshd in self._sshds:
            sshd.process.terminate()
            sshd.process.wait()
        if os.geteuid() == 0:
            with _changing_users():
                _removed_user(self.user)
        for path in self._mounts:
            subprocess.run(["umount", "-l", path], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    until = time.monotonic() + _STARTS_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as sock:
            if sock.recv(4) == b"SSH-":
                return True
        time.sleep(0.05)
    return False


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _own_name() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def _made_user(folder: Path) -> str:
    """Make a user of this process's, and remove those whose process was killed."""
    # sshd's own folder, which no init system has made in a container.
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with _changing_users():
        return _added_user(folder)


@contextlib.contextmanager
def _changing_users() -> Iterator[None]:
    """One process at a time: useradd gives up where another changes the users."""
    with Path("/run/gft-edge-ssh.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _added_user(folder: Path) -> str:
    for entry in pwd.getpwall():
        ours, number = entry.pw_name[: len(_USER)] == _USER, entry.pw_name[len(_USER) :]
        if ours and number.isdecimal() and not Path("/proc", number).exists():
            _removed_user(entry.pw_name)
            shutil.rmtree(entry.pw_dir, ignore_errors=True)
    name = f"{_USER}{os.getpid()}"
    subprocess.run(
        ["useradd", "--no-create-home", "--home-dir", folder, "--shell", "/bin/bash", name],
        check=True,
    )
    # Without PAM sshd refuses an account that is locked by "!".
    subprocess.run(["usermod", "--password", "*", name], check=True)
    return name


def _removed_user(name: str) -> None:
    number = pwd.getpwnam(name).pw_uid
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if folder.stat().st_uid == number:
                os.kill(int(folder.name), signal.SIGKILL)
    subprocess.run(["userdel", "--force", name], capture_output=True, check=False)
