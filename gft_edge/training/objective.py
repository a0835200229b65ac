"""What a training step lowers: the loss of a network on a batch."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gft_edge.model.network import Network, Tokens
from gft_edge.training.product_attention import ProductAttention
from gft_edge.training.recipes import Recipe


class Objective(nn.Module):
    """The network with its loss: one module, so that what wraps it (DDP, FSDP) sees every forward.

    With `amp` the loss is computed under bf16 autocast; logits always in the weights' own precision.
    With a teacher a share of the loss is the divergence from its logits (Hinton et al., arXiv
    1503.02531), and with `feature_distillation` the distance between the tokens is added.
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
        autocast = torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.amp)
        # Only where it can change something: the mode sees every call.
        on_cpu = self.amp and images.device.type == "cpu"
        with autocast, ProductAttention() if on_cpu else nullcontext():
            (teacher,) = self._teacher
            if teacher is not None:
                teacher = teacher.to(images.device)
                if self.recipe.feature_distillation:
                    return self._loss_with_tokens(images, targets, teacher)
            with torch.no_grad():
                taught = None if teacher is None else teacher(images).float()

            def loss(logits: Tensor, targets: Tensor) -> Tensor:
                return classification_loss(logits.float(), targets, taught, self.recipe)

            return self.network.training_loss(images, targets, loss)

    def _loss_with_tokens(self, images: Tensor, targets: Tensor, teacher: Network) -> Tensor:
        with torch.no_grad():
            taught = teacher.forward_with_tokens(images)
        made = self.network.forward_with_tokens(images)
        logits, others = made.logits.float(), taught.logits.float()
        loss = classification_loss(logits, targets, others, self.recipe)
        return loss + self.recipe.feature_distillation * token_loss(made, taught)


def classification_loss(
    logits: Tensor, targets: Tensor, taught: Tensor | None, recipe: Recipe
) -> Tensor:
    """Cross entropy with label smoothing, mixed with the divergence from a teacher's logits.

    logits and taught (B,classes) float32, targets (B,) -> (). The divergence is KL(teacher || network)
    of both softmaxed at the recipe's temperature, times its square, which keeps the gradient's size.
    At a `distillation` of 0 the teacher may have other classes.
    """
    hard = F.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
    if taught is None or not recipe.distillation:
        return hard
    t = recipe.distillation_temperature
    soft = F.kl_div(
        (logits / t).log_softmax(dim=1),
        (taught / t).log_softmax(dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return torch.lerp(hard, soft * t * t, recipe.distillation)


def token_loss(made: Tokens, taught: Tokens) -> Tensor:
    """The distance between a network's final tokens and those of a teacher that keeps all patches, ().

    The mean squared difference of the kept patches from the teacher's at the same grid positions, as in
    DynamicViT (Rao et al., arXiv 2106.02034, L_distill), here of features that a LayerNorm
    without weights has standardised, as in Wei et al. (arXiv 2205.14141): else the channels to which
    either final norm gives most would be all of it, and a weight would mean something else for each
    teacher. It is then 2 (1 - correlation) a token, 0 to 4. The class token counts as much as all
    patches: through it alone the head reads them.
    """
    # The teacher's patches are the whole grid in order.
    places = made.positions.unsqueeze(-1).expand_as(made.patches)
    patches = _distance(made.patches, taught.patches.gather(1, places))
    return (_distance(made.class_token, taught.class_token) + patches) / 2


def _distance(made: Tensor, taught: Tensor) -> Tensor:
    width = made.shape[-1:]
    return F.mse_loss(F.layer_norm(made.float(), width), F.layer_norm(taught.float(), width))
