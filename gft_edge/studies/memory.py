"""What a benchmark keeps on disk to go on from: whose it is, and what is known of each bundle."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gft_edge.bundle.json_form import from_json, to_json
from gft_edge.bundle.locks import claimed_folder
from gft_edge.bundle.store import write_whole
from gft_edge.errors import SpecError, UsageError
from gft_edge.studies.results import Accuracy

T = TypeVar("T")

MARKER_FILE = ".gft-edge-benchmark"
BUNDLES = "bundles"
CSV_FILE, JSON_FILE, MARKDOWN_FILE = "benchmark.csv", "benchmark.json", "benchmark.md"
HTML_FILE, PROFILE_FILE = "benchmark.html", "profile.json"
RESULT_FILES = (CSV_FILE, JSON_FILE, MARKDOWN_FILE, HTML_FILE, PROFILE_FILE)


@dataclass(frozen=True)
class Owner:
    """What a benchmark is of: its results are never mixed with those of another run or other images."""

    weights_sha256: str
    split_digest: str


@dataclass(frozen=True)
class Kept:
    """A bundle's state, in a file beside it. Digests are of everything that decides what they stand for.

    `request` is of the export, `judged` of the accuracy. `digest` is the bundle's seal, None where the
    export missed a bound: `missed` has the message.
    """

    request: str
    digest: str | None
    missed: str | None
    build_s: float
    judged: str | None = None
    accuracy: Accuracy | None = None


def digest_of(**parts: Any) -> str:
    """Of anything JSON holds."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextmanager
def claimed(out: Path, owner: Owner, force: bool) -> Iterator[None]:
    """Hold `out` as this benchmark's folder, new or gone on in; with `force` what a benchmark left goes.

    Raises UsageError where it holds anything else, and the benchmark of another run or other images;
    BundleError where another benchmark holds it.
    """
    marker = out / MARKER_FILE
    with claimed_folder(out, MARKER_FILE, "benchmark"):
        if force:
            shutil.rmtree(out / BUNDLES, ignore_errors=True)
            for name in RESULT_FILES:
                (out / name).unlink(missing_ok=True)
        elif marker.exists():
            _check_owner(out, _read(Owner, marker), owner)
        write_whole(marker, json.dumps(to_json(owner)).encode())
        (out / BUNDLES).mkdir(exist_ok=True)
        # Of an export that was killed.
        for partial in (out / BUNDLES).glob(".*"):
            shutil.rmtree(partial, ignore_errors=True)
        yield


def _check_owner(out: Path, there: Owner | None, owner: Owner) -> None:
    instead = "choose another --out, or replace it with --force"
    if there is None:
        raise UsageError(f"{out / MARKER_FILE} cannot be read: {instead}")
    if there.weights_sha256 != owner.weights_sha256:
        raise UsageError(f"{out} is the benchmark of other weights: {instead}")
    if there.split_digest != owner.split_digest:
        raise UsageError(f"{out} is a benchmark on other images: {instead}")


def read_kept(bundle: Path) -> Kept | None:
    """What is known of the bundle in a folder; None where nothing is, or it cannot be read."""
    return _read(Kept, _state_file(bundle))


def write_kept(bundle: Path, kept: Kept) -> None:
    """Whole or not at all."""
    write_whole(_state_file(bundle), (json.dumps(to_json(kept), indent=1) + "\n").encode())


def _state_file(bundle: Path) -> Path:
    return bundle.with_name(f"{bundle.name}.json")


def _read(kind: type[T], path: Path) -> T | None:
    try:
        return from_json(kind, json.loads(path.read_bytes()), str(path))
    except (OSError, ValueError, RecursionError, SpecError):
        return None
