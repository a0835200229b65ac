"""A network of random weights as an INT8 bundle: its time is that of a trained one, its answers are not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import nncf
import numpy as np
import onnx
import openvino
import torch
from PIL import Image

from gft_edge.bundle.images import ImageRecord
from gft_edge.bundle.manifest import Manifest
from gft_edge.bundle.specs import InputSpec, ModelSpec
from gft_edge.bundle.store import (
    LABELS_FILE,
    SCHEMA_VERSION,
    Bundle,
    sha256_of,
    write_labels,
    write_manifest,
)
from gft_edge.calibration.int8_openvino import quantize_openvino
from gft_edge.calibration.layers import quantizable_layers
from gft_edge.export.contents import write_golden
from gft_edge.export.graph import (
    attention_names,
    finish,
    kept_names,
    name_scores,
    score_names,
    simplify,
)
from gft_edge.export.onnx_from_torch import onnx_from_torch
from gft_edge.model.gft import build_gft
from gft_edge.runtime.backends import BuildRequest, backend_for
from gft_edge.runtime.classifier import Classifier
from gft_edge.runtime.preprocess import resize_and_crop

GIVEN = InputSpec("uint8", 1)


def random_bundle(
    spec: ModelSpec,
    calibration: Sequence[Image.Image],
    folder: Path,
    precision: str = "int8",
    plain: bool = False,
) -> Bundle:
    """Every layer in INT8 on OpenVINO, calibrated on a few images. Nothing of it is verified.

    `precision` is int8 or int8-bf16. `plain` is what nncf.quantize makes of a transformer by itself,
    attention's own products in INT8 too.
    """
    torch.manual_seed(0)
    model = build_gft(spec).eval()
    # It starts at zero, as pretrained networks are finetuned: the focal branch would do nothing.
    for layer in model.layers:
        torch.nn.init.normal_(layer.attn.proj.weight, std=0.02)
    path, kept = folder / "finished.onnx", kept_names(spec)
    graph = finish(simplify(onnx_from_torch(model, spec, GIVEN, 20)), {}, kept)
    onnx.save(name_scores(graph, spec), path)
    pixels = np.stack([resize_and_crop(image, spec.preprocessing) for image in calibration])
    layers = list(quantizable_layers(model))
    if plain:
        whole = nncf.quantize(
            openvino.convert_model(path),
            nncf.Dataset([one[None] for one in pixels]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(pixels),
        )
        openvino.save_model(whole, folder / "int8.xml", compress_to_fp16=False)
    else:
        quantize_openvino(path, folder / "int8.xml", pixels, 1, layers, None)
    path.unlink()
    engine = backend_for("openvino")
    artifact = engine.build(folder / "int8.xml", folder, BuildRequest(precision, False, {}, ""))
    write_labels(folder, spec.labels)
    written = (artifact.path, *artifact.companions, LABELS_FILE)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        target=engine.TARGET,
        precision=precision,
        runtime_precision=engine.runtime_precision(precision),
        model=spec,
        input=GIVEN,
        kept_outputs=kept,
        score_outputs=score_names(spec),
        attention_outputs=attention_names(spec),
        artifact=artifact,
        lineage=(),
        verified_on=ImageRecord(0, 0, ""),
        files={name: sha256_of(folder / name) for name in written},
        tools={},
    )
    with Classifier.load(Bundle(folder, manifest), kept=True) as classifier:
        golden = write_golden(folder, pixels, kept, classifier.outputs(pixels))
    files = {**manifest.files, **{name: sha256_of(folder / name) for name in golden}}
    manifest = dataclasses.replace(manifest, files=files)
    write_manifest(folder, manifest)
    return Bundle(folder, manifest)
