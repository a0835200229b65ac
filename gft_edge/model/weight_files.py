"""A checkpoint's folder, as Hugging Face and timm lay it out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from stat import S_ISDIR
from typing import Any

from gft_edge.errors import CheckpointError

# The whole pretrained network that an imported run keeps beside the part it computes with.
BACKBONE_FILE = "backbone.safetensors"

# As Hugging Face and timm name them; the first there is counts.
_WHOLE = (BACKBONE_FILE, "model.safetensors", "pytorch_model.bin")
_INDEX_SUFFIX = ".index.json"
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def weight_files(path: Path) -> tuple[Path, ...]:
    """The file itself, or of a folder its one weights file, or all shards of its index.

    Raises CheckpointError when the path is missing or may not be read, an index names a shard that is
    not there, or the folder has no weights file or several of no known name.
    """
    try:
        status = path.stat()
        listed = list(path.iterdir()) if S_ISDIR(status.st_mode) else None
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path}: no such weights file") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if listed is None:
        return (path,)
    for name in _WHOLE:
        if (path / name).is_file():
            return (path / name,)
        if (path / f"{name}{_INDEX_SUFFIX}").is_file():
            return _shards(path / f"{name}{_INDEX_SUFFIX}")
    found = sorted(p for p in listed if p.suffix in _SUFFIXES and p.is_file())
    if len(found) == 1:
        return (found[0],)
    if found:
        names = ", ".join(p.name for p in found[:3])
        raise CheckpointError(f"{path} holds {len(found)} weights files ({names}): name one")
    raise CheckpointError(
        f"{path} holds no weights: expected model.safetensors or pytorch_model.bin in the folder"
    )


def stated_heads(path: Path) -> int | None:
    """The attention heads that config.json states in the folder, or beside the file; weights do not.

    None where there is none, or it is of something else.
    """
    heads = _stated(path, "config.json").get("num_attention_heads")
    return heads if isinstance(heads, int) else None


def stated_classes(path: Path) -> Mapping[int, str]:
    """The classes of a classifier's rows by row, as a run, timm or Hugging Face states them in the folder.

    Nothing where none of them does.
    """
    config = _stated(path, "config.json")
    given = (
        _stated(path, "model.json").get("labels")
        or config.get("label_names")
        or config.get("id2label")
    )
    try:
        return names_by_index(given or ())
    except (TypeError, ValueError):
        return {}


def names_by_index(given: Any) -> dict[int, str]:
    """The names of classes from a list, or from a dict by class index, whose keys may be strings.

    Raises TypeError or ValueError for anything else.
    """
    listed = given.items() if isinstance(given, Mapping) else enumerate(given)
    return {int(index): str(label) for index, label in listed}


def _stated(path: Path, name: str) -> Mapping[str, Any]:
    """A JSON file in the folder, or beside the file; nothing where there is none."""
    folder = path if path.is_dir() else path.parent
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
        shards = tuple(index.parent / name for name in names)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is no index of weights: expected a weight_map of tensor names to files"
        ) from error
    for shard in shards:
        if not shard.is_file():
            raise CheckpointError(
                f"{shard} is missing, and {index.name} says it holds weights: fetch all "
                f"{len(shards)} files"
            )
    return shards
