"""What every network here offers, whatever is inside: logits, kept patches, a loss to train on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from gft_edge.errors import SpecError

# logits (B,classes) float32 and classes (B) -> a loss.
CrossEntropy = Callable[[Tensor, Tensor], Tensor]


class Tokens(NamedTuple):
    """What a plain ViT ends with: its logits, and the tokens that its last norm leaves.

    logits (B,classes); the class token (B,C); the patches (B,K,C) that are still there, and where each
    lies in the grid, counted row by row: `positions` (B,K) int64.
    """

    logits: Tensor
    class_token: Tensor
    patches: Tensor
    positions: Tensor


class Network(nn.Module, ABC):
    """A classifier around a timm backbone, for square images of one size.

    `selections` are the patch selections of a GFT in the order they run, `layers` its extra
    attention layers; any other network has none.
    """

    selections: Sequence[Any]
    layers: Sequence[Any]

    def __init__(self, backbone: nn.Module, image_size_px: int):
        super().__init__()
        self.backbone: Any = backbone
        self.image_size_px = image_size_px
        self.selections = nn.ModuleList()  # type: ignore[assignment]
        self.layers = nn.ModuleList()  # type: ignore[assignment]

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B,3,S,S) -> logits (B,classes)."""
        return self.forward_with_kept(images)[0]

    @abstractmethod
    def forward_with_kept(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits and, per stage, the kept patches (B,K) as indices into what the stage before left."""

    def forward_with_tokens(self, images: Tensor) -> Tokens:
        """Logits and final tokens of one pass. Raises SpecError for all but a plain ViT or its GFT."""
        raise SpecError(
            f"{type(self.backbone).__name__} has no tokens of grid positions at its end"
        )

    def training_loss(self, images: Tensor, targets: Tensor, cross_entropy: CrossEntropy) -> Tensor:
        """The loss of normalised images (B,3,S,S) of classes (B): their cross entropy."""
        return cross_entropy(self(images).float(), targets)

    @abstractmethod
    def group_matcher(self, coarse: bool = False) -> Any:
        """timm's grouping of parameters by depth, for a learning rate that decays with it."""

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimisers must not decay."""
        names: set[str] = getattr(self.backbone, "no_weight_decay", set)()
        return {f"backbone.{name}" for name in names}

    def classifiers(self) -> tuple[nn.Module, ...]:
        """The layers that write the logits: one, or two in a distilled network."""
        found = self.backbone.get_classifier()
        return tuple(found) if isinstance(found, (tuple, list)) else (found,)

    def first_convolution(self) -> tuple[str, nn.Module]:
        """The convolution that reads the images, by module path. Raises SpecError if timm names none."""
        name = self.backbone.pretrained_cfg.get("first_conv")
        if not isinstance(name, str):
            raise SpecError(f"timm names no first convolution of {type(self.backbone).__name__}")
        return f"backbone.{name}", self.backbone.get_submodule(name)
