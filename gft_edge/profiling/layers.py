"""Where the time of a bundle goes: layers by the parts of the network, from an instrumented run."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from gft_edge.bundle.placement import groups_by_flow
from gft_edge.bundle.specs import ModelSpec
from gft_edge.bundle.store import Bundle, read_bundle
from gft_edge.errors import UsageError
from gft_edge.runtime.backends import LayerRun, LayerTime, integer_layers
from gft_edge.runtime.opening import bundle_request
from gft_edge.runtime.preprocess import batch_from_pixels

# ONNX Runtime keeps its events in a file, 200 KB an inference.
RUNS = 50
TOP_LAYERS = 15

Verdict: TypeAlias = Literal["fused", "not fused", "unknown"]

PATCH_EMBEDDING, BASE_BLOCKS, HEAD, OTHER = "patch embedding", "base blocks", "head", "other"
PART_SELECTION = "part selection"


@dataclass(frozen=True)
class Part:
    """A part of the network: the sum of its layers' times, its share of all layers' (of 1).

    `layers` counts those that take time: a part of which the counters read 0 has 0 ms and none.
    """

    name: str
    mean_ms: float
    share: float
    layers: int


@dataclass(frozen=True)
class TopLayer:
    """One layer, the part that it lies in and its share of all layers' time (of 1).

    `kernel` is empty where the engine does not name it, as ONNX Runtime.
    """

    name: str
    part: str
    kind: str
    kernel: str
    precision: str
    mean_ms: float
    share: float


@dataclass(frozen=True)
class AttentionKernel:
    """Whether the attention of a block or a GALA layer runs as one kernel, and why that is said."""

    where: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Breakdown:
    """Where the time of one inference goes.

    `parts` are in the order they run, `top` the layers that take longest. `instrumented_ms` and
    `plain_ms` are means of whole inferences with and without instrumentation, measured in turn;
    `overhead` is what instrumentation adds to a plain one, the median over the pairs (of 1).
    `integer_layers` counts the products and convolutions that this machine computes in integers,
    `int8_layers` the layers that the bundle has in INT8.
    """

    target: str
    engine: str
    runs: int
    parts: tuple[Part, ...]
    top: tuple[TopLayer, ...]
    attention: tuple[AttentionKernel, ...]
    instrumented_ms: float
    plain_ms: float
    overhead: float
    integer_layers: int = 0
    int8_layers: int = 0

    @property
    def layers_ms(self) -> float:
        """All layers. The rest of `instrumented_ms` goes by between them."""
        return sum(part.mean_ms for part in self.parts)


def layer_profile(
    bundle: str | Path | Bundle,
    backend: str | None = None,
    threads: int | None = None,
    runs: int = RUNS,
    device: str | None = None,
) -> Breakdown:
    """Time the layers of a bundle over `runs` inferences, each beside a plain one.

    Images are seeded noise: no layer's time depends on what it computes. Raises UsageError where the
    engine cannot run here or has no layers to time.
    """
    opened = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
    manifest = opened.manifest
    engine, request = bundle_request(opened, backend, threads, device, spin="in_runs")
    preprocessing = manifest.model.preprocessing
    size = preprocessing.image_size_px
    shape = (manifest.input.batch, size, size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images = batch_from_pixels(pixels, preprocessing, manifest.input.dtype)
    path = opened.artifact_path
    plain_ms: list[float] = []
    session = engine.open_session(path, request)

    def run_plain() -> None:
        started = time.perf_counter()
        session.run(images)
        plain_ms.append((time.perf_counter() - started) * 1000)

    try:
        run_plain()
        plain_ms.clear()
        timed = engine.layer_times(path, request, images, runs, run_plain)
    finally:
        session.close()
    found = breakdown_of(timed, plain_ms, manifest.model, engine.TARGET, engine.version())
    quantized = manifest.quantization.int8_layers if manifest.quantization else 0
    return dataclasses.replace(
        found, integer_layers=integer_layers(timed.layers), int8_layers=quantized
    )


def breakdown_of(
    timed: LayerRun, plain_ms: Sequence[float], model: ModelSpec, target: str, engine: str
) -> Breakdown:
    """Group an instrumented run's layers. `plain_ms` has an inference without it for each with it."""
    groups = groups_by_flow(timed.layers)
    total_ms = sum(layer.mean_ms for layer in timed.layers)
    if not total_ms:
        raise UsageError(f"{engine} timed no layer: profile without --layers")
    members: dict[str, list[LayerTime]] = {name: [] for name in part_names(model)}
    for layer, group in zip(timed.layers, groups, strict=True):
        members.setdefault(part_of(group, model), []).append(layer)
    members[OTHER] = members.pop(OTHER)
    parts, top = [], []
    for name, inside in members.items():
        part_ms = sum(layer.mean_ms for layer in inside)
        taking = [layer for layer in inside if layer.mean_ms]
        if inside:
            parts.append(Part(name, part_ms, part_ms / total_ms, len(taking)))
        for one in taking:
            ms, share = one.mean_ms, one.mean_ms / total_ms
            top.append(TopLayer(one.name, name, one.kind, one.kernel, one.precision, ms, share))
    pairs = zip(timed.samples_ms, plain_ms, strict=True)
    return Breakdown(
        target,
        engine,
        len(timed.samples_ms),
        tuple(parts),
        tuple(sorted(top, key=lambda one: -one.mean_ms)[:TOP_LAYERS]),
        # Blocks of timm's own need not attend.
        attention_kernels(timed.layers, groups) if model.family != "timm" else (),
        statistics.mean(timed.samples_ms),
        statistics.mean(plain_ms),
        statistics.median(instrumented / plain for instrumented, plain in pairs) - 1,
    )


