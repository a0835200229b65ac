"""Weights on disk: pretrained backbones in, and a run's network out and in."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from gft_edge.errors import CheckpointError, SpecError
from gft_edge.model.gft import GFT, build_backbone, build_gft, source_blocks
from gft_edge.specs import ModelSpec, check_preprocessing, from_json, to_json

SPEC_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors, or from a PyTorch file through weights_only.

    Raises CheckpointError when the file is missing, is neither, or holds a NaN or infinity.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file")
    try:
        state: dict[str, Tensor] = safetensors.torch.load_file(path)
    except safetensors.SafetensorError:
        state = _read_pickle(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{path}: tensor {name} holds NaN or infinity: take an earlier checkpoint"
            )
    return state


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            # A file that is no checkpoint at all makes the unpickler wonder about its protocol.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    # Arbitrary bytes make the unpickler raise nearly anything.
    except Exception as error:
        if "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path} is a pickle with more than tensors, which could run code on loading: save "
                "the state dict alone with safetensors.torch.save_file"
            ) from error
        raise CheckpointError(f"{path} is neither safetensors nor a PyTorch checkpoint") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no state dict")
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if len(state) != len(content):
        raise CheckpointError(f"{path} holds more than tensors: save the state dict alone")
    return state


def load_backbone(model: GFT, spec: ModelSpec, path: Path) -> list[str]:
    """Start `model` from a timm checkpoint of its backbone; GALA layers start from its blocks.

    The classifier is left fresh when its class count differs, position embeddings are resampled
    when the grid differs. Returns what was left fresh. Raises CheckpointError when the file is of
    another architecture.
    """
    weights = {name: value.float() for name, value in read_weights(path).items()}
    depth = 1 + max((int(n.split(".")[1]) for n in weights if n.startswith("blocks.")), default=-1)
    # Blocks behind the network's own depth still serve as sources of GALA layers (gft_*_d8).
    donor = build_backbone(spec, depth=max(depth, len(model.backbone.blocks)))
    try:
        state = dict(checkpoint_filter_fn(weights, donor))
    except (RuntimeError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path} is no checkpoint of {spec.backbone}: {error}") from error
    fresh = []
    for name in [n for n in state if n.split(".")[0] in ("head", "head_dist")]:
        if state[name].shape != donor.state_dict()[name].shape:
            state[name] = donor.state_dict()[name]
            fresh.append(name)
    _check_fit(donor.state_dict(), state, path, spec.backbone)
    donor.load_state_dict(state)
    own = model.backbone.state_dict()
    model.backbone.load_state_dict({name: donor.state_dict()[name] for name in own})
    sources = source_blocks(spec.stages, len(donor.blocks))[: len(model.layers)]
    for layer, block in zip(model.layers, sources, strict=True):
        source = donor.blocks[block]
        layer.norm.load_state_dict(source.norm1.state_dict())
        kept = {n: t for n, t in source.attn.state_dict().items() if not n.startswith("proj.")}
        layer.attn.load_state_dict(kept, strict=False)
    return fresh


def _check_fit(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path, name: str
) -> None:
    missing = sorted(set(expected) - set(found))
    extra = sorted(set(found) - set(expected))
    shapes = [n for n in expected if n in found and expected[n].shape != found[n].shape]
    if missing:
        raise CheckpointError(
            f"{path} is no checkpoint of {name}: {len(missing)} tensors are missing "
            f"({missing[0]}, ...)"
        )
    if extra:
        raise CheckpointError(
            f"{path} is no checkpoint of {name}: it holds {len(extra)} tensors more ({extra[0]}, ...)"
        )
    if shapes:
        first = shapes[0]
        raise CheckpointError(
            f"{path} is no checkpoint of {name}: {first} is {tuple(found[first].shape)}, "
            f"expected {tuple(expected[first].shape)}"
        )


def save_network(folder: Path, model: GFT, spec: ModelSpec) -> None:
    """Write model.json and model.safetensors into a run folder, each replaced in one step."""
    text = json.dumps(to_json(spec), indent=2) + "\n"
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    replace_file(folder / SPEC_FILE, lambda partial: partial.write_text(text, encoding="utf-8"))
    # save_file would make it readable by its owner alone.
    weights = safetensors.torch.save(state)
    replace_file(folder / WEIGHTS_FILE, lambda partial: partial.write_bytes(weights))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a new file and put it in place of `path` in one step.

    Raises CheckpointError when it cannot be written; `path` then stays as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        partial.replace(path)
    # Of a full disk torch makes an error of its own.
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise CheckpointError(f"cannot write {path} ({reason}): make room and resume") from error


def load_run(folder: Path) -> tuple[ModelSpec, GFT]:
    """The network of a run folder, in evaluation mode.

    Raises CheckpointError when the folder is no run or its weights do not fit its spec.
    """
    if not (folder / SPEC_FILE).is_file():
        raise CheckpointError(
            f"{folder} is no run: it has no {SPEC_FILE} (gft-edge train writes one)"
        )
    try:
        data = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8"))
        spec = from_json(ModelSpec, data, SPEC_FILE)
        check_preprocessing(spec.preprocessing)
    except (ValueError, SpecError) as error:
        raise CheckpointError(f"{folder / SPEC_FILE} cannot be used: {error}") from error
    model = build_gft(spec)
    state = read_weights(folder / WEIGHTS_FILE)
    _check_fit(model.state_dict(), state, folder / WEIGHTS_FILE, f"the {spec.name} of {SPEC_FILE}")
    model.load_state_dict(state)
    return spec, model.eval()
