"""A bundle is read only when it is whole, and replaced only by a whole one."""

from __future__ import annotations

import dataclasses
import json
import os
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
    sha256_of,
    size_bytes,
)
from gft_edge.errors import BundleError

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


def rewrite_with_its_sha256(bundle: Path, name: str, content: str) -> None:
    (bundle / name).write_text(content, encoding="utf-8")
    digest = sha256_of(bundle / name)
    alter_manifest(bundle, lambda data: data["files"].update({name: digest}))


def refusal(bundle: Path) -> str:
    with pytest.raises(BundleError) as caught:
        read_bundle(bundle)
    message = str(caught.value)
    assert "\n" not in message
    return message


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_whole_bundle_is_read(bundle: Path) -> None:
    opened = read_bundle(str(bundle))
    manifest = opened.manifest
    assert opened.artifact_path == bundle / "model.xml"
    assert manifest.target == "openvino"
    assert manifest.model.labels == ("apple", "brown bread", "café", "dill")
    assert set(manifest.files) == {"model.xml", "model.bin", "labels.txt", "golden/golden.npz"}
    assert files(bundle) == {*manifest.files, "manifest.json"}
    assert size_bytes(opened) == sum(
        (bundle / name).stat().st_size for name in ("model.xml", "model.bin")
    )


def test_the_lineage_leads_from_the_first_graph_to_the_artifact(bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    chain = [*manifest.lineage, manifest.artifact]
    assert chain[0].parent_sha256 is None
    assert [a.parent_sha256 for a in chain[1:]] == [a.sha256 for a in chain[:-1]]
    assert manifest.artifact.sha256 == manifest.files[manifest.artifact.path]


@pytest.mark.parametrize("name", ["model.xml", "model.bin", "labels.txt", "golden/golden.npz"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    assert refusal(bundle) == f"{bundle} lacks {name}: copy the whole bundle again"


@pytest.mark.parametrize("name", ["model.xml", "model.bin", "labels.txt", "golden/golden.npz"])
def test_a_truncated_file_is_named(bundle: Path, name: str) -> None:
    os.truncate(bundle / name, (bundle / name).stat().st_size - 1)
    assert refusal(bundle).startswith(f"{bundle / name} is not the file the manifest describes")


def test_one_altered_bit_is_seen(bundle: Path) -> None:
    content = bytearray((bundle / "model.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.bin").write_bytes(content)
    assert "copy the bundle again or export it anew" in refusal(bundle)


def test_a_missing_folder_and_a_folder_that_is_no_bundle_are_told_apart(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: no such bundle"
    assert refusal(tmp_path) == f"{tmp_path} is no bundle: it has no manifest.json"
    assert not is_bundle(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../model.xml", "a/../../model.xml", "/etc/passwd", "C:model.xml", "..\\model.xml", "", "."],
)
def test_a_path_that_leaves_the_folder_is_refused(bundle: Path, name: str) -> None:
    alter_manifest(bundle, lambda data: data["files"].update({name: "ab"}))
    assert refusal(bundle).endswith(f"names {name!r}: a bundle's paths stay inside its folder")


@pytest.mark.parametrize("key", ["path", "companions"])
def test_an_artifact_outside_the_folder_is_refused(bundle: Path, key: str) -> None:
    value = "../model.xml" if key == "path" else ["../model.bin"]
    alter_manifest(bundle, lambda data: data["artifact"].update({key: value}))
    assert "a bundle's paths stay inside its folder" in refusal(bundle)


def test_a_path_that_no_file_can_have_is_refused(bundle: Path) -> None:
    alter_manifest(bundle, lambda data: data["files"].update({"a\0b": "ab"}))
    refusal(bundle)


def test_a_link_out_of_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "model.bin", tmp_path / "model.bin")
    (bundle / "model.bin").symlink_to(tmp_path / "model.bin")
    assert refusal(bundle).endswith("is a link out of the bundle: copy the file itself")


def test_a_link_to_itself_is_refused(bundle: Path) -> None:
    (bundle / "model.bin").unlink()
    (bundle / "model.bin").symlink_to("model.bin")
    refusal(bundle)


def test_a_bundle_reached_through_a_link_is_read(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle)
    assert read_bundle(tmp_path / "link").artifact_path == tmp_path / "link" / "model.xml"


def test_a_newer_schema_asks_for_a_newer_gft_edge(bundle: Path) -> None:
    # Whatever else a newer manifest has: the version is read first.
    alter_manifest(bundle, lambda data: data.update(schema_version=5, novelty=1))
    assert refusal(bundle).endswith(
        "manifest.json has schema version 5, this gft-edge reads 4: upgrade gft-edge"
    )


def test_an_older_schema_asks_for_a_new_export(bundle: Path) -> None:
    alter_manifest(bundle, lambda data: data.update(schema_version=1))
    assert refusal(bundle).endswith("this gft-edge reads 4: export the run again")


@pytest.mark.parametrize(
    "content", ["{}", "[]", "3", "null", '{"schema_version": "1"}', '{"schema_version": 0}']
)
def test_json_that_is_no_manifest_is_refused(bundle: Path, content: str) -> None:
    (bundle / "manifest.json").write_text(content)
    assert refusal(bundle).endswith("has no schema_version: it is no gft-edge manifest")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\x80\x81", b"[" * 100_000], ids=["empty", "cut", "binary", "deep"]
)
def test_a_manifest_that_is_no_json_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / "manifest.json").write_bytes(content)
    assert "manifest.json is not JSON" in refusal(bundle)


def test_a_manifest_cut_anywhere_is_refused(bundle: Path) -> None:
    content = (bundle / "manifest.json").read_bytes()
    for length in range(0, len(content) - 2, 97):
        (bundle / "manifest.json").write_bytes(content[:length])
        assert "manifest.json is not JSON" in refusal(bundle)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda d: d.pop("model"), "manifest.json lacks the field 'model'"),
        (lambda d: d.update(colour=1), "has unknown fields (colour), written by a newer"),
        (lambda d: d["input"].update(dtype="int8"), "dtype is 'int8', expected one of uint8"),
        (lambda d: d["files"].update(x=1), "files.x is 1, expected str"),
        (lambda d: d["model"].update(temperature=10**400), "temperature"),
    ],
)
def test_a_wrong_field_of_the_manifest_is_named(bundle: Path, alter: Alter, message: str) -> None:
    alter_manifest(bundle, alter)
    assert message in refusal(bundle)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_pct", 0),
        ("crop_pct", -1),
        ("crop_pct", float("nan")),
        ("image_size_px", 0),
        ("mean", [0.5]),
        ("std", [0, 0, 0]),
    ],
)
def test_preprocessing_that_no_image_can_go_through_is_refused(
    bundle: Path, field: str, value: Any
) -> None:
    alter_manifest(bundle, lambda data: data["model"]["preprocessing"].update({field: value}))
    assert field in refusal(bundle)


