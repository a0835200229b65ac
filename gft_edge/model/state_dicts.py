"""What other projects call a ViT's tensors, and their way back to timm's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Naming = Literal["timm", "hugging face", "published gft", "run"]

# DataParallel, torch.compile, and what Lightning's modules mostly call their network.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")

# How some tensor's name starts; the first project that fits counts.
_SIGNS: Mapping[Naming, tuple[str, ...]] = {
    "published gft": ("hierarchical_blocks.", "base_model.patch_embed."),
    "run": ("backbone.",),
    "hugging face": ("embeddings.patch_embeddings.", "vit.embeddings.", "deit.embeddings."),
    "timm": ("patch_embed.", "blocks.0.", "cls_token"),
}

# transformers up to 4.57, whose names its version 5 still writes to disk, and those that a state
# dict of version 5 has in memory (huggingface/transformers#41693).
_HUGGING_FACE = tuple(
    (re.compile(pattern), timm_name)
    for pattern, timm_name in (
        (r"^embeddings\.cls_token$", "cls_token"),
        (r"^embeddings\.distillation_token$", "dist_token"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
        (r"^(blocks\.\d+)\.attention\.attention\.(query|key|value)\.", r"\1.attn.\2."),
        (r"^(blocks\.\d+)\.attention\.q_proj\.", r"\1.attn.query."),
        (r"^(blocks\.\d+)\.attention\.k_proj\.", r"\1.attn.key."),
        (r"^(blocks\.\d+)\.attention\.v_proj\.", r"\1.attn.value."),
        (r"^(blocks\.\d+)\.attention\.(?:output\.dense|o_proj)\.", r"\1.attn.proj."),
        (r"^(blocks\.\d+)\.layernorm_before\.", r"\1.norm1."),
        (r"^(blocks\.\d+)\.layernorm_after\.", r"\1.norm2."),
        (r"^(blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
        (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        (r"^layernorm\.", "norm."),
        (r"^(?:cls_)?classifier\.", "head."),
        (r"^distillation_classifier\.", "head_dist."),
    )
)
# No classifier of timm's has them: the tanh layer of ViTModel, and what masked pretraining fills in.
_HUGGING_FACE_UNUSED = ("pooler.", "embeddings.mask_token")


def without_wrapper(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without what DataParallel, torch.compile or Lightning put before every name.

    Of a Lightning module that has more, such as the weights of its loss, they are the network's.
    """
    bare = dict(state)
    while wrapper := next((each for each in _WRAPPERS if _is_around(each, bare)), None):
        bare = _below(wrapper, bare)
    return bare


def _is_around(wrapper: str, state: Mapping[str, Tensor]) -> bool:
    inside = _below(wrapper, state)
    if not inside:
        return False
    return len(inside) == len(state) or (naming_of(state) is None and naming_of(inside) is not None)


def naming_of(state: Mapping[str, Tensor]) -> Naming | None:
    """Whose names these are, None for any other network's; wrappers have to be off."""
    for naming, signs in _SIGNS.items():
        if any(name.startswith(signs) for name in state):
            return naming
    return None


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ViT in a state dict as timm names it; names of no project known here stay as they are.

    Hugging Face's query, key and value become one qkv, its pooler is left out. Of a published GFT
    it is the whole base with the trained classifier as head, of a run the backbone: GALA layers
    are no part of it.
    """
    state = without_wrapper(state)
    naming = naming_of(state)
    if naming == "hugging face":
        return _from_hugging_face(state)
    if naming == "published gft":
        body = _below("base_model.", state)
        body = {name: tensor for name, tensor in body.items() if not name.startswith("head.")}
        return body | {f"head.{n}": tensor for n, tensor in _below("classifier.", state).items()}
    if naming == "run":
        return _below("backbone.", state)
    return state


def _from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        name = name.removeprefix("vit.").removeprefix("deit.")
        if not name.startswith(_HUGGING_FACE_UNUSED):
            for pattern, timm_name in _HUGGING_FACE:
                name = pattern.sub(timm_name, name)
            renamed[name] = tensor
    for name in [n for n in renamed if ".attn.query." in n]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        # An incomplete set keeps its names, which the check of the fit then reports.
        if all(part in renamed for part in parts):
            joined = torch.cat([renamed.pop(part) for part in parts])
            renamed[name.replace(".query.", ".qkv.")] = joined
    return renamed


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): tensor for n, tensor in state.items() if n.startswith(prefix)}
