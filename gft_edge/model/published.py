"""The state dict that the paper's published scripts write, and the network its logits come from.

That code runs 8 of the base's 12 blocks and three GALA layers, puts the class token as it was after
block 8 in front of the kept patches again, and classifies element 0: its logits are those of a ViT
of 8 blocks without a final norm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.specs import ModelSpec, Preprocessing
from gft_edge.bundle.store import replacing, sha256_of
from gft_edge.errors import CheckpointError, UsageError
from gft_edge.model.checkpoint import (
    IMPORT_FILE,
    SPEC_FILE,
    check_fit,
    read_weights,
    save_network,
)
from gft_edge.model.gft import GFT, build_gft, create_backbone
from gft_edge.model.state_dicts import Naming, naming_of, timm_names, without_wrapper
from gft_edge.model.weight_files import BACKBONE_FILE, weight_files

BLOCKS = 8
STAGES = 3
HEAD_WIDTH = 64
INERT_SELECTION = (
    "the selection of this checkpoint does not reach its logits: they come from the first "
    f"{BLOCKS} blocks alone; exported as it is: {BLOCKS} blocks, no GALA"
)

_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large"}

# One of each part, in the order in which the scripts build them.
_PARTS = (
    "base_model.cls_token",
    "base_model.pos_embed",
    "base_model.patch_embed.proj.weight",
    "base_model.blocks.0.attn.qkv.weight",
    "base_model.blocks.0.mlp.fc1.weight",
    "hierarchical_blocks.0.qkv.weight",
    "classifier.weight",
)

_LOOKS_LIKE: Mapping[Naming | None, str] = {
    "timm": "it looks like a network of timm's: give it to gft-edge train --weights",
    "hugging face": "it looks like a ViT of Hugging Face's: give it to gft-edge train --weights",
    "run": "it looks like a run of gft-edge, which needs no import: give its folder to gft-edge export",
    "published gft": "it looks like one that was cut short or changed",
    None: "its tensors are of another architecture",
}


@dataclass(frozen=True)
class LeftOut:
    """Tensors of a checkpoint that its logits do not depend on, and why."""

    tensors: str
    count: int
    reason: str


@dataclass(frozen=True)
class Published:
    """A checked state dict, wrappers off, and the shape of its base.

    `grid` is patches a side; `mlp_ratio` the width of a block's MLP by the base's.
    """

    path: Path
    state: Mapping[str, Tensor]
    width: int
    heads: int
    depth: int
    patch_px: int
    grid: int
    mlp_ratio: int
    classes: int

    @property
    def size(self) -> str:
        """`base` for ViT-B's width, the number where no ViT has a name for it."""
        return _SIZES.get(self.width, str(self.width))

    @property
    def image_size_px(self) -> int:
        """The square images that its position embedding is for."""
        return self.grid * self.patch_px

    @property
    def train_as(self) -> str | None:
        """The named GFT that its whole base starts, None where none has its shape."""
        named = self.size in ("tiny", "small", "base") and self.heads == self.width // HEAD_WIDTH
        plain = (self.depth, self.patch_px, self.grid, self.mlp_ratio) == (12, 16, 14, 4)
        return f"gft_{self.size}" if named and plain else None


def read_published(path: Path, heads: int | None = None) -> Published:
    """Read and check a published checkpoint, a file or a folder with one.

    `heads` of the attention cannot be read from weights: without it they are 64 wide, as in every
    ViT of the common sizes. Raises CheckpointError when it is another kind of checkpoint, lacks a
    tensor, or holds one too many; UsageError for heads that do not divide its width.
    """
    if (path / SPEC_FILE).is_file():
        raise CheckpointError(f"{path} is a run already: evaluate or export it as it is")
    state = without_wrapper(read_weights(path))
    if missing := [name for name in _PARTS if name not in state]:
        raise CheckpointError(
            f"{path} is no published GFT checkpoint: {missing[0]} is missing; "
            f"{_LOOKS_LIKE[naming_of(state)]}"
        )
    found = _with_shapes(path, state, heads)
    if found.depth < BLOCKS:
        raise CheckpointError(
            f"{path} has {found.depth} blocks: the published network runs the first {BLOCKS}"
        )
    _check(found)
    return found


def published_network(found: Published, labels: tuple[str, ...]) -> tuple[ModelSpec, GFT]:
    """The network of a checkpoint's logits, in evaluation mode: 8 blocks, no stage, no final norm.

    Images are squashed to its size, bicubic, and normalised by ImageNet's mean and standard
    deviation, as the scripts do. `labels` are in the order of the classifier's rows.
    """
    backbone, arguments = _timm_model(found)
    spec = ModelSpec(
        name=f"published_gft_{found.size}_{BLOCKS}_blocks",
        backbone=backbone,
        backbone_args={**arguments, "depth": BLOCKS, "final_norm": 0},
        stages=(),
        gala="layer",
        score="gala",
        temperature=1.0,
        patch_grid=(found.grid, found.grid),
        preprocessing=Preprocessing(
            image_size_px=found.image_size_px,
            crop_pct=1.0,
            crop_mode="squash",
            interpolation="bicubic",
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
        ),
        labels=labels,
    )
    model = build_gft(spec)
    weights = timm_names(found.state)
    model.backbone.load_state_dict({n: weights[n] for n in model.backbone.state_dict()})
    return spec, model.eval()


