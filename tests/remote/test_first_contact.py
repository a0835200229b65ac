"""The first contact with a device makes gft-edge ready there, in one folder; a second finds it ready."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gft_edge.remote import device as device_room
from gft_edge.remote.package import package_zip
from tests.remote.conftest import Prepared, files_at_home, files_elsewhere, left_in_work
from tests.support.cli import refusal, run, run_json
from tests.support.ssh import Loopback, Sshd
from tests.support.tools import lacking
from tests.support.wire import Wire

pytestmark = pytest.mark.slow

MakeDevice = Callable[..., Sshd]
Wired = Callable[[Sshd], tuple[Wire, str]]
Desk = Callable[..., "subprocess.Popen[str]"]


# What is made, and where.


def test_a_first_contact_says_its_steps_and_does_the_work(
    prepared: Prepared, onnx_bundle: Path
) -> None:
    result, sshd = prepared.result, prepared.sshd
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["host"], told["verdict"], told["golden"]["top1_agreement"]) == (
        sshd.host,
        "pass",
        1,
    )
    steps = result.stderr.splitlines()
    assert any("making a virtual environment of /" in line for line in steps)
    assert any("installing" in line and "onnxruntime" in line for line in steps)
    here = run_json("verify", onnx_bundle)
    # Whether the onnx package is installed decides about one check more.
    assert {**told, "skipped": []} == {**here, "skipped": [], "host": sshd.host}


def test_nothing_is_written_outside_of_one_folder(prepared: Prepared, loopback: Loopback) -> None:
    assert prepared.sshd.folder.is_dir()
    assert files_at_home(prepared.sshd) == prepared.at_home_before
    assert left_in_work(prepared.sshd) == []
    if os.geteuid() == 0:
        assert files_elsewhere(loopback) == prepared.elsewhere_before


def test_a_second_contact_finds_all_of_it(device: Sshd, wired: Wired, onnx_bundle: Path) -> None:
    wire, host = wired(device)
    result = run("verify", onnx_bundle, "--on", host)
    assert result.exit_code == 0, result.output
    assert "installing" not in result.stderr
    # The agent, and lists of hashes: not the package, not the bundle.
    assert wire.count() < 100_000


def test_clean_removes_all_of_it(copied: MakeDevice, prepared: Prepared) -> None:
    sshd = copied("home with a space")
    told = run_json("doctor", "--on", sshd.host, "--clean")
    assert told == {"folder": str(sshd.folder), "removed": True, "host": sshd.host}
    assert not sshd.folder.exists()
    assert files_at_home(sshd) == prepared.at_home_before
    assert run_json("doctor", "--on", sshd.host, "--clean")["removed"] is False


def test_another_version_has_a_folder_of_its_own(
    device: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = device.folder / "package"
    (before,) = os.listdir(packages)

    def another() -> bytes:
        return package_zip() + b"\0"

    monkeypatch.setattr(device_room, "package_zip", another)
    assert run("doctor", "--on", device.host).exit_code == 0
    monkeypatch.undo()
    both = os.listdir(packages)
    assert len(both) == 2
    assert before in both
    assert run("doctor", "--on", device.host).exit_code == 0
    assert len(os.listdir(packages)) == 2


# How devices differ.


def test_offline_a_device_without_index_and_without_ensurepip_is_made_ready(
    fresh: MakeDevice, shims: Path, onnx_bundle: Path
) -> None:
    """As stock Ubuntu and JetPack come: python3-venv has ensurepip there."""
    absent(shims, "ensurepip")
    nowhere = "http://somebody:verysecret@127.0.0.1:9/simple"
    # What the user keeps at home is not taken for Python's own.
    sshd = fresh({"PIP_INDEX_URL": nowhere, "PIP_RETRIES": "1", "PYTHONPATH": str(shims)})
    absent(sshd.home, "logging")
    result = run("verify", onnx_bundle, "--on", sshd.host)
    assert result.exit_code == 1
    assert "--offline" in result.stderr.splitlines()[-1]
    assert "verysecret" not in result.output
    result = run("verify", onnx_bundle, "--on", sshd.host, "--offline")
    assert result.exit_code == 0, result.output
    assert run("verify", onnx_bundle, "--on", sshd.host).exit_code == 0


def test_a_device_without_the_venv_module_says_what_to_install(
    fresh: MakeDevice, shims: Path
) -> None:
    absent(shims, "venv")
    sshd = fresh({"PYTHONPATH": str(shims)})
    line = refusal("doctor", "--on", sshd.host, exit_code=1)
    assert re.search(r"apt install python3\.\d+-venv", line)


def test_a_device_whose_python_is_too_old_says_which_it_takes(
    fresh: MakeDevice, shims: Path
) -> None:
    (shims / "sitecustomize.py").write_text("import sys\nsys.version_info = (3, 8, 10)\n")
    sshd = fresh({"PYTHONPATH": str(shims)})
    assert "Python 3.10" in refusal("doctor", "--on", sshd.host, exit_code=1)


def test_a_home_that_cannot_be_written_is_named(fresh: MakeDevice) -> None:
    sshd = fresh()
    sshd.home.chmod(0o555)
    try:
        assert str(sshd.folder) in refusal("doctor", "--on", sshd.host, exit_code=1)
    finally:
        sshd.home.chmod(0o755)


def test_a_device_without_space_says_so_and_how_to_make_some(
    fresh: MakeDevice, loopback: Loopback, onnx_bundle: Path
) -> None:
    sshd = fresh()
    try:
        loopback.small_disk(sshd.home / ".cache", "3m")
    except OSError as error:
        pytest.skip(f"no small file system can be mounted here: {error}")
    line = refusal("verify", onnx_bundle, "--on", sshd.host, exit_code=1)
    assert f"doctor --on {sshd.host} --clean" in line
    assert run("doctor", "--on", sshd.host, "--clean").exit_code == 0
    assert not sshd.folder.exists()


@pytest.mark.parametrize("where", ["home", "cache"])
def test_links_in_the_way_to_the_folder_are_followed(
    copied: MakeDevice, onnx_bundle: Path, where: str
) -> None:
    sshd = copied(where)
    moved = sshd.home if where == "home" else sshd.home / ".cache"
    other = moved.with_name(f"{moved.name} elsewhere")
    moved.rename(other)
    moved.symlink_to(other)
    told = run_json("verify", onnx_bundle, "--on", sshd.host)
    assert told["verdict"] == "pass"
    assert str(other) not in json.dumps(told)


def test_what_a_login_shell_prints_is_not_taken_for_an_answer(device: Sshd) -> None:
    noise = "printf 'welcome\\n\\377\\376\\0 gft-edge agent without end'; seq 20000 >&2"
    (device.home / ".bashrc").write_text(f"{noise}\n")
    try:
        result = run("doctor", "--on", device.host, "--json")
    finally:
        (device.home / ".bashrc").unlink()
    assert result.exit_code == 0, result.stderr[-500:]
    assert json.loads(result.stdout)["host"] == device.host
    # It may be a reason why nothing works.
    assert "20000" in result.stderr.splitlines()


@pytest.mark.parametrize("shell", ["/bin/sh", "/usr/bin/tcsh", "/usr/bin/fish"])
def test_a_login_shell_may_be_any(device: Sshd, loopback: Loopback, shell: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("the login shell of this user is not the tests' to change")
    if not Path(shell).exists():
        lacking(f"{shell} is not installed here")
    subprocess.run(["usermod", "--shell", shell, loopback.user], check=True)
    try:
        assert run_json("doctor", "--on", device.host)["host"] == device.host
    finally:
        subprocess.run(["usermod", "--shell", "/bin/bash", loopback.user], check=True)


def test_two_desks_at_once_send_the_same_files(
    device: Sshd, wired: Wired, desk: Desk, large_bundle: Path
) -> None:
    sshd = device
    _, host = wired(sshd)
    desks = [desk("verify", large_bundle, "--on", name) for name in (sshd.host, host)]
    for each in desks:
        _, told = each.communicate(timeout=120)
        assert each.returncode == 0, told
    assert left_in_work(sshd) == []
    assert os.listdir(sshd.folder / "store" / "incoming") == []


def absent(folder: Path, name: str) -> None:
    """Put a module that cannot be imported into a folder."""
    (folder / f"{name}.py").write_text(f"raise ImportError('No module named {name}')\n")