@pytest.mark.parametrize("name", ["model.xml", "model.bin", "labels.txt", "golden/golden.npz"])
def test_a_file_without_a_sha256_is_refused(bundle: Path, name: str) -> None:
    alter_manifest(bundle, lambda data: data["files"].pop(name))
    assert refusal(bundle).endswith(f"lists no sha256 of {name}: export it anew")


def test_labels_that_differ_from_the_manifest_are_refused(bundle: Path) -> None:
    rewrite_with_its_sha256(bundle, "labels.txt", "dill\ncafé\nbrown bread\napple\n")
    assert refusal(bundle).endswith("labels.txt and the manifest disagree: export it anew")


def test_one_kept_output_a_stage_is_required(bundle: Path) -> None:
    alter_manifest(bundle, lambda data: data["kept_outputs"].pop())
    assert "kept_outputs" in refusal(bundle)


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


def test_an_empty_folder_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with replacing(tmp_path / "out") as folder:
        (folder / "new").touch()
    assert names(tmp_path / "out") == ["new"]


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

    with pytest.raises(BundleError, match=rf"cannot write {old}: No space left on device"):
        write_to_a_full_disk()
    assert names(old) == ["manifest.json", "old"]
    assert names(old.parent) == ["out"]


# Permission bits do not bind root, who runs the tests in a container: neither of these may be
# written by anyone.
@pytest.mark.parametrize("parent", ["/proc", "a_file"])
def test_a_parent_that_cannot_be_written_is_refused(tmp_path: Path, parent: str) -> None:
    (tmp_path / "a_file").touch()
    out = tmp_path / parent / "gft-edge-test" / "out"
    with pytest.raises(BundleError, match=rf"cannot write beside {out}: "), replacing(out):
        pytest.fail("the block ran")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_bundle_is_not_replaced(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("thesis")
    else:
        out.mkdir()
        (out / "thesis.tex").touch()
    message = "exists and is no bundle: choose another --out"
    with pytest.raises(BundleError, match=message), replacing(out):
        pytest.fail("the block ran")
    assert names(tmp_path) == ["out"]


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
