"""A run's network in PyTorch, looked into as a bundle is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gft_edge.bundle.specs import ModelSpec, Score
from gft_edge.explanation.subject import Floats, Pixels, Seen, finite, no_stages
from gft_edge.model.checkpoint import load_run
from gft_edge.model.gala import mean_attention_scores
from gft_edge.model.gft import GFT
from gft_edge.model.network import Network
from gft_edge.model.temperature import temperature_of
from gft_edge.runtime.preprocess import batch_from_pixels

BATCH = 16


class NetworkSubject:
    """A network in PyTorch on the CPU, in evaluation mode, with the temperature of its run."""

    def __init__(self, model: ModelSpec, network: Network, temperature: float = 1.0):
        self.model = model
        self._temperature = temperature
        self.network = network.eval()
        self.runs = f"torch {torch.__version__}, fp32 run"
        self.unavailable = no_stages(model)
        self.inferences = 0

    def logits(self, pixels: Pixels) -> Floats:
        """See Subject."""
        self.inferences += len(pixels)
        with torch.inference_mode():
            parts = [self.network(images).float().numpy() for images in self._batches(pixels)]
        return finite(self._calibrated(np.concatenate(parts)))

    def see(self, pixels: Pixels) -> Seen:
        """See Subject."""
        self.inferences += len(pixels)
        record: list[tuple[Tensor, Tensor]] = []
        parts = []
        handles = [s.register_forward_pre_hook(_noting(record)) for s in self.network.selections]
        try:
            with torch.inference_mode():
                for images in self._batches(pixels):
                    record.clear()
                    logits, kept = self.network.forward_with_kept(images)
                    noted = [*zip(*record, strict=True)] or [(), ()]
                    parts.append([logits, *kept, *noted[0], *noted[1]])
        finally:
            for handle in handles:
                handle.remove()
        whole = [torch.cat(part).numpy() for part in zip(*parts, strict=True)]
        stages = len(self.model.stages)
        return Seen(
            finite(self._calibrated(whole[0])),
            tuple(whole[1 : 1 + stages]),
            tuple(whole[1 + stages : 1 + 2 * stages]),
            tuple(whole[1 + 2 * stages :]) if self.model.score == "gala" else (),
            np.zeros(len(pixels), np.float32),
        )

    def ranking_by(self, score: Score) -> NetworkSubject:
        """The same weights with every stage ranking by another score, its kernel as one starts."""
        network = copy.deepcopy(self.network)
        assert isinstance(network, GFT)
        network.rank_by(score)
        return NetworkSubject(self.model, network, self._temperature)

    def close(self) -> None:
        """See Subject."""

    def _calibrated(self, logits: Floats) -> Floats:
        return np.asarray(logits / self._temperature, dtype=np.float32)

    def _batches(self, pixels: Pixels) -> list[Tensor]:
        spec = self.model.preprocessing
        return [
            torch.from_numpy(batch_from_pixels(pixels[start : start + BATCH], spec, "float32"))
            for start in range(0, len(pixels), BATCH)
        ]


def open_run(folder: Path) -> NetworkSubject:
    """The network of a run folder. Raises CheckpointError."""
    return NetworkSubject(*load_run(folder), temperature_of(folder))


def _noting(record: list[tuple[Tensor, Tensor]]) -> Any:
    """A hook in front of a Selection that records its scores and its Eq. 1, (B,N) each."""

    def note(selection: Any, given: tuple[Any, ...]) -> None:
        q, k, scale = given[:3]
        patches = slice(selection.prefix, None)
        means = mean_attention_scores(q[:, :, patches].float(), k[:, :, patches].float(), scale)
        record.append((selection.scores(*given), means.mean(dim=1)))

    return note
