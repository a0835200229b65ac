"""TransFG: a ViT on overlapping patches whose last block sees the class token and chosen parts.

He et al., AAAI 2022, arXiv 2103.07976. The authors' code trains ViT-B/16 on images of 448 px cut
every 12 px; here the images are of 224 px unless the spec says otherwise: 18 x 18 patches.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from gft_edge.bundle.specs import ModelSpec
from gft_edge.errors import SpecError
from gft_edge.model.gala import keep_patches
from gft_edge.model.gft import create_backbone, project_qkv
from gft_edge.model.network import CrossEntropy, Network

PATCH_STRIDE = "patch_stride"  # its name among the backbone's arguments
DEFAULT_STRIDE_PX = 12
MARGIN = 0.4  # alpha of the contrastive loss


class PartSelection(nn.Module):
    """For each head of the last block but one, the patch that the class token sees most of."""

    def forward(self, attention: list[Tensor], prefix: int) -> Tensor:
        """Attention (B,H,T,T) of each block in order, rows summing to 1 -> parts (B,H), int64.

        The maps are multiplied up, later ones from the left, and the class token's row of
        the product is searched. That row alone is computed, at 1/T of the work.
        """
        # FP32: in half precision close products tie, and a tie changes the part.
        row = attention[-1][:, :, :1].float()
        for maps in reversed(attention[:-1]):
            row = row @ maps.float()
        return row[:, :, 0, prefix:].argmax(dim=2)


class TransFG(Network):
    """A plain ViT, under `backbone`, whose last block is fed the parts in place of all patches."""

    def __init__(self, backbone: Any, image_size_px: int):
        super().__init__(backbone, image_size_px)
        self.parts = PartSelection()

    def forward_with_kept(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits; the parts are chosen with repetition and are not kept patches."""
        return self.backbone.forward_head(self.features(images)), []

    def features(self, images: Tensor) -> Tensor:
        """Normalised images (B,3,S,S) -> the class token and the parts, (B,P+H,C), normalised."""
        backbone = self.backbone
        x = backbone.norm_pre(backbone._pos_embed(backbone.patch_embed(images)))
        attention = []
        for block in backbone.blocks[:-1]:
            x, maps = run_block(block, x)
            attention.append(maps.detach())
        x = keep_patches(x, self._choose(attention), backbone.num_prefix_tokens)
        features: Tensor = backbone.norm(backbone.blocks[-1](x))
        return features

    def _choose(self, attention: list[Tensor]) -> Tensor:
        prefix = self.backbone.num_prefix_tokens
        parts: Tensor
        if not self.training:
            parts = self.parts(attention, prefix)
            return parts
        # Autocast would round the product again at each step. An export would lose the module's name.
        with torch.autocast(attention[0].device.type, enabled=False):
            parts = self.parts(attention, prefix)
        return parts

    def training_loss(self, images: Tensor, targets: Tensor, cross_entropy: CrossEntropy) -> Tensor:
        """Cross entropy plus the contrastive loss of the class tokens."""
        features = self.features(images)
        logits = self.backbone.forward_head(features).float()
        return cross_entropy(logits, targets) + contrastive_loss(features[:, 0].float(), targets)

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """timm's grouping of parameters by depth, for a learning rate that decays with it."""
        return {
            "stem": r"^backbone\.(?:cls_token|dist_token|reg_token|pos_embed|patch_embed|norm_pre)",
            "blocks": [
                (r"^backbone\.blocks\.(\d+)", None),
                (r"^backbone\.norm\.", (len(self.backbone.blocks),)),
            ],
        }


def run_block(block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    """A timm block with its attention written out: x (B,T,C) -> x, and the attention (B,H,T,T)."""
    attn = block.attn
    q, k, v, gate_input = project_qkv(attn, block.norm1(x))
    maps = ((q * attn.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
    mixed = attn.norm((attn.attn_drop(maps) @ v).transpose(1, 2).flatten(2))
    gate = getattr(attn, "gate", None)
    if gate is not None:
        mixed = mixed * gate(gate_input).sigmoid()
    x = x + block.drop_path1(block.ls1(attn.proj_drop(attn.proj(mixed))))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))), maps


def contrastive_loss(features: Tensor, targets: Tensor) -> Tensor:
    """Pull class tokens of a class together, push others apart to a similarity of MARGIN.

    features (B,C), targets (B) -> the mean over all B * B pairs, each image with itself among them:
    1 - cosine within a class, max(cosine - MARGIN, 0) between classes.
    """
    unit = F.normalize(features, dim=1)
    similarity = unit @ unit.T
    alike = targets.unsqueeze(0) == targets.unsqueeze(1)
    losses = torch.where(alike, 1 - similarity, (similarity - MARGIN).clamp(min=0))
    return losses.mean()


def create_overlapping(name: str, image_size_px: int, classes: int, **arguments: int) -> Any:
    """A plain timm ViT that cuts a patch every `patch_stride` px, with fresh weights.

    Pixels beyond the last whole patch are not seen, as in the authors' code. Raises SpecError.
    """
    stride = arguments.pop(PATCH_STRIDE, DEFAULT_STRIDE_PX)
    with torch.device("meta"):  # its shapes alone
        patch = create_backbone(name, num_classes=classes, **arguments).patch_embed.patch_size[0]
    if not 1 <= stride <= patch:
        raise SpecError(f"{PATCH_STRIDE} is {stride}: give 1 to {patch}, the size of a patch")
    if image_size_px < patch + stride:
        raise SpecError(
            f"image size {image_size_px} holds one patch: give {patch + stride} px or more"
        )
    # timm wants whole patches side by side; the grid is set right below.
    whole = image_size_px // patch * patch
    backbone = create_backbone(name, num_classes=classes, img_size=whole, **arguments)
    embed = backbone.patch_embed
    embed.proj.stride = (stride, stride)
    side = (image_size_px - patch) // stride + 1
    embed.img_size, embed.grid_size = (image_size_px, image_size_px), (side, side)
    embed.num_patches = side * side
    prefix = backbone.pos_embed.shape[1] - (whole // patch) ** 2
    backbone.pos_embed = nn.Parameter(torch.zeros(1, side * side + prefix, backbone.embed_dim))
    trunc_normal_(backbone.pos_embed, std=0.02)
    return backbone


def build_transfg(spec: ModelSpec) -> TransFG:
    """The network of a spec of family `transfg` with fresh weights. Raises SpecError."""
    size = spec.preprocessing.image_size_px
    backbone = create_overlapping(spec.backbone, size, len(spec.labels), **spec.backbone_args)
    if len(backbone.blocks) < 2:
        raise SpecError("TransFG chooses its parts before the last block: give 2 blocks or more")
    return TransFG(backbone, size)
