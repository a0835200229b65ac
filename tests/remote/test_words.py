"""The words of a command for a device, what its paths mean there, and what is installed for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gft_edge.cli import main
from gft_edge.cli.errand import Here, Out, _extras, _renamed
from gft_edge.cli.on_devices import OnDevices
from gft_edge.errors import RemoteError, UsageError
from gft_edge.remote.device import There
from gft_edge.remote.package import requirements
from tests.support.refusals import refusal_of

ONE, TWO = OnDevices(("board",), False), OnDevices(("pi", "user@pi"), False)

PLAIN = {
    "tensorrt": False, "tensorrt_rtx": False, "nvidia": False, "board": None, "numpy": None,
    "executable": "/usr/bin/python3",
}  # fmt: skip


def words_of(*typed: str, devices: OnDevices = ONE, **means: Any) -> list[Any]:
    with main.commands[typed[0]].make_context(typed[0], [*typed[1:]]):
        return devices.words(**means)


def test_words_are_those_that_were_typed_but_for_the_desks_own(tmp_path: Path) -> None:
    bundle = tmp_path / "-a bundle"
    bundle.mkdir()
    found = words_of(
        "profile", "--on", "board", "--layers", "--duration=2", "--json", "--out", "x.json",
        "--threads", "4", "--", str(bundle),
        sent=("bundles", "images"), here=("out", "baseline_out"),
    )  # fmt: skip
    assert [*found[:-1]] == ["profile", "--duration", "2", "--threads", "4", "--layers", "--"]
    assert found[-1] == Here(bundle, str(bundle))


def test_a_folder_that_is_written_is_made_there(tmp_path: Path) -> None:
    found = words_of(
        "verify", str(tmp_path), "--pictures", "looks", "--on", "board",
        sent=("bundle",), out="pictures",
    )  # fmt: skip
    assert found == ["verify", "--pictures", Out(), "--", Here(tmp_path, str(tmp_path))]


@pytest.mark.parametrize("text", ["rtsp://camera/1", "camera:0", "CSI:0", "gst:videotestsrc"])
def test_sources_of_the_device_win_over_files_here(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "/" not in text:
        (tmp_path / text).touch()
    assert ONE.path(text) == text
    assert ONE.sources([text]) == [text]


def test_a_path_is_here_unless_its_host_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.png", "other:c.png", "[d].png"):
        Path(name).touch()
    assert ONE.path("board:~/c.png") == There("~/c.png")
    assert ONE.path("other:c.png") == Here(Path("other:c.png"), "other:c.png")
    assert [word.as_typed for word in ONE.sources(["?.png"])] == ["a.png", "b.png"]  # type: ignore[union-attr]
    assert ONE.sources(["[d].png"]) == [Here(Path("[d].png"), "[d].png")]
    refusal_of(UsageError, lambda: ONE.path("elsewhere:c.png"), "elsewhere")
    refusal_of(UsageError, lambda: TWO.path("pi:c.png"), "pi:c.png", "--on pi")


def test_what_is_read_back_has_the_names_of_the_desk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    names = Here(Path("photos/"), "photos/").names("/device/1/2/photos") | Here(Path(), ".").names(
        "/device/1/3/there"
    )
    told = {"path": "/device/1/2/photos/a.png", "more": ["at /device/1/3/there/b.png: no", 3, None]}
    assert _renamed(told, names) == {"path": "photos/a.png", "more": ["at b.png: no", 3, None]}
    assert _renamed("/device/1/3/there", names) == "."


# What is installed.


def extras(backend: str, **facts: object) -> set[str]:
    device: Any = SimpleNamespace(host="board", facts={**PLAIN, **facts})
    return _extras([], backend, device)


def test_engines_are_installed_but_for_the_tensorrt_that_a_board_brings() -> None:
    assert extras("onnx") == {"onnx"}
    assert extras("tensorrt", nvidia=True) == {"tensorrt"}
    assert extras("tensorrt", tensorrt=True, board="NVIDIA Jetson Orin Nano") == set()
    assert extras("tensorrt", tensorrt_rtx=True) == set()


@pytest.mark.parametrize(
    ("facts", "word"),
    [({"board": "NVIDIA Jetson Orin Nano", "nvidia": True}, "apt install nvidia-jetpack"),
     ({"board": "Raspberry Pi 5 Model B"}, "--target onnx")],
)  # fmt: skip
def test_a_device_that_cannot_have_tensorrt_says_what_to_do(
    facts: Mapping[str, object], word: str
) -> None:
    refusal_of(RemoteError, lambda: extras("tensorrt", **facts), "board", word)


def test_a_board_with_an_old_numpy_keeps_it() -> None:
    """Its OpenCV, which apt built against it, would not import under another."""
    (line,) = [text for text in requirements({"onnx"}, {"numpy": "1.26.4"}) if "numpy" in text]
    assert line.endswith(",<2")
    assert any("onnxruntime" in text for text in requirements({"onnx"}, PLAIN))
    assert not any("openvino" in text for text in requirements({"onnx"}, PLAIN))
