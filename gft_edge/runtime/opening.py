"""Which engine runs a bundle, and what it is asked to open."""

from __future__ import annotations

import os
from typing import Any

from gft_edge.bundle.specs import InputSpec, ModelSpec
from gft_edge.bundle.store import Bundle
from gft_edge.errors import UsageError
from gft_edge.runtime.backends import Backend, OpenRequest, backend_for
from gft_edge.runtime.processor import refuse_saturation


def bundle_request(
    bundle: Bundle,
    backend: str | None,
    threads: int | None,
    device: str | None = None,
    **options: Any,
) -> tuple[Backend, OpenRequest]:
    """The engine that runs a bundle, and what it needs to open it. Raises UsageError.

    `options` are other fields of the request; without them it is opened for its logits.
    """
    manifest = bundle.manifest
    engine = backend_for(backend or manifest.target)
    if device is not None and engine.TARGET != "openvino":
        other = ", or give --backend openvino too" if manifest.target == "onnx" else ""
        raise UsageError(
            f"--device {device} is for OpenVINO: leave it out for {engine.TARGET}{other}"
        )
    refuse_saturation(bundle.folder, manifest)
    cores = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= cores:
        raise UsageError(f"--threads is {threads}: give 1 to {cores}, or none for all cores")
    if threads is not None and engine.TARGET == "tensorrt":
        raise UsageError("threads are a CPU engine's: leave them out for tensorrt")
    return engine, open_request(
        manifest.model,
        manifest.input,
        manifest.runtime_precision,
        threads=threads,
        device=device,
        graph_sha256=manifest.artifact.sha256,
        engines=manifest.engines,
        files=tuple(
            (bundle.folder / name, manifest.files[name])
            for name in (manifest.artifact.path, *manifest.artifact.companions)
        ),
        **options,
    )


def open_request(
    model: ModelSpec,
    given: InputSpec,
    runtime_precision: str,
    kept_outputs: tuple[str, ...] = (),
    **options: Any,
) -> OpenRequest:
    """What a backend needs to open an artifact of this network; `options` are other fields."""
    return OpenRequest(
        given.shape(model.preprocessing.image_size_px),
        len(model.labels),
        runtime_precision,
        kept_outputs=kept_outputs,
        **options,
    )
