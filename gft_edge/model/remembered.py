"""What a network in PyTorch gave for images, kept from one command to the next: it is asked once."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata as installed
import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.specs import ModelSpec
from gft_edge.model.network import Network
from gft_edge.model.reference import torch_outputs
from gft_edge.runtime.classifier import load_pixels
from gft_edge.runtime.engine_cache import keep_entry, read_entry, usable
from gft_edge.runtime.outputs import Outputs
from gft_edge.runtime.user_cache import user_cache

# Of one network the images asked for last: some 2 KB an image.
MOST_IMAGES = 4096


class Remembered:
    """A network whose outputs are remembered by its weights and the pixels of each image.

    They lie in the user's cache; where that cannot be used, every image is computed. A network that
    another version of PyTorch, timm or this package computes is another one.
    """

    def __init__(self, model: Network, spec: ModelSpec):
        self._model, self._spec = model.eval(), spec
        folder = user_cache("references")
        self._folder = folder if folder is not None and _usable(folder) else None
        self._key = _identity(model, spec)
        self._known = {} if self._folder is None else _read(self._folder, self._key)

    def outputs(
        self, pixels: npt.NDArray[np.uint8], advance: Callable[[int], None] | None = None
    ) -> Outputs:
        """Return what the network gives for uint8 (images,S,S,3), as `torch_outputs` does."""
        keys = [hashlib.sha256(image.tobytes()).digest() for image in pixels]
        # Each once: a frame may come twice.
        missing = {key: n for n, key in enumerate(keys) if key not in self._known}
        if advance is not None:
            advance(len(keys) - len(missing))
        if missing:
            found = torch_outputs(
                self._model, pixels[list(missing.values())], self._spec.preprocessing, advance
            )
            self._known.update(zip(missing, map(_row(found), range(len(missing))), strict=True))
        rows = [self._known.pop(key) for key in dict.fromkeys(keys)]
        # Behind all others: what was asked for last stays longest.
        self._known.update(zip(dict.fromkeys(keys), rows, strict=True))
        if missing and self._folder is not None:
            _keep(self._folder, self._key, dict(list(self._known.items())[-MOST_IMAGES:]))
        return _joined([self._known[key] for key in keys])

    def decisions(self, paths: Sequence[Path], crop_bottom_px: int) -> list[int]:
        """Return the class that the network gives each image. Raises ImageError."""
        given = self._spec.preprocessing
        pixels = np.stack([load_pixels(path, given, crop_bottom_px) for path in paths])
        return [int(number) for number in self.outputs(pixels).logits.argmax(axis=1)]


@functools.cache
def _usable(folder: Path) -> bool:
    """Ask once: a command opens the network in several places, and the remark is one."""
    return usable(folder, "PyTorch's outputs")


# Logits (classes), then kept patches (K) and ranks (N) of each stage.
Row = list[npt.NDArray[np.generic]]


def _row(found: Outputs) -> Callable[[int], Row]:
    return lambda n: [found.logits[n], *(a[n] for pair in (found.kept, found.ranks) for a in pair)]


def _joined(rows: Sequence[Row]) -> Outputs:
    logits, *others = (np.stack(column) for column in zip(*rows, strict=True))
    positions = tuple(column.astype(np.int64) for column in others)
    stages = len(positions) // 2
    return Outputs(logits.astype(np.float32), positions[:stages], positions[stages:])


def _identity(model: Network, spec: ModelSpec) -> str:
    """Return a digest of all that decides what the network gives for pixels."""
    versions = [installed.version(name) for name in ("torch", "timm", "gft-edge")]
    # Labels name what the network gives, and decide nothing.
    what = to_json(dataclasses.replace(spec, labels=()))
    digest = hashlib.sha256(json.dumps([versions, what], sort_keys=True).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(folder: Path, key: str) -> dict[bytes, Row]:
    """Return what was kept; nothing where it is absent or damaged."""
    kept = read_entry(folder, key)
    if kept is None:
        return {}
    with np.load(BytesIO(kept.tobytes())) as content:
        columns = [content[name] for name in content.files]
    return {image.tobytes(): list(row) for image, *row in zip(*columns, strict=True)}


def _keep(folder: Path, key: str, known: dict[bytes, Row]) -> None:
    images = np.frombuffer(b"".join(known), dtype=np.uint8).reshape(len(known), -1)
    logits, *others = (np.stack(column) for column in zip(*known.values(), strict=True))
    content = BytesIO()
    np.savez(content, images, logits, *(column.astype(np.int32) for column in others))
    keep_entry(folder, key, content.getbuffer(), "what PyTorch gave")
