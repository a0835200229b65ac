"""The run or bundle that a command is given, and the one that it compares a bundle with."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path

from gft_edge.bundle.manifest import Manifest
from gft_edge.bundle.specs import ModelSpec
from gft_edge.bundle.store import MANIFEST_FILE, Bundle, is_bundle, read_bundle
from gft_edge.errors import UsageError
from gft_edge.fidelity.verify import Reference
from gft_edge.runtime.backends import backend_for
from gft_edge.runtime.classifier import Classifier


def is_bundle_not_run(path: Path) -> bool:
    """Whether a folder is a bundle; else it is a run. Raises UsageError for one that is neither."""
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder, give a run or a bundle")
    if is_bundle(path):
        return True
    from gft_edge.model.checkpoint import SPEC_FILE

    if not (path / SPEC_FILE).is_file():
        raise UsageError(
            f"{path} is neither a run (no {SPEC_FILE}) nor a bundle (no {MANIFEST_FILE}): give a "
            "folder that gft-edge train or gft-edge export wrote"
        )
    return False


def open_reference(path: Path, bundle: Path, manifest: Manifest, stack: ExitStack) -> Reference:
    """Open `path`, a run in PyTorch or a bundle in its engine, as the reference of another bundle.

    `manifest` is of the bundle in `bundle`, at whose keep counts a run is taken; `stack` closes the
    reference. Raises UsageError when `path` is neither or of another network.
    """
    if is_bundle_not_run(path):
        other = read_bundle(path)
        _check_same_network(path, _trained(other.manifest), bundle, _trained(manifest))
        _check_same_counts(path, other.manifest.model, bundle, manifest.model)
        return stack.enter_context(Classifier.load(other, engine_of(other), kept=True)).outputs
    from gft_edge.model.checkpoint import load_run
    from gft_edge.model.remembered import Remembered
    from gft_edge.model.schedule import at_stages

    spec, network = load_run(path)
    _check_same_network(path, spec, bundle, _trained(manifest))
    if manifest.rescheduled:
        spec, network = at_stages(spec, network, manifest.model.stages)
    return Remembered(network, spec).outputs


def engine_of(bundle: Bundle, backend: str | None = None) -> str | None:
    """The engine that a comparison runs a bundle on: ONNX Runtime for TensorRT's where no GPU answers."""
    tensorrt = bundle.manifest.target == "tensorrt"
    return backend or ("onnx" if tensorrt and backend_for("tensorrt").missing() else None)


def _trained(manifest: Manifest) -> ModelSpec:
    return dataclasses.replace(manifest.model, stages=manifest.trained_stages)


def _check_same_network(path: Path, reference: ModelSpec, bundle: Path, model: ModelSpec) -> None:
    # Kept patches are positions on the grid: those of two grids have nothing in common.
    for name in ("labels", "preprocessing", "patch_grid", "stages"):
        if getattr(reference, name) != getattr(model, name):
            raise UsageError(
                f"{path} has other {name} than {bundle}: give the run or bundle of the same network"
            )


def _check_same_counts(path: Path, reference: ModelSpec, bundle: Path, model: ModelSpec) -> None:
    if reference.stages != model.stages:
        raise UsageError(
            f"{path} keeps {_counts(reference)} patches and {bundle} {_counts(model)}: give the run "
            "as the reference, which is taken at the bundle's counts; gft-edge benchmark --keep shows what "
            "other counts cost"
        )


def _counts(model: ModelSpec) -> str:
    return ",".join(str(stage.keep) for stage in model.stages) or "all"
