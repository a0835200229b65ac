"""Whether each selection of a network can change its logits, and the scores it chose by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gft_edge.model.gft import Selection
from gft_edge.model.network import Network


@contextmanager
def recorded_scores(model: Network) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """While open, each forward appends (grid positions, scores), (B,N) each, stage by stage."""
    record: list[tuple[Tensor, Tensor]] = []

    def note(selection: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(selection, Selection)
        record.append((given[3], selection.scores(*given)))

    handles = [selection.register_forward_pre_hook(note) for selection in model.selections]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def selection_reaches_logits(model: Network, images: Tensor) -> list[bool]:
    """Per stage, whether keeping the worst patches in place of the best changes any logit."""
    with torch.inference_mode():
        reference = model(images)
        reaches = []
        for selection in model.selections:
            selection.inverted = True
            reaches.append(not torch.equal(model(images), reference))
            selection.inverted = False
    return reaches
