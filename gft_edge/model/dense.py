"""Any timm classifier as a network: nothing is added, every part of the image goes all the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import group_parameters
from torch import Tensor

from gft_edge.bundle.specs import ModelSpec
from gft_edge.model.network import Network
from gft_edge.model.timm_models import create_model, takes_image_size


class Dense(Network):
    """timm's model, under `backbone`."""

    def forward_with_kept(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and no kept patches."""
        return self.backbone(images), []

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """timm's groups of the backbone: parameter name -> its depth."""
        # timm's patterns begin where the backbone's own names do: no prefix can be put before all.
        groups = group_parameters(self.backbone, self.backbone.group_matcher(coarse), reverse=True)
        return lambda name: groups[name.removeprefix("backbone.")]


def create_dense(name: str, image_size_px: int, classes: int, **arguments: int) -> Any:
    """A timm classifier with fresh weights. Raises SpecError where timm cannot build it."""
    if takes_image_size(name):
        arguments["img_size"] = image_size_px
    return create_model(name, num_classes=classes, **arguments)


def build_dense(spec: ModelSpec) -> Dense:
    """The network of a spec of family `timm` with fresh weights. Raises SpecError."""
    size = spec.preprocessing.image_size_px
    model = create_dense(spec.backbone, size, len(spec.labels), **spec.backbone_args)
    return Dense(model, size)
