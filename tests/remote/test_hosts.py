"""--on takes what ssh takes, with the user's own configuration."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.support.cli import run_json
from tests.support.ssh import Loopback, Sshd, free_port

pytestmark = pytest.mark.slow


def test_a_host_may_be_a_uri_with_its_user_and_port(
    device: Sshd, loopback: Loopback, large_copy: Path
) -> None:
    """rsync, which knows no such URI, sends the large file."""
    loopback.alias("elsewhere", free_port())
    host = f"ssh://{loopback.user}@elsewhere:{device.port}"
    # The key of a host on another port than its own is known under that port.
    known = loopback.folder / "known-elsewhere"
    known.write_text(f"[127.0.0.1]:{device.port} {(loopback.folder / 'host.pub').read_text()}")
    assert run_json("verify", large_copy, "--on", host)["host"] == host


def test_a_shared_connection_that_stays_open_keeps_nobody_waiting(
    device: Sshd, loopback: Loopback, large_copy: Path
) -> None:
    """The first ssh to use it leaves a master behind."""
    path = loopback.folder / "master"
    more = f"ControlMaster auto\nControlPath {path}\nControlPersist 60"
    loopback.alias("shared", device.port, more=more)
    started = time.monotonic()
    try:
        for _ in range(2):
            assert run_json("verify", large_copy, "--on", "shared")["verdict"] == "pass"
        assert path.exists()
    finally:
        subprocess.run(["ssh", "-O", "exit", "shared"], capture_output=True, check=False)
    assert time.monotonic() - started < 40


def test_a_host_whose_configuration_has_a_command_of_its_own_does_ours(
    device: Sshd, loopback: Loopback
) -> None:
    loopback.alias("tmux", device.port, more="RemoteCommand echo hello\nRequestTTY force")
    assert run_json("doctor", "--on", "tmux")["host"] == "tmux"
