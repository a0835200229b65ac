"""What the desk may ask of the device, one method an operation, until the desk is gone."""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import Any, BinaryIO

from gft_edge.remote.agent.environment import (
    PARTIAL,
    commands_environment,
    env_folder,
    install,
    python_of,
    requirements_met,
    unpacked,
)
from gft_edge.remote.agent.messages import MARKER, PIECE_BYTES, Desk, RefusedError, reason_of
from gft_edge.remote.agent.store import Store, linked_or_copied

# What a command that was interrupted has to end in, before it is killed.
INTERRUPT_S = 15.0
UNUSED_S = 60 * 24 * 3600
# What one of NVIDIA's drivers makes: a GPU's, a Jetson's of JetPack 5 and 6, WSL's.
NVIDIA = (
    "/proc/driver/nvidia/version",
    "/dev/nvidia0",
    "/dev/nvhost-gpu",
    "/dev/nvgpu",
    "/dev/dxg",
)

Message = dict[str, Any]


class Agent:
    """The device's folder, and the one command that runs in it."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        self._name = os.path.abspath(os.path.join(cache, "gft-edge", "device"))
        # Commands print the names of their files without links.
        self._folder = os.path.realpath(self._name)
        self._store = Store(os.path.join(self._folder, "store"))
        self._work = ""
        self._lock: BinaryIO | None = None
        self._placed: dict[str, dict[str, str]] = {}
        self._child: subprocess.Popen[bytes] | None = None

    def serve(self) -> None:
        """Do what the desk asks until it is gone; nothing that it started outlives it."""
        try:
            self._desk.send("hello", **self._facts())
            while True:
                message, payload = self._desk.receive()
                try:
                    answer = getattr(self, f"on_{message['op']}")(message, payload)
                except (OSError, RefusedError) as error:
                    self._desk.send("refused", reason=reason_of(error))
                else:
                    if answer is not None:
                        self._desk.send("done", **answer)
        except (EOFError, BrokenPipeError):
            pass
        finally:
            self._end_child()
            if self._work:
                shutil.rmtree(self._work, ignore_errors=True)

    def _facts(self) -> Message:
        return {
            "python": list(sys.version_info[:3]),
            "executable": sys.executable,
            "folder": self._folder,
            "machine": platform.machine(),
            "glibc": platform.libc_ver()[1],
            "board": _board(),
            "numpy": _version("numpy"),
            "tensorrt": importlib.util.find_spec("tensorrt") is not None,
            "tensorrt_rtx": importlib.util.find_spec("tensorrt_rtx") is not None,
            "nvidia": any(map(os.path.exists, NVIDIA)),
            "rsync": shutil.which("rsync") is not None,
            "incoming": self._store.incoming,
            "time": time.time(),
        }

    def on_begin(self, message: Message, payload: bytes) -> Message:
        """Make the folder, with room in it for this contact; remove what nobody uses any more."""
        try:
            for name in ("store/incoming", "work", "package", "env", "cache/tmp"):
                os.makedirs(os.path.join(self._folder, name), exist_ok=True)
            with open(self._works_lock(), "wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not self._others():
                    self._remove_unused()
                self._work = tempfile.mkdtemp(
                    prefix=f"{os.getpid()}-", dir=os.path.join(self._folder, "work")
                )
                self._lock = open(os.path.join(self._work, ".lock"), "wb")  # noqa: SIM115
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as error:
            reason = f"{self._folder} cannot be written ({error.strerror})"
            raise RefusedError(f"{reason}: gft-edge keeps there what it needs") from error
        return {}

    def _works_lock(self) -> str:
        return os.path.join(self._folder, "work.lock")

    def _others(self) -> list[str]:
        """The folders of other contacts; those that are over are removed."""
        work = os.path.join(self._folder, "work")
        names = os.listdir(work) if os.path.isdir(work) else []
        others = [path for name in names if (path := os.path.join(work, name)) != self._work]
        return [path for path in others if not _removed_if_abandoned(path)]

    def _remove_unused(self) -> None:
        """Remove what nobody asked for in months, and what contacts that were killed left."""
        for part in ("store", "store/incoming", "package", "cache/tmp"):
            for entry in os.scandir(os.path.join(self._folder, part)):
                left = part == "cache/tmp" or entry.name.startswith(PARTIAL)
                old = time.time() - entry.stat(follow_symlinks=False).st_mtime > UNUSED_S
                if entry.name == "incoming" or not (left or old):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)

    def on_have(self, message: Message, payload: bytes) -> Message:
        """Say which of the payload's sha256 -> size are missing, and how much of each is here.

        Where they are to be sent, no other desk sends until `sent` or `received`.
        """
        disk = os.statvfs(self._folder)
        wanted: dict[str, int | None] = json.loads(payload)
        missing = self._store.missing(wanted)
        if missing and message["send"]:
            self._store.claim(self._desk)
            missing = self._store.missing(wanted)
            if not missing:
                self._store.release()
        return {"missing": missing, "free_bytes": disk.f_bavail * disk.f_frsize}

    def on_put(self, message: Message, payload: bytes) -> None:
        """Take a piece of a file, unanswered."""
        self._store.put(message["sha256"], message["offset"], payload)

    def on_sent(self, message: Message, payload: bytes) -> Message:
        """Keep what came by `put`."""
        return {"failed": self._store.sent()}

    def on_received(self, message: Message, payload: bytes) -> Message:
        """Keep what came by rsync."""
        return {"failed": self._store.received(json.loads(payload))}

    def on_place(self, message: Message, payload: bytes) -> Message:
        """Make a folder, or a single file, of files that are here: the payload has path -> sha256."""
        root = os.path.join(self._work, message["root"])
        files: dict[str, str] = json.loads(payload)
        for name in message["folders"]:
            os.makedirs(os.path.join(root, name), exist_ok=True)
        for name, sha256 in files.items():
            path = os.path.join(root, name) if name else root
            os.makedirs(os.path.dirname(path), exist_ok=True)
            linked_or_copied(self._store.path(sha256), path)
        self._placed[message["root"]] = files
        return {"path": root}

    def on_met(self, message: Message, payload: bytes) -> Message:
        """Say which requirements were installed before."""
        return {"requirements": requirements_met(env_folder(self._folder))}

    def on_install(self, message: Message, payload: bytes) -> Message:
        """Unpack gft-edge, and install what it lacks."""
        package = os.path.join(self._folder, "package", message["package"])
        if os.path.isdir(package):
            os.utime(package)
        else:
            unpacked(self._store.path(message["package"]), package)
        env = env_folder(self._folder)
        if message["requirements"]:
            pip = self._store.path(message["pip"])
            install(message["requirements"], message["wheels"], pip, self._folder, env, self._desk)
        return {"python": python_of(env), "package": package}

    def on_run(self, message: Message, payload: bytes) -> None:
        """Start a command in the work folder; a thread tells what it prints, and `exit`."""
        words = [word if isinstance(word, str) else _there(word) for word in message["words"]]
        child = subprocess.Popen(
            words,
            cwd=self._work,
            env={**commands_environment(self._folder), **message["env"]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._child = child
        threading.Thread(target=self._tell, args=(child,), daemon=True).start()

    def _tell(self, child: subprocess.Popen[bytes]) -> None:
        def pump(name: str, stream: Any) -> None:
            while piece := os.read(stream.fileno(), PIECE_BYTES):
                self._desk.send(name, piece)

        # Whether the desk is gone is the main thread's to notice.
        with suppress(OSError):
            errors = threading.Thread(target=pump, args=("stderr", child.stderr), daemon=True)
            errors.start()
            pump("stdout", child.stdout)
            errors.join()
            self._desk.send("exit", code=child.wait())

    def on_interrupt(self, message: Message, payload: bytes) -> None:
        """Do what Ctrl-C in a terminal of the device would do."""
        if self._child is not None:
            _signal(self._child, signal.SIGINT)

    def on_alive(self, message: Message, payload: bytes) -> None:
        """Know that the desk is there."""

    def _end_child(self) -> None:
        """Interrupt the command, so that it tidies up; kill it if it does not end."""
        if self._child is None or self._child.poll() is not None:
            return
        _signal(self._child, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(INTERRUPT_S)
        _signal(self._child, signal.SIGKILL)

    def on_made(self, message: Message, payload: bytes) -> None:
        """Send the files of a placed folder that are new or changed."""
        root = os.path.join(self._work, message["root"])
        before = self._placed.get(message["root"], {})
        found = {}
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)
                relative = os.path.relpath(path, root)
                if name == ".lock" or not os.path.isfile(path):
                    continue
                if relative in before and self._store.holds(path, before[relative]):
                    continue
                found[relative] = self._store.adopt(path)
        self._desk.send("files", json.dumps(found).encode())

    def on_get(self, message: Message, payload: bytes) -> None:
        """Send a file of the store in pieces; an empty one ends it."""
        with open(self._store.path(message["sha256"]), "rb") as file:
            while piece := file.read(PIECE_BYTES):
                self._desk.send("piece", piece)
        self._desk.send("piece")

    def on_clean(self, message: Message, payload: bytes) -> Message:
        """Remove all that was put on this device."""
        there = os.path.isdir(self._folder)
        if there:
            with open(self._works_lock(), "wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self._others():
                    raise RefusedError(
                        f"{self._folder} is in use by another desk: try again when it is done"
                    )
                shutil.rmtree(self._folder)
            with suppress(OSError):
                os.rmdir(os.path.dirname(self._name))
        return {"folder": self._folder, "there": there}


def _removed_if_abandoned(work: str) -> bool:
    try:
        with open(os.path.join(work, ".lock"), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    shutil.rmtree(work, ignore_errors=True)
    return True


def _there(word: Message) -> str:
    """A path that the user gave as the device's own, as scp reads it."""
    return os.path.join(os.path.expanduser("~"), os.path.expanduser(word["there"]))


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _board() -> str | None:
    try:
        with open("/proc/device-tree/model", encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0\n ") or None
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gone(number: int, frame: object) -> None:
    raise EOFError


def main() -> None:
    """Serve the desk on this process's standard streams."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _gone)
    os.write(1, MARKER)
    Agent(Desk()).serve()
