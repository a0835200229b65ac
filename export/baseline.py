"""The dense backbone as a bundle like another, to see whether selecting patches pays."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from pathlib import Path

import torch
from PIL import Image

from gft_edge.bundle.images import ImageSet
from gft_edge.bundle.manifest import Manifest
from gft_edge.bundle.specs import ModelSpec, Progress, Say
from gft_edge.bundle.store import Bundle
from gft_edge.calibration.layers import quantizable_layers
from gft_edge.errors import SpecError, UsageError
from gft_edge.export.pipeline import export
from gft_edge.export.request import CalibrationRequest, ExportRequest
from gft_edge.fidelity.compare import PARTLY_INT8
from gft_edge.model.named_networks import build_network, spec_from_name
from gft_edge.model.network import Network
from gft_edge.nvidia.build import build_engine, builder_here
from gft_edge.runtime.golden import read_golden

HALF_WEIGHTS = "-fp16-weights"


def dense_bundle(
    like: Bundle,
    backbone: str,
    out: Path,
    progress: Progress = lambda text, done, total: None,
    say: Say = lambda text: None,
) -> Bundle:
    """Export timm's `backbone`, which selects nothing, with `like`'s target, precision, input and classes.

    Its weights are random, so only its speed means anything: in INT8 the layers that `like` has in high
    precision stay in it, and accuracy is not judged. Calibrated and verified on `like`'s golden images.
    Raises UsageError for a backbone that timm does not know or that takes other images.
    """
    spec = _spec(like.manifest, backbone)
    torch.manual_seed(0)
    model = build_network(spec)
    say(
        f"baseline: {backbone} with random weights, {like.manifest.target} {like.manifest.precision}"
    )
    with tempfile.TemporaryDirectory(prefix="gft-edge-") as scratch:
        images = _golden_images(like, Path(scratch))
        bundle = export(
            model, spec, images, _request(like.manifest, model, images), out, progress, say
        )
    if like.manifest.engine_settings is not None:
        try:
            builder_here(like.manifest.engine_settings)
        except UsageError as error:
            say(f"no engine of the baseline is built here: {error}")
        else:
            build_engine(out, progress=progress, say=say)
    return bundle


def _spec(like: Manifest, backbone: str) -> ModelSpec:
    size = like.model.preprocessing.image_size_px
    try:
        spec = spec_from_name(backbone, like.model.labels, image_size_px=size, stages="none")
    except SpecError as error:
        raise UsageError(
            f"--baseline {backbone} is neither a bundle nor a network that --model takes: {error}"
        ) from error
    return dataclasses.replace(spec, preprocessing=like.model.preprocessing)


def _golden_images(like: Bundle, folder: Path) -> ImageSet:
    """The golden frames as files, which an export reads."""
    frames = read_golden(like)[0]
    paths = [folder / f"{number}.png" for number in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        Image.fromarray(frame).save(path)
    digest = hashlib.sha256(frames.tobytes()).hexdigest()
    return ImageSet(tuple(map(str, paths)), 0, digest, (0,) * len(paths))


def _request(like: Manifest, model: Network, images: ImageSet) -> ExportRequest:
    quantization = like.quantization
    calibration = None
    if quantization is not None:
        layers = quantizable_layers(model)
        high = tuple(name for name in quantization.high_precision if name in layers)
        calibration = CalibrationRequest(
            images,
            quantization.method,
            high,
            quantization.smooth_quant,
            None if like.target == "tensorrt" else quantization.weights_range,
        )
    precision = like.precision.removesuffix(HALF_WEIGHTS)
    if precision == PARTLY_INT8:
        precision = "int8" if like.runtime_precision != "bf16" else "int8-bf16"
    return ExportRequest(
        like.target,
        precision,
        like.input,
        compress_weights=like.precision.endswith(HALF_WEIGHTS),
        calibration=calibration,
        engine_settings=like.engine_settings,
        judged=False,
    )