def left_out(found: Published) -> tuple[LeftOut, ...]:
    """Everything in a checkpoint that the network of its logits has no use for."""
    first, last = BLOCKS, found.depth - 1
    behind = tuple(f"base_model.blocks.{number}." for number in range(first, last + 1))
    blocks = f"base_model.blocks.{first}" + (f" to {last}" if last > first else "")
    groups = (
        (blocks, behind, f"the forward pass runs the first {BLOCKS} blocks"),
        ("base_model.norm", ("base_model.norm.",), "no final norm is applied"),
        ("base_model.head", ("base_model.head.",), "the classifier takes its place"),
        (
            "hierarchical_blocks",
            tuple(n for n in found.state if n.startswith("hierarchical_blocks.")
                  and not _is_average(n)),
            "the patches they keep never reach the classifier",
        ),
        (
            "hierarchical_blocks ema_grad",
            tuple(filter(_is_average, found.state)),
            "left by the last batch of the training, one row an image",
        ),
    )  # fmt: skip
    counted = (
        LeftOut(name, sum(n.startswith(starts) for n in found.state), reason)
        for name, starts, reason in groups
    )
    return tuple(group for group in counted if group.count)


def write_import(out: Path, found: Published, spec: ModelSpec, model: GFT) -> None:
    """Write a run folder with the network, the whole base in timm's names, and what was left out.

    Raises BundleError when `out` cannot be written; it is then not there.
    """
    weights = {name: tensor.contiguous() for name, tensor in timm_names(found.state).items()}
    record = {
        "checkpoint": found.path.name,
        "sha256": [sha256_of(file) for file in weight_files(found.path)],
        "heads": found.heads,
        "left_out": to_json(left_out(found)),
    }
    with replacing(out) as folder:
        save_network(folder, model, spec)
        (folder / BACKBONE_FILE).write_bytes(safetensors.torch.save(weights))
        text = json.dumps(record, indent=2) + "\n"
        (folder / IMPORT_FILE).write_text(text, encoding="utf-8")


def _with_shapes(path: Path, state: Mapping[str, Tensor], heads: int | None) -> Published:
    patches, positions = state["base_model.patch_embed.proj.weight"], state["base_model.pos_embed"]
    mlp = state["base_model.blocks.0.mlp.fc1.weight"]
    width = patches.shape[0]
    grid = round((positions.shape[1] - 1) ** 0.5) if positions.ndim == 3 else 0
    sound = (
        patches.ndim == 4
        and patches.shape[1] == 3
        and patches.shape[2] == patches.shape[3]
        and grid > 0
        and positions.shape == (1, grid * grid + 1, width)
        and mlp.shape[0] % width == 0
    )
    if not sound:
        raise CheckpointError(
            f"{path} is no published GFT checkpoint: its patch embedding {tuple(patches.shape)}, "
            f"position embedding {tuple(positions.shape)} and MLP {tuple(mlp.shape)} are not those "
            "of a ViT with one class token and square RGB images"
        )
    if heads is None and width % HEAD_WIDTH:
        raise UsageError(
            f"{path} is {width} wide, no multiple of {HEAD_WIDTH}, the usual width of a head: "
            "say how many there are with --heads N"
        )
    if heads is not None and (heads < 1 or width % heads):
        raise UsageError(f"--heads {heads} does not divide the width of {path}, {width}")
    blocks = (name.split(".")[2] for name in state if name.startswith("base_model.blocks."))
    return Published(
        path=path,
        state=state,
        width=width,
        heads=heads or width // HEAD_WIDTH,
        depth=1 + max(int(number) for number in blocks if number.isdecimal()),
        patch_px=patches.shape[2],
        grid=grid,
        mlp_ratio=mlp.shape[0] // width,
        classes=state["classifier.weight"].shape[0],
    )


def _check(found: Published) -> None:
    """Raise CheckpointError unless the tensors are exactly those of the published network."""
    backbone, arguments = _timm_model(found)
    head = found.state.get("base_model.head.weight")
    width = found.width
    with torch.device("meta"):  # shapes alone
        base = create_backbone(
            backbone,
            img_size=found.image_size_px,
            num_classes=0 if head is None else len(head),
            depth=found.depth,
            **arguments,
        )
        expected = {f"base_model.{name}": tensor for name, tensor in base.state_dict().items()}
        for stage in range(STAGES):
            expected |= {
                f"hierarchical_blocks.{stage}.qkv.weight": torch.empty(3 * width, width),
                f"hierarchical_blocks.{stage}.proj.weight": torch.empty(width, width),
                f"hierarchical_blocks.{stage}.proj.bias": torch.empty(width),
                f"hierarchical_blocks.{stage}.smooth.weight": torch.empty(1, 1, 3),
            }
        expected["classifier.weight"] = torch.empty(found.classes, width)
        expected["classifier.bias"] = torch.empty(found.classes)
    given = {name: tensor for name, tensor in found.state.items() if not _is_average(name)}
    check_fit(expected, given, found.path, "a published GFT")


def _timm_model(found: Published) -> tuple[str, dict[str, int]]:
    """The timm name nearest to the base, and what differs from it, but for the depth."""
    named = found.width in _SIZES
    usual = found.width // HEAD_WIDTH
    arguments = {} if named else {"embed_dim": found.width}
    if not named or found.heads != usual:
        arguments["num_heads"] = found.heads
    if found.patch_px != 16:
        arguments["patch_size"] = found.patch_px
    if found.mlp_ratio != 4:
        arguments["mlp_ratio"] = found.mlp_ratio
    return f"vit_{found.size if named else 'tiny'}_patch16_224", arguments


def _is_average(name: str) -> bool:
    return name.startswith("hierarchical_blocks.") and name.endswith(".ema_grad")
