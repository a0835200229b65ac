"""What a training step lowers: the loss of a network on a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gft_edge.model.networks import Network
from gft_edge.training.recipes import Recipe


class Objective(nn.Module):
    """The network with its loss: one module, so that what wraps it (DDP, FSDP) sees every forward.

    With `amp` the loss is computed under bf16 autocast; logits always in the weights' own precision.
    With a teacher a share of the loss is the divergence from its logits (Hinton et al., arXiv
    1503.02531).
    """

    def __init__(self, network: Network, recipe: Recipe, amp: bool, teacher: Network | None = None):
        super().__init__()
        self.network, self.recipe, self.amp = network, recipe, amp
        # Not a submodule: a teacher is neither trained, nor shared out, nor saved.
        self._teacher = (teacher,)

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        """Normalised images (B,3,S,S), class indices (B,) -> loss (); without them logits (B,classes)."""
        if targets is None:
            logits: Tensor = self.network(images)
            return logits
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.amp):
            taught = self._taught(images)

            def loss(logits: Tensor, targets: Tensor) -> Tensor:
                return classification_loss(logits.float(), targets, taught, self.recipe)

            return self.network.training_loss(images, targets, loss)

    def _taught(self, images: Tensor) -> Tensor | None:
        (teacher,) = self._teacher
        if teacher is None:
            return None
        with torch.no_grad():
            taught: Tensor = teacher.to(images.device)(images).float()
            return taught


def classification_loss(
    logits: Tensor, targets: Tensor, taught: Tensor | None, recipe: Recipe
) -> Tensor:
    """Cross entropy with label smoothing, mixed with the divergence from a teacher's logits.

    logits and taught (B,classes) float32, targets (B,) -> (). The divergence is KL(teacher || network)
    of both softmaxed at the recipe's temperature, times its square, which keeps the gradient's size.
    """
    hard = F.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
    if taught is None:
        return hard
    t = recipe.distillation_temperature
    soft = F.kl_div(
        (logits / t).log_softmax(dim=1),
        (taught / t).log_softmax(dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return torch.lerp(hard, soft * t * t, recipe.distillation)
