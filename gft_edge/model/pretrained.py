"""A timm classifier with its pretrained weights, as a network."""

from __future__ import annotations

import timm

from gft_edge.errors import CheckpointError, SpecError
from gft_edge.model.dense import Dense
from gft_edge.model.gft import GFT
from gft_edge.model.network import Network
from gft_edge.model.timm_models import check_name

LOCAL = "local-dir:"


def load_pretrained(name: str) -> Network:
    """The network that timm makes of a name, with the weights that timm has for it.

    A plain ViT is a GFT without stages. `name` is of timm's list, or `hf-hub:OWNER/NAME`, or
    `local-dir:FOLDER` with the config.json and model.safetensors that timm's save_for_hf writes.
    https://huggingface.co/docs/timm/hf_hub. Raises SpecError for a name that timm does not have and
    for images that are not square, CheckpointError where it has no weights for it or cannot reach them.
    """
    if ":" not in name:
        check_name(name)
    try:
        model = timm.create_model(name, pretrained=True)
    # A hub's client raises what its HTTP library does, a config.json that is none nearly anything.
    except Exception as error:
        raise CheckpointError(_why_not(name, error)) from error
    height, width = model.pretrained_cfg["input_size"][1:]
    if height != width:
        raise SpecError(
            f"{name} reads images {height} px high and {width} px wide, and here they are square"
        )
    try:
        return GFT(model, ())
    except SpecError:
        return Dense(model, height)


def _why_not(name: str, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if name.startswith(LOCAL):
        return (
            f"{name.removeprefix(LOCAL)} is no folder of a timm model ({reason}): expected config.json "
            "and model.safetensors, as timm.models.save_for_hf writes them"
        )
    if isinstance(error, (RuntimeError, ValueError, AssertionError)):
        return f"timm has no weights for {name} ({reason}): name another of its pretrained models"
    return (
        f"the weights of {name} cannot be fetched ({reason}): see that the name and the network "
        f"are right, or save the model with timm.models.save_for_hf elsewhere and give {LOCAL}FOLDER"
    )
