"""What cannot be done on a device is said in one line; what ssh says is shown unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.cli import refusal, refused, run
from tests.support.ssh import Loopback, Sshd, free_port

pytestmark = pytest.mark.slow


def ssh_says(host: str) -> list[str]:
    """What ssh itself prints of a host that it does not reach."""
    done = subprocess.run(["ssh", host, "true"], capture_output=True, text=True, check=False)
    assert done.returncode == 255
    return done.stderr.splitlines()


@pytest.fixture
def broken(loopback: Loopback, device: Sshd, request: pytest.FixtureRequest) -> str:
    """A host that ssh does not reach."""
    kind = str(request.param)
    if kind == "nowhere.invalid":
        return kind
    if kind == "nobody listens":
        loopback.alias("unanswered", free_port())
        return "unanswered"
    if kind == "denied":
        loopback.alias(kind, device.port, key="other")
        return kind
    loopback.alias("changed", device.port)
    other = (loopback.folder / "other.pub").read_text()
    (loopback.folder / "known-changed").write_text(f"[127.0.0.1]:{device.port} {other}")
    return "changed"


@pytest.mark.parametrize(
    "broken",
    ["nowhere.invalid", "nobody listens", "denied", "changed key"],
    indirect=True,
)
def test_what_ssh_says_is_shown_unchanged(broken: str) -> None:
    result = run("doctor", "--on", broken)
    line = refused(result, "cannot be reached", exit_code=1)
    expected = [each for each in ssh_says(broken) if each.strip()]
    assert expected
    assert result.stderr.splitlines()[:-1] == expected
    assert line.endswith(expected[-1])


def test_a_host_that_does_not_answer_is_given_up_after_ten_seconds(silent: str) -> None:
    started = time.monotonic()
    refusal("doctor", "--on", silent, exit_code=1)
    assert 8 < time.monotonic() - started < 15


@pytest.mark.parametrize("host", ["", "-oProxyCommand=touch x"])
def test_what_is_no_host_does_not_get_to_ssh(host: str) -> None:
    refusal("doctor", "--on", host)


@pytest.mark.parametrize("command", ["inspect", "train", "demo"])
def test_a_command_that_has_no_devices_says_so(command: str) -> None:
    result = run(command, "x", "--on", "board")
    assert result.exit_code == 2
    assert "--on" in result.stderr.splitlines()[-1]


# What the device refuses.


def test_more_threads_than_the_device_has_cores_are_its_own_refusal(
    device: Sshd, onnx_bundle: Path
) -> None:
    here = refusal("profile", onnx_bundle, "--threads", 9999)
    there = refusal("profile", onnx_bundle, "--threads", 9999, "--on", device.host)
    assert there == f"{device.host}: {here}"


def test_an_engine_that_the_device_cannot_have_is_refused_before_anything_is_installed(
    device: Sshd, trt_bundle: Path
) -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has an NVIDIA driver")
    before = time.monotonic()
    line = refusal("verify", trt_bundle, "--on", device.host, exit_code=1)
    assert "NVIDIA" in line
    assert "--target" in line
    assert time.monotonic() - before < 10


@pytest.mark.parametrize("typed", ["..", "../", "./a photo.png", ".", "../*/*.png"])
def test_paths_are_called_as_they_are_here(
    device: Sshd, onnx_bundle: Path, micro_data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, typed: str,
) -> None:  # fmt: skip
    folder = tmp_path / "photos $HOME"
    folder.mkdir()
    image = next((micro_data / "test").rglob("*.png"))
    (folder / "a photo.png").write_bytes(image.read_bytes())
    monkeypatch.chdir(folder)
    here = run("predict", onnx_bundle, typed, "--json")
    there = run("predict", onnx_bundle, typed, "--json", "--on", device.host)
    assert here.exit_code == there.exit_code == 0, there.output
    (expected,), (found,) = (map(json.loads, each.stdout.splitlines()) for each in (here, there))
    assert found["path"] == expected["path"]


def test_paths_of_the_device_are_its_own(device: Sshd, onnx_bundle: Path, micro_data: Path) -> None:
    image = next((micro_data / "test").rglob("*.png"))
    (device.home / "a photo.png").write_bytes(image.read_bytes())
    try:
        here = run("predict", onnx_bundle, image, "--on", device.host, "--json")
        there = run(
            "predict", onnx_bundle, f"{device.host}:a photo.png", "--on", device.host, "--json"
        )
    finally:
        (device.home / "a photo.png").unlink()
    assert here.exit_code == there.exit_code == 0, there.output
    assert json.loads(here.stdout)["path"] == str(image)
    assert json.loads(here.stdout)["predictions"] == json.loads(there.stdout)["predictions"]
    wrong = f"elsewhere:{image}"
    assert wrong in refusal("predict", onnx_bundle, wrong, "--on", device.host)
    both = ("--on", device.host, "--on", "another")
    assert device.host in refusal("predict", onnx_bundle, f"{device.host}:x.png", *both)


# Several hosts.


def test_a_host_that_fails_is_a_row_with_its_reason(
    device: Sshd, loopback: Loopback, onnx_bundle: Path
) -> None:
    loopback.alias("unanswered", free_port())
    both = ("--on", device.host, "--on", "unanswered")
    result = run("verify", onnx_bundle, *both)
    assert result.exit_code == 1
    rows = [line for line in result.stdout.splitlines() if device.host in line]
    assert any("pass" in row for row in rows)
    (failed,) = [line for line in result.stdout.splitlines() if "unanswered" in line]
    assert "cannot be reached" in failed
    result = run("verify", onnx_bundle, *both, "--json")
    good, bad = json.loads(result.stdout)
    assert (good["host"], good["verdict"]) == (device.host, "pass")
    assert bad["host"] == "unanswered"
    assert "cannot be reached" in bad["error"]


def test_profiles_of_several_hosts_are_one_table_and_a_file_each(
    device: Sshd, loopback: Loopback, onnx_bundle: Path, tmp_path: Path
) -> None:
    loopback.alias("again", device.port)
    loopback.alias("unanswered", free_port())
    out = tmp_path / "fleet"
    result = run(
        "profile", onnx_bundle, "--on", device.host, "--on", "again", "--on", "unanswered",
        "--duration", 0.3, "--min-samples", 20, "--warmup-ms", 20, "--out", out,
    )  # fmt: skip
    assert result.exit_code == 1
    assert sorted(os.listdir(out)) == ["again.json", f"{device.host}.json"]
    assert "unanswered: cannot be reached" in result.stdout
    page = tmp_path / "fleet.html"
    reported = run("report", *sorted(out.iterdir()), "--html", page)
    assert reported.exit_code == 0, reported.output
    assert "again" in page.read_text()


def test_a_profile_is_equal_in_kind_to_one_of_this_machine(
    device: Sshd, onnx_bundle: Path, micro_data: Path
) -> None:
    words = ("profile", onnx_bundle, "--photos", micro_data / "test", "--duration", 0.3,
             "--min-samples", 20, "--warmup-ms", 20, "--layers", "--json")  # fmt: skip
    here = json.loads(run(*words).stdout)
    there = json.loads(run(*words, "--on", device.host).stdout)
    assert (here["host"], there["host"]) == (None, device.host)
    for same in ("schema_version", "version", "inputs"):
        assert there[same] == here[same]
    assert there["reports"][0]["bundle"] == str(onnx_bundle)
    assert keys(there) == keys(here)


def keys(content: object) -> object:
    """The names in JSON, of lists those of the first entry."""
    if isinstance(content, dict):
        return {name: keys(each) for name, each in content.items()}
    return [keys(each) for each in content[:1]] if isinstance(content, list) else None