def part_names(model: ModelSpec) -> list[str]:
    """Every part that a GFT or TransFG may have, in the order they run; of other networks the last."""
    if model.family == "timm":
        return [OTHER]
    if model.family == "transfg":
        return [PATCH_EMBEDDING, BASE_BLOCKS, PART_SELECTION, HEAD, OTHER]
    stages = [
        f"stage {number + 1}: {part}"
        for number in range(len(model.stages))
        for part in ("scoring", "selection", "refinement blocks")
    ]
    return [PATCH_EMBEDDING, BASE_BLOCKS, *stages, HEAD, OTHER]


def part_of(group: str, model: ModelSpec) -> str:
    """The part that a group of placement.group_of lies in.

    Scoring is the extra GALA layer of a stage or, in block mode, the block whose attention scores.
    """
    kind, _, number = group.rpartition(" ")
    if model.family == "timm":
        return group
    if model.family == "transfg" and kind == "selection":
        return PART_SELECTION
    if kind == "GALA layer":
        return f"stage {number}: scoring"
    if kind == "selection":
        return f"stage {number}: selection"
    if kind != "block":
        return group
    positions = [stage.position for stage in model.stages]
    reached = sum(position <= int(number) for position in positions)
    if not reached:
        return BASE_BLOCKS
    scores = model.gala == "block" and int(number) in positions
    return f"stage {reached}: {'scoring' if scores else 'refinement blocks'}"


def attention_kernels(
    layers: Sequence[LayerTime], groups: Sequence[str]
) -> tuple[AttentionKernel, ...]:
    """What became of each block's and GALA layer's attention, in the order they run."""
    inside: dict[str, list[LayerTime]] = defaultdict(list)
    for layer, group in zip(layers, groups, strict=True):
        # A selection that scores by class attention has a softmax too, and is no attention.
        if group.startswith(("block", "GALA")):
            inside[group].append(layer)
    return tuple(
        AttentionKernel(group, *_attention_verdict(members)) for group, members in inside.items()
    )


def _attention_verdict(layers: Sequence[LayerTime]) -> tuple[Verdict, str]:
    """Judge by the layer that holds the softmax, of which every attention has one."""
    for layer in layers:
        if "ATTENTION" in layer.kind.upper():
            return "fused", f"one {layer.kind}"
        held = " ".join((layer.kind, *layer.nodes, *layer.writes)).upper()
        if "SOFTMAX" not in held:
            continue
        if "MATMUL" not in held and "SCALEDDOTPRODUCTATTENTION" not in held:
            return "not fused", f"its softmax runs apart from its products, as {layer.kind}"
        # What OpenVINO makes of a product with weights is a FullyConnected.
        if any(other.kind == "MatMul" for other in layers):
            return "not fused", "one of its products runs apart, as MatMul"
        return "fused", f"one {layer.kind}" + (f", {layer.kernel}" if layer.kernel else "")
    return "unknown", "no layer of it names a softmax"
