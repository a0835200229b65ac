"""The Gradient Focal Transformer from training to a device: train, export, profile, benchmark, Classifier."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gft_edge.errors import GftEdgeError, MissingDependencyError
from gft_edge.telemetry import switch_off

if TYPE_CHECKING:
    from gft_edge.bundle.specs import Prediction
    from gft_edge.export.pipeline import export
    from gft_edge.profiling.profile import profile
    from gft_edge.runtime.classifier import Classifier
    from gft_edge.studies.benchmark import benchmark
    from gft_edge.training.loop import train

switch_off()

__all__ = [
    "Classifier",
    "GftEdgeError",
    "Prediction",
    "benchmark",
    "export",
    "profile",
    "train",
]

# Name -> its module, and the extra that has what the module imports. They are imported late: a device
# that only runs engines has no torch, and the command line's --help needs no Pillow.
_HOMES = {
    "Classifier": ("gft_edge.runtime.classifier", "onnx"),
    "Prediction": ("gft_edge.bundle.specs", "onnx"),
    "benchmark": ("gft_edge.studies.benchmark", "export"),
    "profile": ("gft_edge.profiling.profile", "onnx"),
    "train": ("gft_edge.training.loop", "train"),
}


def __getattr__(name: str) -> Any:
    if name == "export":
        # The package of that name, which can be called.
        return import_module("gft_edge.export")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, extra = _HOMES[name]
    try:
        return getattr(import_module(home), name)
    except ImportError as error:
        raise MissingDependencyError(error.name or name, extra) from error
