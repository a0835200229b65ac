"""A deployable folder, manifest.json and the files it describes: atomic write, verified read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from gft_edge.bundle.json_form import from_json, to_json
from gft_edge.bundle.locks import claimed_name
from gft_edge.bundle.manifest import Manifest
from gft_edge.bundle.specs import check_preprocessing
from gft_edge.errors import BundleError, SpecError

SCHEMA_VERSION = 6
RUN_FILE = "model.json"  # model.checkpoint.SPEC_FILE, which devices lack
MANIFEST_FILE = "manifest.json"
LABELS_FILE = "labels.txt"
GOLDEN_FILE = "golden/golden.npz"
GOLDEN_IMAGES = 8


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    folder: Path
    manifest: Manifest

    @property
    def artifact_path(self) -> Path:
        """The file that the engine opens."""
        return self.folder / self.manifest.artifact.path


def is_bundle(folder: Path) -> bool:
    """Whether `folder` looks like a bundle, complete or not."""
    return (folder / MANIFEST_FILE).is_file()


def read_bundle(folder: str | Path) -> Bundle:
    """Open a bundle whose every file but its engines matches its manifest.

    An engine is checked when it is loaded: a damaged one is built again, the bundle is not lost.
    Raises BundleError when a file is missing, truncated or altered, when a path leaves the folder,
    and when the manifest is unreadable or of another schema version.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name in manifest.files:
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{folder} lacks {name}: copy the whole bundle again")
        if sha256_of(path) != manifest.files[name]:
            raise BundleError(
                f"{path} is not the file the manifest describes (sha256 differs): "
                "copy the bundle again or export it anew"
            )
    needed = (manifest.artifact.path, *manifest.artifact.companions, LABELS_FILE, GOLDEN_FILE)
    for name in needed:
        if name not in manifest.files:
            raise BundleError(f"{folder / MANIFEST_FILE} lists no sha256 of {name}: export it anew")
    if manifest.files[manifest.artifact.path] != manifest.artifact.sha256:
        raise BundleError(f"{folder / MANIFEST_FILE} gives two sha256 of one file: export it anew")
    stages = len(manifest.model.stages)
    named = {"kept_outputs": stages, "score_outputs": stages}
    named["attention_outputs"] = stages if manifest.model.score == "gala" else 0
    for field, expected in named.items():
        if (found := len(getattr(manifest, field))) != expected:
            raise BundleError(
                f"{folder / MANIFEST_FILE}: {field} has {found} names, expected {expected} for "
                f"{stages} stages: export it anew"
            )
    if (folder / LABELS_FILE).read_text("utf-8").splitlines() != list(manifest.model.labels):
        raise BundleError(f"{folder / LABELS_FILE} and the manifest disagree: export it anew")
    if manifest.seal != _seal(manifest):
        raise BundleError(
            f"{folder / MANIFEST_FILE} was altered after the export: copy the bundle again or "
            "export it anew"
        )
    return Bundle(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone, its paths checked and its files not. Raises BundleError."""
    path = folder / MANIFEST_FILE
    if not folder.exists():
        raise BundleError(f"{folder}: no such bundle")
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file: give the bundle's folder")
    if not path.is_file():
        if (folder / RUN_FILE).is_file():
            raise BundleError(f"{folder} is a run: export it first, gft-edge export makes a bundle")
        raise BundleError(f"{folder} is no bundle: it has no {MANIFEST_FILE}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON ({error}): copy the bundle again") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or version < 1:
        raise BundleError(f"{path} has no schema_version: it is no gft-edge manifest")
    if version != SCHEMA_VERSION:
        mend = "upgrade gft-edge" if version > SCHEMA_VERSION else "export the run again"
        raise BundleError(
            f"{path} has schema version {version}, this gft-edge reads {SCHEMA_VERSION}: {mend}"
        )
    try:
        manifest = from_json(Manifest, data, MANIFEST_FILE)
        check_preprocessing(manifest.model.preprocessing)
    except SpecError as error:
        raise BundleError(f"{path}: {error}") from error
    engines = [engine.path for engine in manifest.engines]
    for name in (*manifest.files, manifest.artifact.path, *manifest.artifact.companions, *engines):
        check_inside(folder, name)
    return manifest


def check_inside(folder: Path, name: str) -> None:
    """Raise BundleError for a path of a bundle's file that leaves its folder."""
    parts = PurePosixPath(name).parts
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or "\\" in name
    if absolute or ".." in parts or not parts:
        raise BundleError(
            f"{folder / MANIFEST_FILE} names {name!r}: a bundle's paths stay inside its folder"
        )
    try:
        inside = (folder / name).resolve().is_relative_to(folder.resolve())
    # A NUL, a lone surrogate, a link to itself.
    except (ValueError, OSError, RuntimeError) as error:
        raise BundleError(f"{folder / MANIFEST_FILE} names no usable path: {name!r}") from error
    if not inside:
        raise BundleError(f"{folder / name} is a link out of the bundle: copy the file itself")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json, the last file of a bundle, sealed; one that is there is replaced whole."""
    # As it will be read: a whole number where a float belongs would be sealed as another one.
    manifest = from_json(Manifest, to_json(manifest), MANIFEST_FILE)
    manifest = dataclasses.replace(manifest, seal=_seal(manifest))
    text = json.dumps(to_json(manifest), indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / MANIFEST_FILE, text.encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, whatever interrupts. Raises BundleError."""
    try:
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.parent)
    except OSError as error:
        raise BundleError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException as error:
        os.unlink(partial)
        if isinstance(error, OSError):
            raise BundleError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def check_room(folder: Path, size_bytes: int = 1 << 20) -> None:
    """Raise the OSError of a disk that does not take so much: torch and OpenVINO have words of their own."""
    part = bytes(1 << 20)
    with tempfile.TemporaryFile(dir=folder) as file:
        for start in range(0, size_bytes, len(part)):
            file.write(part[: size_bytes - start])


def _seal(manifest: Manifest) -> str:
    content = to_json(dataclasses.replace(manifest, seal=""))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_labels(folder: Path, labels: tuple[str, ...]) -> None:
    """labels.txt, one label a line in index order."""
    (folder / LABELS_FILE).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that takes its place when the block ends well.

    On any failure or interruption the new folder is removed and `out` stays as it was. Raises
    BundleError when `out` exists and is no bundle, since replacing would delete what else it is, and
    LockedError while another process replaces it.
    """
    out = out.resolve()
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not is_bundle(out)):
        raise BundleError(f"{out} exists and is no bundle: choose another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"cannot write beside {out}: {error.strerror}") from error
    with claimed_name(out):
        try:
            partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        except OSError as error:
            raise BundleError(f"cannot write beside {out}: {error.strerror}") from error
        try:
            yield partial
            partial.chmod(0o755)
            _sync(partial)
            _swap(partial, out)
        except OSError as error:
            raise BundleError(f"cannot write {out}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, out: Path) -> None:
    if not out.exists():
        partial.rename(out)
        return
    # rename cannot replace a folder that has files. A machine that dies between the two renames
    # leaves the old bundle under its .replaced name.
    old = partial.with_name(f"{partial.name}.replaced")
    try:
        out.rename(old)
        partial.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def size_bytes(bundle: Bundle) -> int:
    """The size of the model files, without engines, golden outputs and manifest."""
    names = (bundle.manifest.artifact.path, *bundle.manifest.artifact.companions)
    return sum((bundle.folder / name).stat().st_size for name in names)
