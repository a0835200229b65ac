"""GFT: a plain timm VisionTransformer that keeps fewer patches stage by stage."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from gft_edge.bundle.scores import SCORES
from gft_edge.bundle.specs import GalaMode, ModelSpec, Score, Stage
from gft_edge.bundle.stages import check_stages
from gft_edge.errors import SpecError
from gft_edge.model import gala
from gft_edge.model.network import Network, Tokens
from gft_edge.model.timm_models import create_model

EMA_MOMENTUM = 0.9


class Selection(nn.Module):
    """One stage's score and its choice of `keep` patches out of those still present.

    While training, a score with a smoothing kernel multiplies the kept patches by 1 + (g - g.detach()),
    g = Eq. 3 times the patch count: the value is 1, and the gradient reaches the scores and the kernel.
    g reads the importance blended with its running mean per grid position; the ranking, in training as
    on the device, reads the importance itself.
    """

    kernel: nn.Parameter
    ema: Tensor
    priority: Tensor

    def __init__(
        self, score: Score, keep: int, grid: tuple[int, int], prefix: int, temperature: float
    ):
        super().__init__()
        self.score, self.keep, self.grid = score, keep, grid
        self.prefix, self.temperature = prefix, temperature
        self.rule = SCORES[score]
        self.inverted = False  # set only by selection_reaches_logits
        patches = grid[0] * grid[1]
        if self.rule.smoothed:
            self.kernel = nn.Parameter(torch.tensor([0.25, 0.5, 0.25]))
            self.register_buffer("ema", torch.zeros(patches))
        if self.rule.attention is None:
            # One order for all images, drawn anew by every training as its weights are.
            self.register_buffer("priority", torch.randperm(patches).float())

    def forward(
        self, q: Tensor, k: Tensor, scale: float, positions: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """q, k (B,H,T,D), grid positions (B,N) -> kept patches (B,K) int64, and the gate (B,K,1) or None."""
        scores = self.scores(q, k, scale, positions)
        kept = gala.top_k_in_grid_order(-scores if self.inverted else scores, self.keep)
        if not (self.training and self.rule.smoothed):
            return kept, None
        gate = self._gate(scores, positions).gather(1, kept).unsqueeze(-1)
        return kept, 1 + (gate - gate.detach())

    def scores(self, q: Tensor, k: Tensor, scale: float, positions: Tensor) -> Tensor:
        """What the patches are ranked by, (B,N) float32; arguments as in forward."""
        if self.rule.attention is None:
            # Adding zero times an activation keeps the TopK in the graph: a control whose selection
            # was folded into constants would also be measured faster than the scores it controls for.
            priority = self.priority.index_select(0, positions.reshape(-1))
            return priority.reshape(positions.shape) + 0.0 * q[:, 0, self.prefix :, 0].float()
        attention = self._attention(q, k, scale)
        if self.rule.taken == "value":
            return attention.mean(dim=1)
        if self.rule.taken == "laplacian":
            return gala.laplacian_scores(attention, positions, self.grid)
        return gala.gradient_scores(attention, self.kernel.float())

    def _attention(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        """The map of attention that the score reads, q and k (B,H,T,D) -> (B,H,N) float32."""
        # FP32: in FP16 close scores tie, and a tie changes the kept set.
        if self.rule.attention == "class-raw":
            return gala.class_scores(q[:, :, :1].float(), k.float(), self.prefix, scale)
        if self.rule.attention == "class":
            return gala.class_attention(q[:, :, :1].float(), k.float(), self.prefix, scale)
        if self.rule.attention == "received":
            return gala.received_attention(q.float(), k.float(), self.prefix, scale)
        patches = slice(self.prefix, None)
        return gala.mean_attention_scores(q[:, :, patches].float(), k[:, :, patches].float(), scale)

    def _gate(self, scores: Tensor, positions: Tensor) -> Tensor:
        importance = self._steadied(gala.standardise(scores), positions)
        return gala.importance_distribution(importance, self.temperature) * scores.shape[1]

    def _steadied(self, importance: Tensor, positions: Tensor) -> Tensor:
        """Blended with its running mean per grid position, which takes this batch up first."""
        with torch.no_grad():
            total = torch.zeros_like(self.ema).index_add_(
                0, positions.reshape(-1), importance.detach().reshape(-1)
            )
            count = torch.bincount(positions.reshape(-1), minlength=len(self.ema))
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                # One mean over the images of all processes, as if one had seen them.
                torch.distributed.all_reduce(total)
                torch.distributed.all_reduce(count)
            mean = total / count.clamp(min=1)
            blended = torch.lerp(mean, self.ema, EMA_MOMENTUM)
            self.ema.copy_(torch.where(count > 0, blended, self.ema))
        return torch.lerp(self.ema[positions], importance, 1 - EMA_MOMENTUM)


class GalaLayer(nn.Module):
    """The extra attention layer of a `layer` stage: score, keep, then attend among the kept.

    In this order every selection reaches the logits, even behind the last block.
    """

    def __init__(self, block: Block):
        super().__init__()
        self.norm = copy.deepcopy(block.norm1)
        self.attn = copy.deepcopy(block.attn)
        # A zero projection: a fresh layer adds nothing, so a pretrained backbone starts unharmed.
        nn.init.zeros_(self.attn.proj.weight)
        if self.attn.proj.bias is not None:
            nn.init.zeros_(self.attn.proj.bias)


class GFT(Network):
    """A timm VisionTransformer with patch selections, (B,3,S,S) -> logits (B,classes).

    `stages` may be empty: then it is the backbone. Raises SpecError for a backbone that is not a
    plain VisionTransformer and for stages that do not fit it.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        stages: tuple[Stage, ...],
        mode: GalaMode = "layer",
        score: Score = "gala",
        temperature: float = 1.0,
    ):
        check_backbone(backbone)
        super().__init__(backbone, backbone.patch_embed.img_size[0])
        patches = backbone.patch_embed.num_patches
        check_stages(stages, mode, len(backbone.blocks), patches)
        self.prefix: int = backbone.num_prefix_tokens
        self.mode = mode
        self._stages, self._temperature = stages, temperature
        self.rank_by(score)
        sources = source_blocks(stages, len(backbone.blocks)) if mode == "layer" else []
        self.layers: Sequence[GalaLayer] = nn.ModuleList(  # type: ignore[assignment]
            GalaLayer(backbone.blocks[block]) for block in sources
        )
        self._stages_at: dict[int, list[int]] = defaultdict(list)
        for number, stage in enumerate(stages):
            self._stages_at[stage.position].append(number)

    def rank_by(self, score: Score) -> None:
        """Let every stage rank by `score`, with a smoothing kernel as one starts."""
        grid = self.backbone.patch_embed.grid_size
        self.selections: Sequence[Selection] = nn.ModuleList(  # type: ignore[assignment]
            Selection(score, stage.keep, grid, self.prefix, self._temperature)
            for stage in self._stages
        )

    def forward_with_kept(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits and, per stage, the kept patches (B,K) as indices into what the stage before left."""
        x, trail = self._run(images)
        return self.backbone.forward_head(x), trail.kept

    def forward_with_tokens(self, images: Tensor) -> Tokens:
        """Logits, the class token and the kept patches, of one pass."""
        x, trail = self._run(images)
        return Tokens(self.backbone.forward_head(x), x[:, 0], x[:, self.prefix :], trail.positions)

    def _run(self, images: Tensor) -> tuple[Tensor, _Trail]:
        """The tokens (B,P+K,C) that the last norm leaves, and which patches they are of."""
        backbone = self.backbone
        x = backbone.norm_pre(backbone._pos_embed(backbone.patch_embed(images)))
        positions = torch.arange(x.shape[1] - self.prefix, device=x.device).expand(x.shape[0], -1)
        trail = _Trail(positions)
        for number, block in enumerate(backbone.blocks):
            if self.mode == "layer":
                x = self._run_layers(number, x, trail)
            if self.mode == "block" and number in self._stages_at:
                x = self._select_inside(block, x, trail)
            else:
                x = block(x)
        x = self._run_layers(len(backbone.blocks), x, trail)
        return backbone.norm(x), trail

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """timm's grouping of parameters by depth, for a learning rate that decays with it."""
        depth = len(self.backbone.blocks)
        return {
            "stem": r"^backbone\.(?:cls_token|dist_token|reg_token|pos_embed|patch_embed|norm_pre)",
            "blocks": [
                (r"^backbone\.blocks\.(\d+)", None),
                (r"^(?:layers|selections)\.\d+", (depth,)),
                (r"^backbone\.norm\.", (depth,)),
            ],
        }

    def _run_layers(self, position: int, x: Tensor, trail: _Trail) -> Tensor:
        for number in self._stages_at.get(position, ()):
            layer = self.layers[number]
            q, k, v, gate_input = project_qkv(layer.attn, layer.norm(x))
            chosen, gate = self._select(q, k, layer.attn.scale, trail)
            x = self._keep(x, chosen, gate)
            q, k, v = (self._keep_heads(part, chosen) for part in (q, k, v))
            gate_input = gala.keep_patches(gate_input, chosen, self.prefix)
            x = x + attend(layer.attn, q, k, v, gate_input)
        return x

    def _select_inside(self, block: Block, x: Tensor, trail: _Trail) -> Tensor:
        """The block with a selection behind its attention."""
        q, k, v, gate_input = project_qkv(block.attn, block.norm1(x))
        x = x + block.drop_path1(block.ls1(attend(block.attn, q, k, v, gate_input)))
        x = self._keep(x, *self._select(q, k, block.attn.scale, trail))
        out: Tensor = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
        return out

    def _select(
        self, q: Tensor, k: Tensor, scale: float, trail: _Trail
    ) -> tuple[Tensor, Tensor | None]:
        """The next stage's choice of patches and their gate."""
        chosen, gate = self.selections[len(trail.kept)](q, k, scale, trail.positions)
        trail.keep(chosen)
        return chosen, gate

    def _keep(self, x: Tensor, chosen: Tensor, gate: Tensor | None) -> Tensor:
        x = gala.keep_patches(x, chosen, self.prefix)
        if gate is None:
            return x
        return torch.cat([x[:, : self.prefix], x[:, self.prefix :] * gate.to(x.dtype)], dim=1)

    def _keep_heads(self, part: Tensor, chosen: Tensor) -> Tensor:
        """(B,H,T,D), chosen (B,K) -> (B,H,P+K,D)."""
        batch, heads, tokens, width = part.shape
        rows = part.transpose(1, 2).reshape(batch, tokens, heads * width)
        rows = gala.keep_patches(rows, chosen, self.prefix)
        return rows.reshape(batch, -1, heads, width).transpose(1, 2)


class _Trail:
    """The grid positions (B,N) of the patches still present, and what each stage kept, in a forward pass."""

    def __init__(self, positions: Tensor):
        self.positions = positions
        self.kept: list[Tensor] = []

    def keep(self, chosen: Tensor) -> None:
        self.kept.append(chosen)
        self.positions = self.positions.gather(1, chosen)


def project_qkv(attn: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """timm Attention up to its product: x (B,T,C) -> q, k, v (B,H,T,D), and x for its output gate."""
    batch, tokens, _ = x.shape
    qkv = attn.qkv(x).reshape(batch, tokens, 3, attn.num_heads, attn.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return attn.q_norm(q), attn.k_norm(k), v, x


def attend(attn: Attention, q: Tensor, k: Tensor, v: Tensor, gate_input: Tensor) -> Tensor:
    """timm Attention from its product on: q, k, v (B,H,T,D) -> (B,T,C)."""
    dropout = attn.attn_drop.p if attn.training else 0.0
    x = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    x = attn.norm(x.transpose(1, 2).flatten(2))
    # Not every timm served has the output gate.
    gate = getattr(attn, "gate", None)
    if gate is not None:
        x = x * gate(gate_input).sigmoid()
    projected: Tensor = attn.proj_drop(attn.proj(x))
    return projected


def source_blocks(stages: tuple[Stage, ...], depth: int) -> list[int]:
    """Which block each `layer` stage starts from: its position; the next one for a second stage there."""
    seen: dict[int, int] = defaultdict(int)
    sources = []
    for stage in stages:
        sources.append(min(stage.position + seen[stage.position], depth - 1))
        seen[stage.position] += 1
    return sources


def check_backbone(backbone: nn.Module) -> None:
    """Raise SpecError naming the first property of a plain timm VisionTransformer that is missing."""
    name = type(backbone).__name__
    needs = "GFT wraps plain timm VisionTransformers (ViT, DeiT)"
    if not isinstance(backbone, VisionTransformer):
        raise SpecError(f"{name} is not a VisionTransformer: {needs}")
    if not backbone.has_class_token:
        raise SpecError(f"this {name} has no class token: {needs} with class_token=True")
    if backbone.global_pool != "token":
        raise SpecError(
            f"this {name} pools by {backbone.global_pool!r}, not the class token: {needs}"
        )
    if backbone.dynamic_img_size or not isinstance(backbone.patch_drop, nn.Identity):
        raise SpecError(f"this {name} has a token count that varies: {needs} of one image size")
    for number, block in enumerate(backbone.blocks):
        if type(block) is not Block or type(block.attn) is not Attention:
            raise SpecError(
                f"block {number} of this {name} is {type(block).__name__} with "
                f"{type(getattr(block, 'attn', None)).__name__}: {needs} of standard blocks"
            )


def build_gft(spec: ModelSpec) -> GFT:
    """The network of a spec with fresh weights. Raises SpecError when timm cannot build it."""
    return GFT(build_backbone(spec), spec.stages, spec.gala, spec.score, spec.temperature)


def build_backbone(spec: ModelSpec, **overrides: int) -> VisionTransformer:
    """The dense timm network of a spec with fresh weights."""
    return create_backbone(
        spec.backbone,
        img_size=spec.preprocessing.image_size_px,
        num_classes=len(spec.labels),
        **{**spec.backbone_args, **overrides},
    )


def create_backbone(name: str, **arguments: int) -> VisionTransformer:
    """A plain timm ViT without pretrained weights. Raises SpecError for an unknown or unfit one."""
    model = create_model(name, **arguments)
    check_backbone(model)
    check_image_size(model, arguments.get("img_size", model.patch_embed.img_size[0]))
    return model


def check_image_size(backbone: VisionTransformer, size_px: int) -> None:
    """Raise SpecError unless whole patches fill the images."""
    side = math.lcm(*backbone.patch_embed.patch_size)
    if size_px < 1 or size_px % side:
        below = max(size_px, 0) // side * side
        use = f"{below} or {below + side}" if below else str(side)
        raise SpecError(
            f"image size {size_px} is not a multiple of the patch size {side}: use {use}"
        )
