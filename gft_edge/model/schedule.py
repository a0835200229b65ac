"""A trained network keeping other numbers of patches than it was trained to keep."""

from __future__ import annotations

import dataclasses

from gft_edge.bundle.specs import ModelSpec, Stage
from gft_edge.bundle.stages import check_stages, parse_keep
from gft_edge.model.gft import GFT
from gft_edge.model.named_networks import build_network
from gft_edge.model.network import Network


def stages_from_keep(text: str, spec: ModelSpec, model: Network) -> tuple[Stage, ...]:
    """The network's own stages with the keep counts of `text`, as parse_keep reads it. Raises SpecError."""
    prefix_tokens = model.prefix if isinstance(model, GFT) else 0
    stages = parse_keep(text, spec.stages, spec.patch_count, prefix_tokens)
    check_stages(stages, spec.gala, len(model.backbone.blocks), spec.patch_count)
    return stages


def dense_stages(spec: ModelSpec) -> tuple[Stage, ...]:
    """The stages that drop nothing: none, or, where they have layers of their own, all patches at each.

    Without its extra layers a `layer` network would compute something else.
    """
    if spec.gala == "block":
        return ()
    return tuple(Stage(stage.position, spec.patch_count) for stage in spec.stages)


def at_stages(
    spec: ModelSpec, model: Network, stages: tuple[Stage, ...]
) -> tuple[ModelSpec, Network]:
    """A copy with the same weights and the keep counts of `stages`, which sit where the spec's do.

    A `block` network may also have none of its stages. Raises SpecError for more than is left.
    """
    state = model.state_dict()
    if not stages:
        state = {name: t for name, t in state.items() if not name.startswith("selections.")}
    changed = dataclasses.replace(spec, stages=stages)
    network = build_network(changed)
    network.load_state_dict(state)
    return changed, network.train(model.training)
