"""What a study keeps on disk to go on from: each result, with the digest of all that decides it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gft_edge.bundle.json_form import from_json, to_json
from gft_edge.bundle.locks import claimed_folder
from gft_edge.bundle.store import write_whole
from gft_edge.errors import SpecError, UsageError

T = TypeVar("T")

MARKER_FILE = ".gft-edge-benchmark"
BUNDLES, MEMORY = "bundles", "memory"
CSV_FILE, JSON_FILE, PROFILE_FILE = "benchmark.csv", "benchmark.json", "profile.json"
RESULT_FILES = (CSV_FILE, JSON_FILE, PROFILE_FILE)


@dataclass(frozen=True)
class Memory:
    """A folder with a JSON file a result: {"decided_by": a digest, "result": the dataclass's JSON}."""

    folder: Path

    def recall(self, name: str, kind: type[T], decides: Mapping[str, Any]) -> T | None:
        """The result of that name; None where there is none, or something that decides it changed."""
        try:
            data = json.loads(self._file(name).read_bytes())
            if data["decided_by"] != _digest(decides):
                return None
            return from_json(kind, data["result"], name)
        # Half a file after a crash is no result.
        except (OSError, ValueError, LookupError, TypeError, RecursionError, SpecError):
            return None

    def keep(self, name: str, result: Any, decides: Mapping[str, Any]) -> None:
        """Keep a result, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"decided_by": _digest(decides), "result": to_json(result)}
        write_whole(self._file(name), (json.dumps(content, indent=1) + "\n").encode())

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def _digest(decides: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(to_json(decides), sort_keys=True).encode()).hexdigest()


@contextmanager
def claimed(out: Path, weights_sha256: str, fresh: bool) -> Iterator[Memory]:
    """Hold `out` as the folder of a study of these weights, new or gone on in, and give its memory.

    With `fresh` what a study left there goes. Raises UsageError where it holds anything else, or the
    study of other weights; LockedError where another process holds it.
    """
    marker = out / MARKER_FILE
    with claimed_folder(out, MARKER_FILE, "benchmark"):
        if fresh:
            for name in (BUNDLES, MEMORY):
                shutil.rmtree(out / name, ignore_errors=True)
            for name in RESULT_FILES:
                (out / name).unlink(missing_ok=True)
        elif marker.exists() and marker.read_bytes() != weights_sha256.encode():
            raise UsageError(
                f"{out} is the benchmark of other weights: choose another --out, or replace it with "
                "--fresh"
            )
        write_whole(marker, weights_sha256.encode())
        (out / BUNDLES).mkdir(exist_ok=True)
        # What an export that was killed left.
        for partial in (out / BUNDLES).glob(".*"):
            shutil.rmtree(partial, ignore_errors=True)
        yield Memory(out / MEMORY)
