"""From a spec to its network, of whatever family."""

from __future__ import annotations

from gft_edge.bundle.specs import ModelSpec
from gft_edge.model.dense import build_dense
from gft_edge.model.gft import build_gft
from gft_edge.model.network import Network
from gft_edge.model.transfg import build_transfg

__all__ = ["Network", "build_network"]

_BUILDERS = {"gft": build_gft, "timm": build_dense, "transfg": build_transfg}


def build_network(spec: ModelSpec) -> Network:
    """The network of a spec with fresh weights. Raises SpecError when timm cannot build it."""
    return _BUILDERS[spec.family](spec)
