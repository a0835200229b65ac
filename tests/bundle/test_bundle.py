"""A bundle is read only when it is whole, and replaced only by a whole one."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gft_edge.bundle.store import (
    is_bundle,
    read_bundle,
    read_manifest,
    replacing,
    size_bytes,
)
from gft_edge.errors import BundleError
from tests.support.bundles import sign
from tests.support.files import contents
from tests.support.refusals import refusal_of

Alter = Callable[[dict[str, Any]], None]


@pytest.fixture
def bundle(tmp_path: Path, micro_bundles: dict[str, Path]) -> Path:
    """A copy of the OpenVINO bundle, which has a companion file, to damage."""
    return Path(shutil.copytree(micro_bundles["openvino"], tmp_path / "bundle"))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Something that counts as a bundle, with one file to recognise it by."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "old").touch()
    return folder


def alter_manifest(bundle: Path, alter: Alter) -> None:
    data = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    alter(data)
    (bundle / "manifest.json").write_text(json.dumps(data), encoding="utf-8")


def refusal(bundle: Path, *words: str) -> str:
    return refusal_of(BundleError, lambda: read_bundle(bundle), *words)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_bundle_is_read(bundle: Path) -> None:
    opened = read_bundle(str(bundle))
    manifest = opened.manifest
    assert opened.artifact_path == bundle / "model.xml"
    assert manifest.target == "openvino"
    assert manifest.model.labels == ("apple", "brown bread", "café", "dill")
    assert set(manifest.files) == {"model.xml", "model.bin", "labels.txt", "golden/golden.npz"}
    assert set(contents(bundle)) == {*manifest.files, "manifest.json"}
    assert size_bytes(opened) == sum(
        (bundle / name).stat().st_size for name in ("model.xml", "model.bin")
    )


@pytest.mark.parametrize("name", ["model.xml", "model.bin", "labels.txt", "golden/golden.npz"])
def test_a_file_that_is_altered_cut_missing_or_not_listed_is_named(bundle: Path, name: str) -> None:
    path = bundle / name
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (bytes(flipped), whole[:-1]):
        path.write_bytes(content)
        refusal(bundle, str(path), "sha256")
    path.unlink()
    refusal(bundle, name)
    path.write_bytes(whole)
    alter_manifest(bundle, lambda data: data["files"].pop(name))
    refusal(bundle, name, "sha256")


def test_a_missing_folder_and_a_folder_that_is_no_bundle_are_told_apart(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere", str(tmp_path / "nowhere")) != refusal(tmp_path)
    refusal(tmp_path, "manifest.json")
    assert not is_bundle(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../model.xml", "a/../../model.xml", "/etc/passwd", "C:model.xml", "..\\model.xml", "", ".",
     "a\0b"],
)  # fmt: skip
def test_a_path_that_leaves_the_folder_or_that_no_file_can_have_is_refused(
    bundle: Path, name: str
) -> None:
    alter_manifest(bundle, lambda data: data["files"].update({name: "ab"}))
    refusal(bundle, repr(name))


def test_a_link_out_of_the_bundle_or_to_itself_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "model.bin", tmp_path / "model.bin")
    for place in (str(tmp_path / "model.bin"), "model.bin"):
        (bundle / "model.bin").symlink_to(place)
        refusal(bundle, "model.bin")
        (bundle / "model.bin").unlink()


def test_a_bundle_reached_through_a_link_is_read(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle)
    assert read_bundle(tmp_path / "link").artifact_path == tmp_path / "link" / "model.xml"


def test_another_schema_version_asks_for_an_upgrade_or_a_new_export(bundle: Path) -> None:
    reads = read_manifest(bundle).schema_version
    # Whatever else a newer manifest has: the version is read first.
    alter_manifest(bundle, lambda data: data.update(schema_version=reads + 1, novelty=1))
    refusal(bundle, str(reads + 1), str(reads), "upgrade gft-edge")
    alter_manifest(bundle, lambda data: data.update(schema_version=1))
    refusal(bundle, "1", str(reads), "export the run again")


def test_what_is_no_manifest_is_refused(bundle: Path) -> None:
    path = bundle / "manifest.json"
    whole = path.read_bytes()
    for content in (
        b"{}",
        b"[]",
        b"3",
        b"null",
        b'{"schema_version": "1"}',
        b'{"schema_version": 0}',
    ):
        path.write_bytes(content)
        refusal(bundle, "manifest.json", "schema_version")
    cut = [whole[:length] for length in range(0, len(whole) - 2, 97)]
    for content in (b"", b"\x80\x81", b"[" * 100_000, *cut):
        path.write_bytes(content)
        refusal(bundle, "manifest.json", "JSON")


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (lambda d: d.pop("model"), "'model'"),
        (lambda d: d.update(colour=1), "colour"),
        (lambda d: d["input"].update(dtype="int8"), "'int8'"),
        (lambda d: d["files"].update(x=1), "files.x"),
        (lambda d: d["model"].update(temperature=10**400), "temperature"),
        (lambda d: d["kept_outputs"].pop(), "kept_outputs"),
        (lambda d: d["artifact"].update(path="../m"), "../m"),
        (lambda d: d["artifact"].update(companions=["../m"]), "../m"),
        # Preprocessing that no image can go through.
        *(
            (lambda d, f=field, v=value: d["model"]["preprocessing"].update({f: v}), field)
            for field, value in (
                ("crop_pct", 0), ("crop_pct", -1), ("crop_pct", float("nan")),
                ("image_size_px", 0), ("mean", [0.5]), ("std", [0, 0, 0]),
            )
        ),
    ],
)  # fmt: skip
def test_a_wrong_field_of_the_manifest_is_named(bundle: Path, alter: Alter, words: str) -> None:
    alter_manifest(bundle, alter)
    refusal(bundle, words)


def test_labels_that_differ_from_the_manifest_are_refused(bundle: Path) -> None:
    (bundle / "labels.txt").write_text("dill\ncafé\nbrown bread\napple\n", encoding="utf-8")
    sign(bundle, "labels.txt")
    refusal(bundle, "labels.txt")


def test_the_manifest_alone_is_read_without_the_files(bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    (bundle / "model.bin").unlink()
    assert read_manifest(bundle) == manifest
    assert dataclasses.is_dataclass(manifest)


def test_a_new_bundle_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    with replacing(out) as folder:
        (folder / "new").touch()
        assert not out.exists()
        assert folder.parent == out.parent
    assert names(out) == ["new"]
    assert names(out.parent) == ["out"]
    assert out.stat().st_mode & 0o777 == 0o755


def test_a_new_bundle_takes_the_place_of_the_old(old: Path) -> None:
    with replacing(old) as folder:
        (folder / "new").touch()
        assert names(old) == ["manifest.json", "old"]
    assert names(old) == ["new"]
    assert names(old.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_write_leaves_the_old_bundle_and_nothing_else(
    old: Path, error: type[BaseException]
) -> None:
    def write_in_part() -> None:
        with replacing(old) as folder:
            (folder / "new").touch()
            raise error

    with pytest.raises(error):
        write_in_part()
    assert names(old) == ["manifest.json", "old"]
    assert names(old.parent) == ["out"]


def test_an_interrupted_first_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "out"):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_full_disk_leaves_the_old_bundle(old: Path) -> None:
    def write_to_a_full_disk() -> None:
        with replacing(old) as folder:
            # The device that answers every write as a full disk does.
            (folder / "model.onnx").symlink_to("/dev/full")
            (folder / "model.onnx").write_bytes(b"x")

    refusal_of(BundleError, write_to_a_full_disk, str(old), "No space left on device")
    assert names(old) == ["manifest.json", "old"]
    assert names(old.parent) == ["out"]


# Permission bits do not bind root, who runs the tests in a container: neither of these may be
# written by anyone.
@pytest.mark.parametrize("parent", ["/proc", "a_file"])
def test_a_parent_that_cannot_be_written_is_refused(tmp_path: Path, parent: str) -> None:
    (tmp_path / "a_file").touch()
    out = tmp_path / parent / "gft-edge-test" / "out"
    refusal_of(BundleError, lambda: replacing(out).__enter__(), str(out))


@pytest.mark.parametrize("name", ["file", "folder"])
def test_what_is_no_bundle_is_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("thesis")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").touch()
    out = tmp_path / name
    refusal_of(BundleError, lambda: replacing(out).__enter__(), str(out), "--out")
    assert set(contents(tmp_path)) == {"file", "folder/thesis.tex"}


def test_a_bundle_reached_through_a_link_is_replaced_and_nothing_is_left(
    old: Path, tmp_path: Path
) -> None:
    link = tmp_path / "latest"
    link.symlink_to(old)
    with replacing(link) as folder:
        (folder / "new").touch()
    assert names(link) == ["new"]
    assert [name for name in names(tmp_path) if name.startswith(".")] == []


def test_the_current_folder_is_replaced_when_it_is_empty_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with replacing(Path()) as folder:
        (folder / "new").touch()
    assert names(tmp_path) == ["here"]
    assert names(tmp_path / "here") == ["new"]
