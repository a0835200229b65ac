"""timm's models by name, without weights, and what a name that is none of them comes close to."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Collection, Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from gft_edge.errors import SpecError


def check_name(name: str, others: Collection[str] = ()) -> None:
    """Raise SpecError for a name that timm does not have, with those of its own and `others` close to it."""
    if ":" in name:
        raise SpecError(f"{name!r} would be fetched from a hub: give a timm model name")
    if timm.is_model(name):
        return
    close = difflib.get_close_matches(name, [*others, *timm.list_models()], n=3, cutoff=0.7)
    known = f"neither one of {', '.join(others)} nor a timm model" if others else "no timm model"
    hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
    raise SpecError(f"{name!r} is {known}: {hint}")


def create_model(name: str, **arguments: int) -> Any:
    """A timm model without pretrained weights. Raises SpecError when timm cannot build it."""
    check_name(name)
    try:
        return timm.create_model(name, pretrained=False, **arguments)
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        raise SpecError(f"timm cannot build {name!r} with {arguments}: {_line(error)}") from error


def takes_image_size(name: str) -> bool:
    """Whether the model is built for one image size, and so takes `img_size`."""
    return bool(timm.get_pretrained_cfg(name).fixed_input_size)


def default_image_size_px(name: str) -> int:
    """The size of the images that the model's weights were made for.

    Raises SpecError where these are not square.
    """
    height, width = timm.get_pretrained_cfg(name).input_size[1:]
    if height != width:
        raise SpecError(
            f"{name} was made for images {height} px high and {width} px wide, and here they are "
            f"square: choose with --image-size, such as {min(height, width)}"
        )
    return int(height)


def check_classifier(model: Any, name: str, image_size_px: int, classes: int) -> None:
    """Raise SpecError unless `model`, on torch's meta device, makes logits (B,classes) of (B,3,S,S)."""
    if not callable(getattr(model, "get_classifier", None)) or not _modules(model.get_classifier()):
        raise SpecError(f"{name} has no classifier to train: choose a classifier of timm's")
    try:
        with torch.no_grad():
            images = torch.zeros(2, 3, image_size_px, image_size_px, device="meta")
            logits = model.eval()(images)
    # A model says in a class of its own choice that an image does not fit.
    except Exception as error:
        side = max(timm.get_pretrained_cfg(name).input_size[1:])
        raise SpecError(
            f"{name} takes no images of {image_size_px} px ({_line(error)}): give --image-size "
            f"{side}, which it was made for"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, classes):
        raise SpecError(
            f"{name} gives no logits of {classes} classes: choose a classifier of timm's"
        )


def filter_weights(weights: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """A state dict as `model` has it now: timm's own conversion, for models that have one.

    It renames what older releases called otherwise, and resamples position embeddings.
    """
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return dict(weights)
    takes = len(inspect.signature(convert).parameters)
    return dict(convert(dict(weights), model) if takes > 1 else convert(dict(weights)))


def _modules(found: object) -> bool:
    parts = found if isinstance(found, (tuple, list)) else (found,)
    return all(
        isinstance(part, nn.Module) and any(True for _ in part.parameters()) for part in parts
    )


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
