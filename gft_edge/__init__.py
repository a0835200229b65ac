"""Run a Gradient Focal Transformer on a device: Classifier.load(bundle).predict(image)."""

from typing import TYPE_CHECKING, Any

from gft_edge.errors import GftEdgeError

if TYPE_CHECKING:
    from gft_edge.bundle.specs import Prediction
    from gft_edge.runtime.classifier import Classifier

__all__ = ["Classifier", "GftEdgeError", "Prediction"]


def __getattr__(name: str) -> Any:
    # Late: a device that only builds and runs engines needs no Pillow.
    if name == "Classifier":
        from gft_edge.runtime.classifier import Classifier

        return Classifier
    # Late as well: the command line's --help needs nothing of it.
    if name == "Prediction":
        from gft_edge.bundle.specs import Prediction

        return Prediction
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
