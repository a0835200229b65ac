"""The frozen dataclasses that pass between rooms, and their JSON form."""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar

from gft_edge.errors import SpecError

GalaMode = Literal["layer", "block"]
Score = Literal[
    "gala",
    "gala-2d",
    "raw",
    "class",
    "class-sum",
    "class-gradient",
    "class-gradient-2d",
    "class-mixed",
    "class-laplacian",
    "received",
    "received-gradient",
    "received-gradient-2d",
    "received-mixed",
    "random",
]
Family = Literal["gft", "timm", "transfg"]
CropMode = Literal["center", "squash"]
InputDtype = Literal["uint8", "float32"]
Verdict = Literal["pass", "fail"]
Flavor = Literal["tensorrt", "tensorrt-rtx"]
HardwareCompatibility = Literal["none", "ampere+", "sameComputeCapability"]
CocoCategory = Literal["largest", "first"]

T = TypeVar("T")

# Metadata of a field that stands in the JSON only where it differs from its default: what was
# written, and sealed, before the field came reads as it did.
_LEFT_OUT_BY_DEFAULT = "left_out_by_default"

# (what runs, steps done, steps in all); the total is 0 where nothing is counted.
Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """One patch selection: after `position` whole blocks, `keep` patches remain."""

    position: int
    keep: int


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input: the training evaluation transform, as numbers.

    `center` resizes the shorter side to floor(image_size_px / crop_pct), `squash` both sides; both
    then crop the middle to image_size_px. `mean` and `std` are RGB, for pixels in 0..1.
    """

    image_size_px: int
    crop_pct: float
    crop_mode: CropMode
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class ModelSpec:
    """A network: the timm backbone, where it selects patches and by which score, and its classes.

    `gala` says where the scores come from: `layer`, an extra attention layer before block `position`;
    `block`, that block's own attention. `patch_grid` is (rows, columns), (0, 0) for a network without
    patches. What a `score` is stands in gft_edge/scores.py. `family` says what is built around the
    backbone: `gft`, without stages the plain ViT itself; `timm`, nothing, any other classifier of
    timm's; `transfg`, TransFG. Only a `gft` has stages, and `gala`, `score` and `temperature` mean
    something with stages alone.
    """

    name: str
    backbone: str
    backbone_args: Mapping[str, int]
    stages: tuple[Stage, ...]
    gala: GalaMode
    score: Score
    temperature: float
    patch_grid: tuple[int, int]
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    family: Family = field(default="gft", metadata={_LEFT_OUT_BY_DEFAULT: True})

    @property
    def patch_count(self) -> int:
        """Patches before any selection."""
        return self.patch_grid[0] * self.patch_grid[1]


@dataclass(frozen=True)
class InputSpec:
    """What the graph takes: `images`, NHWC RGB 0..255 for uint8, normalised NCHW for float32."""

    dtype: InputDtype
    batch: int

    def shape(self, image_size_px: int) -> tuple[int, int, int, int]:
        """The static shape of the `images` input."""
        if self.dtype == "uint8":
            return (self.batch, image_size_px, image_size_px, 3)
        return (self.batch, 3, image_size_px, image_size_px)


@dataclass(frozen=True)
class Artifact:
    """A file that a pipeline stage wrote, and the sha256 of the file it was made from.

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
class DataSource:
    """Where images come from: a folder, and the data set that is in it by its `--dataset` name.

    `coco_category` says which category an image of COCO has, that of its `largest` box or of its
    `first` annotation; None elsewhere, and for COCO the largest.
    """

    folder: Path
    dataset: str = "imagefolder"
    coco_category: CocoCategory | None = None


@dataclass(frozen=True)
class SplitRecord:
    """What a run remembers of a split: how many images and classes, and datasets.split_digest."""

    images: int
    classes: int
    digest: str


@dataclass(frozen=True)
class ImageSet:
    """Images drawn from a split: paths, the seed that chose them, a digest of the contents.

    `targets[i]` is the class index of `paths[i]`. `crop_bottom_px` rows at the bottom of every image
    are not part of the picture.
    """

    paths: tuple[str, ...]
    seed: int
    digest: str
    targets: tuple[int, ...]
    crop_bottom_px: int = 0


