"""Run a Gradient Focal Transformer on a device: Classifier.load(bundle).predict(image)."""

from gft_edge.classifier import Classifier
from gft_edge.errors import GftEdgeError
from gft_edge.specs import Prediction

__all__ = ["Classifier", "GftEdgeError", "Prediction"]
