"""Bundles: altered on purpose and signed anew, compared with what they were, and opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.locks import LOCK_FILE, locked
from gft_edge.bundle.store import Bundle, read_bundle, read_manifest, sha256_of, write_manifest
from gft_edge.runtime.opening import bundle_request
from tests.support.files import contents

if TYPE_CHECKING:
    import onnx

Change = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


def sign(bundle: Path, name: str) -> None:
    """Record a file's sha256 anew in the manifest."""
    manifest = read_manifest(bundle)
    digest = sha256_of(bundle / name)
    artifact = manifest.artifact
    if artifact.path == name:
        artifact = dataclasses.replace(artifact, sha256=digest)
    files = {**manifest.files, name: digest}
    write_manifest(bundle, dataclasses.replace(manifest, artifact=artifact, files=files))


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file of a bundle but its lock."""
    return {name: each for name, each in contents(folder).items() if name != LOCK_FILE}


def assert_untouched(folder: Path, before: dict[str, bytes]) -> None:
    """Check that a bundle's files are as they were, and that nobody holds its lock."""
    with locked(folder):
        pass
    assert files_of(folder) == before


def session_of(
    given: Path | Bundle,
    kept: bool = True,
    backend: str | None = None,
    threads: int | None = None,
    **options: Any,
) -> Any:
    """Open a bundle's session as Classifier.load does, by default with its kept patches."""
    bundle = given if isinstance(given, Bundle) else read_bundle(given)
    options["kept_outputs"] = bundle.manifest.kept_outputs if kept else ()
    engine, request = bundle_request(bundle, backend, threads, **options)
    return engine.open_session(bundle.artifact_path, request)


def alter_head(graph: Path, change: Change, *suffixes: str) -> None:
    """Change tensors of an ONNX graph's classifier, by default its weights, (4 classes, 48)."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(graph)
    chosen = suffixes or ("head.weight",)
    tensors = [each for each in model.graph.initializer if each.name.endswith(chosen)]
    assert len(tensors) == len(chosen)
    for tensor in tensors:
        altered = change(numpy_helper.to_array(tensor).copy()).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(altered, tensor.name))
    onnx.save(model, graph)


def keep_the_worst(model: onnx.ModelProto) -> None:
    """Turn the first TopK around, as a faulty optimiser would: the graph stays valid."""
    node = next(n for n in model.graph.node if n.op_type == "TopK")
    next(a for a in node.attribute if a.name == "largest").i = 0
