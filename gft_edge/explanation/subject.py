"""The network to be explained, as something that gives logits and shows what it ranks its patches by."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.specs import ModelSpec
from gft_edge.bundle.store import Bundle
from gft_edge.errors import FailedError, KeptPatchesError
from gft_edge.runtime.backends import Session
from gft_edge.runtime.batches import session_outputs, static_batches
from gft_edge.runtime.device_verdicts import warn_of_doubt
from gft_edge.runtime.opening import bundle_request

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """What a network shows of some images, a row each: logits (images,classes), and a stage each below.

    `kept` (images,K) are indices into the patches that the stage before left, ascending.
    `importance` (images,N) is what the stage ranks these N patches by, `attention` (images,N) is
    Eq. 1, the mean over heads; both are empty where the network does not tell. `difference`
    (images,) is the largest between its logits and those of the run that showed the rest.
    """

    logits: Floats
    kept: tuple[npt.NDArray[np.int64], ...]
    importance: tuple[Floats, ...]
    attention: tuple[Floats, ...]
    difference: Floats


class Subject(Protocol):
    """A network that can be looked into. `runs` says what computes it, `unavailable` what it lacks.

    Its logits are divided by the network's temperature: their softmax is its probabilities.

    `inferences` counts the images that went through it, each time that one did.
    """

    model: ModelSpec
    runs: str
    unavailable: tuple[str, ...]
    inferences: int

    def logits(self, pixels: Pixels) -> Floats:
        """Compute uint8 (images,S,S,3) -> (images,classes)."""

    def see(self, pixels: Pixels) -> Seen:
        """Compute the logits, and what each stage ranked and kept."""

    def close(self) -> None:
        """Release what it holds."""


class BundleSubject:
    """A bundle twice in its engine: as it is deployed, and with the inner tensors as outputs.

    Logits are always the deployed one's. More outputs may keep an engine from fusing operations,
    which rounds otherwise: `Seen.difference` tells by how much.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str | None = None,
        threads: int | None = None,
        device: str | None = None,
    ):
        manifest = bundle.manifest
        engine, request = bundle_request(bundle, backend, threads, device)
        told = engine.TARGET != "tensorrt"
        self.model = manifest.model
        self._input = manifest.input
        self._temperature = np.float32(manifest.confidence.temperature)
        self._scores = len(manifest.score_outputs) if told else 0
        self._attention = len(manifest.attention_outputs) if told else 0
        self.runs = f"{engine.version()}, {manifest.precision} bundle for {manifest.target}"
        if device is not None:
            self.runs += f" on {device}"
        self._session: Session = engine.open_session(bundle.artifact_path, request)
        warn_of_doubt(bundle, self._session, engine.version(), device)
        self._seeing: Session | None = None
        reasons = list(no_stages(manifest.model))
        if manifest.model.stages:
            request = dataclasses.replace(
                request,
                kept_outputs=manifest.kept_outputs,
                score_outputs=(*manifest.score_outputs, *manifest.attention_outputs)
                if told
                else (),
            )
            try:
                self._seeing = engine.open_session(bundle.artifact_path, request)
            except KeptPatchesError as error:
                reasons.append(f"kept patches: {error}")
            except BaseException:
                self._session.close()
                raise
            if not told:
                reasons.append(_untold(manifest.model))
        self.unavailable = tuple(reasons)
        self.inferences = 0

    def logits(self, pixels: Pixels) -> Floats:
        """See Subject."""
        spec = self.model.preprocessing
        self.inferences += len(pixels)
        logits = session_outputs(self._session, pixels, self._input, spec).logits
        return finite(logits / self._temperature)

    def see(self, pixels: Pixels) -> Seen:
        """See Subject."""
        logits = self.logits(pixels)
        if self._seeing is None:
            return Seen(logits, (), (), (), np.zeros(len(pixels), np.float32))
        self.inferences += len(pixels)
        runs: list[list[npt.NDArray[Any]]] = []
        for batch, count in static_batches(pixels, self._input, self.model.preprocessing):
            runs.append([output[:count] for output in self._seeing.run(batch)])
        seen, *inner = [np.concatenate(parts) for parts in zip(*runs, strict=True)]
        stages = len(self.model.stages)
        kept, scores = inner[:stages], inner[stages : stages + self._scores]
        heads = inner[stages + self._scores :]
        return Seen(
            logits,
            tuple(kept),
            tuple(scores),
            tuple(attention.mean(axis=1) for attention in heads),
            np.abs(seen / self._temperature - logits).max(axis=1),
        )

    def close(self) -> None:
        """See Subject."""
        self._session.close()
        if self._seeing is not None:
            self._seeing.close()


def no_stages(model: ModelSpec) -> tuple[str, ...]:
    """What a network without stages cannot show, and why; empty for one with stages."""
    if model.stages:
        return ()
    if model.family == "transfg":
        return ("parts: TransFG chooses them before its last block, and they are not shown",)
    return ("importance and kept patches: this network drops no patches",)


def _untold(model: ModelSpec) -> str:
    """What an engine of TensorRT does not return of a network with stages."""
    which = "importance and attention" if model.score == "gala" else "importance"
    return f"{which}: engines of TensorRT return kept patches alone; --backend onnx shows the rest"


def finite(logits: Floats) -> Floats:
    """The logits themselves. Raises FailedError where one is NaN or infinite."""
    if not np.isfinite(logits).all():
        raise FailedError("the logits hold NaN or infinity: run gft-edge verify on this bundle")
    return logits


def log_probabilities(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Log softmax over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
