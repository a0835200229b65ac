"""The desk's end of the connection: ssh started, the agent sent, messages exchanged, failures in one line."""

from __future__ import annotations

import json
import subprocess
import threading
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from gft_edge.bundle.specs import Say
from gft_edge.errors import RemoteError, UsageError
from gft_edge.remote.agent.messages import MARKER

CONNECT_S = 10
CLOSE_S = 20
ALIVE_S = 5
# ssh's own: more than this many ALIVE_S without an answer is a lost connection.
UNANSWERED = 4
# ssh says with it that not the remote command failed but the connection.
SSH_FAILED = 255

_PYTHONS = "/usr/bin/python3 python3 python3.13 python3.12 python3.11 python3.10"
_NO_PYTHON = b"gft-edge finds no Python"


def check_host(host: str) -> None:
    """Raise UsageError for what cannot be a host, or would be an option of ssh."""
    if not host.strip() or host.startswith("-"):
        raise UsageError(f"--on {host!r} is no host: give what ssh takes, for example user@board")


def ssh_options(host: str) -> list[str]:
    """Time limits for what the user's own ssh configuration leaves open. Raises UsageError.

    https://man.openbsd.org/ssh_config
    """
    check_host(host)
    try:
        found = subprocess.run(
            ["ssh", "-G", "--", host], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except FileNotFoundError:
        raise UsageError("--on needs the ssh command: install OpenSSH's client") from None
    if found.returncode:
        raise UsageError(f"--on {host}: {found.stderr.decode(errors='replace').strip()}")
    told = dict(
        line.split(" ", 1)
        for line in found.stdout.decode(errors="replace").splitlines()
        if " " in line
    )
    options = ["-o", "ClearAllForwardings=yes", "-o", "RemoteCommand=none"]
    if told.get("connecttimeout", "none") == "none":
        options += ["-o", f"ConnectTimeout={CONNECT_S}"]
    if told.get("serveraliveinterval", "0") == "0":
        options += [
            "-o",
            f"ServerAliveInterval={ALIVE_S}",
            "-o",
            f"ServerAliveCountMax={UNANSWERED}",
        ]
    return options


class Channel:
    """A connection to a device, whose `facts` the agent told; closing it ends what runs there."""

    def __init__(self, host: str, say: Say) -> None:
        self.host = host
        self.facts: dict[str, Any] = {}
        self.aborted = False
        self._say = say
        self._told: list[str] = []
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self._ssh: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        """Connect. Raises RemoteError with ssh's reason, UsageError."""
        program = _program()
        options = ssh_options(self.host)
        # Ctrl-C is for the remote command: an ssh that dies of it could not say how that ended.
        self._ssh = subprocess.Popen(
            ["sh", "-c", 'trap "" INT; exec "$@"', "ssh", "ssh", "-T", *options, "--", self.host,
             _start(len(program))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._errors = threading.Thread(target=self._read_errors, daemon=True)
        self._errors.start()
        try:
            if self.aborted:
                self.abort()
            self._write(program)
            self._skip_greeting()
            self.facts, _ = self.receive()
        except BaseException:
            self.abort()
            self.close()
            raise
        threading.Thread(target=self._keep_alive, daemon=True).start()

    def send(self, op: str, payload: bytes | memoryview = b"", **fields: Any) -> None:
        """Send one message. Raises RemoteError."""
        head = json.dumps({**fields, "op": op, "bytes": len(payload)}).encode() + b"\n"
        with self._sending:
            self._write(head, payload)

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """Wait for one message; remarks are said. Raises RemoteError, also for what is refused."""
        while True:
            head = self._read_line()
            try:
                message = json.loads(head)
            except ValueError:
                # What a device's profile prints at its end, for example.
                raise RemoteError(
                    self.host, f"something else writes into the connection: {head[:80]!r}"
                ) from None
            payload = self._read(message["bytes"])
            if message["op"] == "say":
                self._say(message["text"])
            elif message["op"] == "refused":
                # The agent does not know by which name the user calls its device.
                reason = message["reason"].replace("--on HOST", f"--on {self.host}")
                raise RemoteError(self.host, reason)
            else:
                return message, payload

    def ask(self, op: str, payload: bytes = b"", **fields: Any) -> dict[str, Any]:
        """Send a message and wait for its answer. Raises RemoteError."""
        self.send(op, payload, **fields)
        return self.receive()[0]

    def abort(self) -> None:
        """Break the connection, from any thread: whoever waits for the device gets a RemoteError."""
        self.aborted = True
        if self._ssh is not None:
            self._ssh.kill()

    def close(self) -> None:
        """End the connection and what runs at its other end."""
        self._closed.set()
        if self._ssh is None:
            return
        assert self._ssh.stdin is not None
        with suppress(OSError):
            self._ssh.stdin.close()
        try:
            # What runs there is interrupted first, and may tidy up.
            self._ssh.wait(timeout=CLOSE_S)
        except subprocess.TimeoutExpired:
            self._ssh.kill()
            self._ssh.wait()
        assert self._ssh.stdout is not None
        assert self._ssh.stderr is not None
        self._ssh.stdout.close()
        # A ControlMaster that this ssh started may keep the stream open for hours.
        self._errors.join(timeout=1)
        if not self._errors.is_alive():
            self._ssh.stderr.close()

    def _keep_alive(self) -> None:
        while not self._closed.wait(ALIVE_S):
            try:
                self.send("alive")
            except RemoteError:
                return

    def _write(self, *parts: bytes | memoryview) -> None:
        assert self._ssh is not None
        assert self._ssh.stdin is not None
        try:
            for part in parts:
                self._ssh.stdin.write(part)
            self._ssh.stdin.flush()
        except (OSError, ValueError):
            raise self._failure() from None

    def _read_line(self) -> bytes:
        assert self._ssh is not None
        assert self._ssh.stdout is not None
        line = self._ssh.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._failure()
        return line

    def _read(self, count: int) -> bytes:
        assert self._ssh is not None
        assert self._ssh.stdout is not None
        content = self._ssh.stdout.read(count)
        if len(content) < count:
            raise self._failure()
        return content

    def _skip_greeting(self) -> None:
        """Skip what the login shell prints before the agent's first line."""
        # A greeting need not end its last line.
        while not (line := self._read_line()).endswith(MARKER):
            if _NO_PYTHON in line:
                found = line.partition(_NO_PYTHON)[2].decode(errors="replace").strip()
                raise RemoteError(
                    self.host,
                    f"needs Python 3.10 or newer, it has {found or 'none'}: install one there "
                    "(Ubuntu, Debian: apt install python3; JetPack 5 has 3.8: JetPack 6 or newer)",
                )

    def _read_errors(self) -> None:
        """Show what ssh says, unchanged."""
        assert self._ssh is not None
        assert self._ssh.stderr is not None
        for line in self._ssh.stderr:
            text = line.decode(errors="replace").rstrip("\r\n")
            if text.strip():
                self._told.append(text)
                self._say(text)

    def _failure(self) -> RemoteError:
        """Say why there is no connection, or none any more."""
        assert self._ssh is not None
        try:
            code = self._ssh.wait(timeout=CONNECT_S)
        except subprocess.TimeoutExpired:
            code = None
        self._errors.join(timeout=1)
        told = self._told[-1] if self._told else "no reason given"
        if not self.facts:
            return RemoteError(self.host, f"cannot be reached: {told}")
        if code == SSH_FAILED or code is None:
            return RemoteError(
                self.host, f"the connection was lost ({told}): the same command goes on"
            )
        return RemoteError(self.host, f"the agent ended ({told})")


def _start(length: int) -> str:
    """The command line that starts the agent in the best Python there is, under any login shell.

    The system's Python comes first: a Jetson's TensorRT is made for it alone.
    """
    # Without the working folder: a random.py of the user's would be imported from it. Byte by byte: what
    # a buffer read ahead would be lost to the agent.
    load = (
        "import sys;sys.path[:]=filter(None,sys.path);import os,zlib;"
        f"exec(zlib.decompress(bytes().join(os.read(0,1)for _ in range({length}))))"
    )
    version = "import sys;sys.exit(sys.version_info<(3,10))"
    return (
        f"exec sh -c 'for p in {_PYTHONS}; do "
        f'if "$p" -c "{version}" 2>/dev/null; then exec "$p" -u -c "{load}"; fi; done; '
        f'echo "{_NO_PYTHON.decode()} $(python3 --version 2>/dev/null)"\''
    )


def _program() -> bytes:
    """The agent's modules as one compressed program, each under the name that the others import."""
    folder = Path(__file__).parent / "agent"
    sources = {
        f"{__package__}.agent.{name}": (folder / f"{name}.py").read_text("utf-8")
        for name in ("messages", "store", "environment", "serve")
    }
    text = (
        "import sys, types\n"
        f"for name, source in {sources!r}.items():\n"
        "    module = sys.modules[name] = types.ModuleType(name)\n"
        "    exec(compile(source, name, 'exec'), module.__dict__)\n"
        "module.main()\n"
    )
    return zlib.compress(text.encode(), 9)