@dataclass(frozen=True)
class ImageRecord:
    """What a bundle remembers of an ImageSet."""

    count: int
    seed: int
    digest: str


@dataclass(frozen=True)
class Tolerance:
    """The bounds a FidelityReport is judged by. Fractions of 1.

    `kept_overlap` has one bound a stage, the last of which holds for every further one. `max_drop`
    is how much accuracy may be lost; None where decisions have to agree anyway.
    """

    top1_agreement: float
    kept_overlap: tuple[float, ...]
    cosine: float
    max_drop: float | None = None

    def overlap_bound(self, stage: int) -> float:
        """The bound of a stage, counted from 0."""
        return self.kept_overlap[min(stage, len(self.kept_overlap) - 1)]


@dataclass(frozen=True)
class FidelityReport:
    """How far a graph's outputs are from its reference on the same images.

    `cosine` is the mean over images of the cosine between logit vectors. `kept_overlap` has one
    number a stage: the mean Jaccard overlap of the kept patches. `patches_lost` has the mean number
    of patches an image that the reference keeps and the graph does not, `lost_near_border` how many
    of these the reference itself all but dropped (see fidelity.BORDER); empty where the reference
    has no ranks. The accuracies are None where no classes were given. Fractions of 1.
    """

    stage: str
    max_abs: float
    cosine: float
    top1_agreement: float
    kept_overlap: tuple[float, ...]
    images: int
    tolerance: Tolerance
    failures: tuple[str, ...]
    accuracy: float | None = None
    reference_accuracy: float | None = None
    patches_lost: tuple[float, ...] = ()
    lost_near_border: tuple[float, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """`pass` when no bound was missed."""
        return "fail" if self.failures else "pass"


@dataclass(frozen=True)
class Prediction:
    """One class and its softmax probability."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Quantization:
    """How a bundle's INT8 graph came about.

    `high_precision` names the layers that stay unquantized: those the user named, then those whose
    INT8 form cost too much, in the order they were given up. `int8_macs` is the quantized share of
    the work of all layers with weights but the head. `smooth_quant` is the strength (alpha), None for off.
    """

    method: str
    smooth_quant: float | None
    calibrated_on: ImageRecord
    high_precision: tuple[str, ...]
    int8_layers: int
    int8_macs: float


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

    PyTorch's accuracies on the images the export was verified on: at the stages of the training,
    and at the bundle's own. Fractions of 1.
    """

    trained_stages: tuple[Stage, ...]
    trained_accuracy: float
    accuracy: float


@dataclass(frozen=True)
class EngineRecipe:
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
    recipe: EngineRecipe
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
    `gala` network; bundles of before name neither of these. `files` maps every other file of the
    bundle to its sha256, `seal` is the manifest's own, taken with an empty seal. `runtime_precision`
    is what the engine is told to compute in. `rescheduled` is None at the keep counts of the
    training. `recipe` and `engines` are of bundles for TensorRT,
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
    recipe: EngineRecipe | None = None
    engines: tuple[Engine, ...] = ()
    score_outputs: tuple[str, ...] = field(default=(), metadata={_LEFT_OUT_BY_DEFAULT: True})
    attention_outputs: tuple[str, ...] = field(default=(), metadata={_LEFT_OUT_BY_DEFAULT: True})
    rescheduled: Rescheduled | None = field(default=None, metadata={_LEFT_OUT_BY_DEFAULT: True})
    seal: str = ""

    @property
    def trained_stages(self) -> tuple[Stage, ...]:
        """Those of the run that the bundle was exported from."""
        return self.rescheduled.trained_stages if self.rescheduled else self.model.stages


_INTEGER = re.compile(r"-?[0-9]{1,9}")
_PERCENT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*%")
_RATIO = re.compile(r"[0-9]{0,9}\.[0-9]{1,9}")
_AUTO = re.compile(r"auto:([0-9]{1,9})", re.IGNORECASE)

_STAGES_EXAMPLE = (
    "--stages 8:147,9:98,10:49 or --stages 8:75%,9:50%,10:25% or --stages "
    "3:auto:16,6:auto:16,9:auto:16"
)
_KEEP_EXAMPLE = "--keep 120,80,40 or --keep 60%,40%,20% or --keep auto:16,auto:16,auto:16"


def parse_stages(text: str, patch_count: int, prefix_tokens: int) -> tuple[Stage, ...]:
    """Read `8:147,9:98,10:49` into stages: a position and a keep count each; `none` is no stage.

    A keep count is a number of patches; `75%` or `0.75` of all `patch_count`, rounded down; or
    `auto:16`: what the paper's straight line leaves at stage i of n, (n + 1 - i) / (n + 1) of all
    patches, rounded down until the tokens, `prefix_tokens` (class, distillation, register)
    included, are a multiple of 16, or of any other number. Raises SpecError for anything else.
    """
    if text.strip().lower() == "none":
        return ()
    entries = [entry.strip() for entry in text.split(",")]
    stages = []
    for number, entry in enumerate(entries, start=1):
        position, colon, keep = (part.strip() for part in entry.partition(":"))
        where = f"stage {number} ({entry})"
        if not colon or not _INTEGER.fullmatch(position):
            raise SpecError(f"{where} is not POSITION:KEEP: write for example {_STAGES_EXAMPLE}")
        line = Fraction(len(entries) + 1 - number, len(entries) + 1)
        keep_count = _keep_count(keep, line, patch_count, prefix_tokens, where, _STAGES_EXAMPLE)
        stages.append(Stage(int(position), keep_count))
    return tuple(stages)


def parse_keep(
    text: str, stages: tuple[Stage, ...], patch_count: int, prefix_tokens: int
) -> tuple[Stage, ...]:
    """Read `120,80,40`, a keep count of parse_stages' grammar for each of `stages`, in their places.

    Raises SpecError for another number of counts, and where there are no stages.
    """
    if not stages:
        raise SpecError(
            f"--keep {text} is for a network with stages, and this one keeps all: leave it out"
        )
    entries = [entry.strip() for entry in text.split(",")]
    if len(entries) != len(stages):
        raise SpecError(
            f"--keep {text} has {len(entries)} counts for {len(stages)} stages: "
            f"give {len(stages)} with commas between"
        )
    counted = []
    for number, (stage, keep) in enumerate(zip(stages, entries, strict=True), start=1):
        where = f"--keep {text}, stage {number}"
        line = Fraction(len(stages) + 1 - number, len(stages) + 1)
        keep_count = _keep_count(keep, line, patch_count, prefix_tokens, where, _KEEP_EXAMPLE)
        counted.append(Stage(stage.position, keep_count))
    return tuple(counted)


def _keep_count(
    keep: str, line: Fraction, patch_count: int, prefix_tokens: int, where: str, example: str
) -> int:
    """`line` is the paper's share at this stage. Whether so many are left is check_stages' to say."""
    if _INTEGER.fullmatch(keep):
        return int(keep)
    if found := _AUTO.fullmatch(keep):
        multiple = int(found[1])
        if multiple < 1:
            raise SpecError(f"{where}: auto:0 is no multiple: give 1 or more, as auto:16")
        tokens = int(line * patch_count) + prefix_tokens
        count = tokens // multiple * multiple - prefix_tokens
        if count < 1:
            raise SpecError(
                f"{where}: {tokens} tokens ({prefix_tokens} of them no patches) hold no multiple of "
                f"{multiple} with a patch in it: give a smaller one"
            )
        return count
    percent = _PERCENT.fullmatch(keep)
    if not percent and not _RATIO.fullmatch(keep):
        raise SpecError(f"{where}: {keep!r} is no keep count: write for example {example}")
    # Exact: 0.29 of 100 patches are 29, and 28 in floating point.
    ratio = Fraction(percent[1]) / 100 if percent else Fraction(keep)
    if not 0 < ratio <= 1:
        raise SpecError(f"{where}: {keep} is no share of the patches: give more than 0, up to 100%")
    return max(1, int(ratio * patch_count))


def stages_text(stages: tuple[Stage, ...]) -> str:
    """`8:147, 9:98`, as a person reads it."""
    return ", ".join(f"{stage.position}:{stage.keep}" for stage in stages)


def check_stages(stages: tuple[Stage, ...], gala: GalaMode, depth: int, patch_count: int) -> None:
    """Raise SpecError unless each stage lies in the network, keeps enough, and reaches the logits."""
    left = patch_count
    previous = -1
    for number, stage in enumerate(stages, start=1):
        where = f"stage {number} ({stage.position}:{stage.keep})"
        # A selection inside the last block, after its attention, could not change the class token.
        last = depth if gala == "layer" else depth - 2
        if not 0 <= stage.position <= last:
            raise SpecError(
                f"{where} is out of range: a {depth}-block network takes positions 0 to {last} "
                f"in {gala} mode"
            )
        if stage.position < previous or (gala == "block" and stage.position == previous):
            order = "ascend" if gala == "block" else "not descend"
            raise SpecError(f"{where} follows position {previous}: positions must {order}")
        if left < 2:
            raise SpecError(f"{where} has one patch left to choose from: leave the stage out")
        if not 1 <= stage.keep <= left:
            raise SpecError(
                f"{where} keeps {stage.keep} patches and {left} are left there: "
                f"choose a count from 1 to {left}"
            )
        previous, left = stage.position, stage.keep


def check_preprocessing(spec: Preprocessing) -> None:
    """Raise SpecError naming the field that no image could be prepared with."""
    numbers = {
        "image_size_px": spec.image_size_px >= 1,
        "crop_pct": 0 < spec.crop_pct <= 1,
        "mean": len(spec.mean) == 3 and all(map(math.isfinite, spec.mean)),
        "std": len(spec.std) == 3 and all(math.isfinite(s) and s > 0 for s in spec.std),
    }
    for name, sound in numbers.items():
        if not sound:
            raise SpecError(
                f"preprocessing: {name} is {getattr(spec, name)}, which no image survives"
            )


def to_json(spec: Any) -> Any:
    """The plain dict, list and scalar form of a spec."""
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        return {
            f.name: to_json(getattr(spec, f.name))
            for f in dataclasses.fields(spec)
            if not (f.metadata.get(_LEFT_OUT_BY_DEFAULT) and getattr(spec, f.name) == f.default)
        }
    if isinstance(spec, Mapping):
        return {key: to_json(value) for key, value in spec.items()}
    if isinstance(spec, (tuple, list)):
        return [to_json(item) for item in spec]
    return spec


def from_json(kind: type[T], data: Any, where: str) -> T:
    """Rebuild a spec of type `kind`; `where` names the file in errors.

    Raises SpecError that names the field when one is missing, unknown or of another type.
    """
    return typing.cast(T, _decode(kind, data, where))


def _decode(kind: Any, data: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _decode_fields(typing.cast(type, kind), data, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if data not in arguments:
            raise SpecError(
                f"{where} is {reprlib.repr(data)}, expected one of {', '.join(arguments)}"
            )
        return data
    if origin in (typing.Union, types.UnionType):
        return None if data is None else _decode(arguments[0], data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise SpecError(f"{where} is not a list")
        if arguments[-1] is not ... and len(data) != len(arguments):
            raise SpecError(f"{where} has {len(data)} entries, expected {len(arguments)}")
        return tuple(
            _decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(data)
        )
    if origin is Mapping:
        if not isinstance(data, dict):
            raise SpecError(f"{where} is not an object")
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in data.items()}
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        try:
            return float(data)
        except OverflowError:
            raise SpecError(f"{where} is {reprlib.repr(data)}, too large a number") from None
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise SpecError(f"{where} is {reprlib.repr(data)}, expected {kind.__name__}")
    return data


def _decode_fields(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise SpecError(f"{where} is not an object")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise SpecError(
            f"{where} has unknown fields ({', '.join(unknown)}), written by a newer gft-edge: "
            "upgrade it here"
        )
    values = {}
    for name, spec in fields.items():
        if name in data:
            values[name] = _decode(hints[name], data[name], f"{where}: {name}")
        elif spec.default is dataclasses.MISSING:
            raise SpecError(f"{where} lacks the field {name!r}")
    return kind(**values)
