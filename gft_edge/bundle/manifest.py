"""What manifest.json holds: the model file, its lineage, its quantization, its engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gft_edge.bundle.images import ImageRecord
from gft_edge.bundle.reports import FidelityReport
from gft_edge.bundle.specs import InputSpec, ModelSpec, Stage
from gft_edge.errors import SpecError

Flavor = Literal["tensorrt", "tensorrt-rtx"]
WeightsRange = Literal["full", "half"]
HardwareCompatibility = Literal["none", "ampere+", "sameComputeCapability"]


@dataclass(frozen=True)
class Artifact:
    """A file that a step of the export wrote, and the sha256 of the file it was made from.

    `path` is relative to its bundle; in a lineage it is the name the file had while the bundle was
    made. `companions` are files that it cannot be loaded without (the
    .bin beside an OpenVINO .xml).
    """

    path: str
    kind: str
    precision: str
    sha256: str
    parent_sha256: str | None = None
    companions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quantization:
    """How a bundle's INT8 graph came about.

    `high_precision` names the layers that stay unquantized: those the user named, then those whose
    INT8 form cost too much, in the order they were given up. `weights_range` is `half` where no weight is
    over 64, as x86 without VNNI needs it. `int8_macs` is the quantized share of
    the work of all layers with weights but the head. `smooth_quant` is the strength (alpha), None for off.
    """

    method: str
    smooth_quant: float | None
    calibrated_on: ImageRecord
    high_precision: tuple[str, ...]
    int8_layers: int
    int8_macs: float
    weights_range: WeightsRange = "half"


@dataclass(frozen=True)
class Candidate:
    """One precision that `--precision auto` tried: None for what could not be measured, and why.

    `median_ms` is the engine's at the bundle's batch, measured in turn with the other candidates on
    `machine`.
    """

    precision: str
    accuracy: float | None
    top1_agreement: float | None
    median_ms: float | None
    reason: str
    machine: str


@dataclass(frozen=True)
class Rescheduled:
    """What a bundle that keeps other numbers of patches than its run has lost or gained by that.

    PyTorch's accuracies on the images the export was verified on, None where none has a known class: at the
    stages of the training, and at the bundle's own. Fractions of 1.
    """

    trained_stages: tuple[Stage, ...]
    trained_accuracy: float | None
    accuracy: float | None


# Beyond these every answer is as sure as any other, or all are certain.
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.05, 20.0


@dataclass(frozen=True)
class Confidence:
    """How logits become probabilities, and how large one has to be for a label.

    `temperature` divides the logits before the softmax, 1.0 where it was not fitted. An image whose
    likeliest class is under `min_probability`, of 1, has no label; at 0.0 every image has one.
    """

    temperature: float = 1.0
    min_probability: float = 0.0

    def __post_init__(self) -> None:
        if not LEAST_TEMPERATURE <= self.temperature <= MOST_TEMPERATURE:
            raise SpecError(
                f"temperature is {self.temperature:g}, expected {LEAST_TEMPERATURE:g} to {MOST_TEMPERATURE:g}"
            )
        if not 0 <= self.min_probability <= 1:
            raise SpecError(f"min_probability is {self.min_probability:g}, expected 0 to 1")


@dataclass(frozen=True)
class EngineSettings:
    """How an engine is built from a bundle's graph, in trtexec's terms.

    `flavor` None takes what the machine has. `workspace_gib` bounds the scratch memory of builder and
    engine, which is all of the GPU's where it is None. The level goes from 0, quick to build, to 5,
    which searches longest; None is TensorRT's own, 3.
    """

    flavor: Flavor | None = None
    workspace_gib: float | None = None
    builder_optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"


@dataclass(frozen=True)
class Engine:
    """An engine file of a bundle, and everything that decides where it loads.

    `path` is relative to the bundle and holds plain plan bytes. `graph_sha256` is of the ONNX file
    it was built from, `outputs` its output tensors, `flags` the builder's. `gpu`, its
    `multiprocessors` and `cuda` are None where it was built ahead of time without a GPU;
    `compute_capabilities` are those it loads on, `8.0+` that and later. `driver` and `l4t` (Jetson
    Linux) are what the machine said. `timing_cache` is the file beside it.
    """

    path: str
    sha256: str
    graph_sha256: str
    outputs: tuple[str, ...]
    settings: EngineSettings
    flags: tuple[str, ...]
    flavor: Flavor
    version: str
    platform: str
    gpu: str | None
    multiprocessors: int | None
    compute_capabilities: tuple[str, ...]
    cuda: str | None
    driver: str | None
    l4t: str | None
    timing_cache: str | None
    build_seconds: float


@dataclass(frozen=True)
class Manifest:
    """A bundle's manifest.json: everything about the bundle that is not in the model files.

    `kept_outputs` names, per stage, the tensor inside the graph that holds the kept patches,
    `score_outputs` the one that the stage ranks by, `attention_outputs` its Eq. 1, a head each, of a
    `gala` network. `files` maps every other file of the
    bundle to its sha256, `seal` is the manifest's own, taken with an empty seal. `runtime_precision`
    is what the engine is told to compute in. `fidelity` is the rule that a precision under fp32 was judged
    by (fidelity.compare.FIDELITIES); `off` and None, of a network whose weights mean nothing, say that it
    was not judged. `rescheduled` is None at the keep counts of the
    training. `engine_settings` and `engines` are of bundles for TensorRT,
    whose artifact is the graph that engines are built from.
    """

    schema_version: int
    target: str
    precision: str
    runtime_precision: str
    model: ModelSpec
    input: InputSpec
    kept_outputs: tuple[str, ...]
    artifact: Artifact
    lineage: tuple[Artifact, ...]
    verified_on: ImageRecord
    files: Mapping[str, str]
    tools: Mapping[str, str]
    reports: tuple[FidelityReport, ...] = ()
    quantization: Quantization | None = None
    candidates: tuple[Candidate, ...] = ()
    engine_settings: EngineSettings | None = None
    engines: tuple[Engine, ...] = ()
    score_outputs: tuple[str, ...] = ()
    attention_outputs: tuple[str, ...] = ()
    rescheduled: Rescheduled | None = None
    fidelity: str | None = None
    confidence: Confidence = field(default_factory=Confidence)
    seal: str = ""

    @property
    def trained_stages(self) -> tuple[Stage, ...]:
        """The stages of the run that the bundle was exported from."""
        return self.rescheduled.trained_stages if self.rescheduled else self.model.stages
