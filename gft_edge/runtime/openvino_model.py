"""An OpenVINO model read, marked to stay in f32 where it must, compiled for a device, or from the cache."""

from __future__ import annotations

import io
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.store import check_room, sha256_of
from gft_edge.errors import UsageError
from gft_edge.runtime.backends import OpenRequest
from gft_edge.runtime.engine_cache import keep_entry, key_of, read_entry, usable
from gft_edge.runtime.openvino_devices import CPU, Placement


def save_ir(model: Any, path: Path, compress_to_fp16: bool) -> None:
    """Write a model as IR, `path` and its .bin. Raises OSError where the disk is full."""
    import openvino

    try:
        openvino.save_model(model, path, compress_to_fp16=compress_to_fp16)
    except RuntimeError:
        # OpenVINO has removed what it wrote, and with it the sign of a full disk.
        check_room(path.parent, _weights_bytes(model) // (2 if compress_to_fp16 else 1))
        raise


def _weights_bytes(model: Any) -> int:
    constants = (each for each in model.get_ops() if each.get_type_name() == "Constant")
    return sum(each.get_byte_size() for each in constants)


def hold_in_f32(path: Path) -> None:
    """Mark every operation but the matrix products to stay in f32 under a lower precision hint.

    The score branch, LayerNorms, residual sums and softmax then keep 24 bits. OpenVINO reads the mark
    as DisableFP16Compression (src/common/transformations, rt_info), which its CPU plugin obeys in bf16
    too, but not for a MatMul: that becomes a FullyConnected, and the mark is lost. What runs in INT8 stays
    so. A model that is marked already is left as it is.
    """
    tree = ElementTree.parse(path)
    for layer in tree.iter("layer"):
        if layer.get("type") in ("MatMul", "Const", "Parameter", "Result", "Convert"):
            continue
        info = layer.find("rt_info")
        if info is not None and info.find("attribute[@name='precise']") is not None:
            continue
        if info is None:
            info = ElementTree.Element("rt_info")
            # In IR it stands after <data>, before <input> and <output>.
            layer.insert(1 if layer.find("data") is not None else 0, info)
        ElementTree.SubElement(info, "attribute", name="precise", version="0")
    tree.write(path, encoding="utf-8", xml_declaration=True)


def compiled_model(
    core: Any, path: Path, placed: Placement, options: dict[str, Any], request: OpenRequest
) -> tuple[Any, npt.NDArray[np.uint8] | None]:
    """The model at `path`, and the memory it computes from when the cache in the request holds it.

    OpenVINO's own CACHE_DIR knows a model by its path, time and size, and ran the one that had been at
    the path before. What AUTO and MULTI compile cannot be kept.
    """
    import openvino

    folder = request.cache_dir
    if folder is None or not usable(folder):
        return _compile(core, path, placed, options, request), None
    key = key_of(
        openvino.__version__,
        placed.device,
        [(each.full_name, each.capabilities) for each in placed.processors],
        options,
        request.inner_outputs,
        [sha256 for _, sha256 in request.files],
    )
    kept = read_entry(folder, key)
    if kept is not None:
        with suppress(RuntimeError):
            tensor = openvino.Tensor(kept, shared_memory=True)
            return core.import_model(tensor, placed.device, options), kept
    compiled = _compile(core, path, placed, options, request)
    # The files may have been replaced since their sha256 were taken.
    if all(sha256_of(file) == sha256 for file, sha256 in request.files):
        stream = io.BytesIO()
        # A model that cannot be exported is compiled every time.
        with suppress(RuntimeError):
            compiled.export_model(stream)
            keep_entry(folder, key, stream.getbuffer())
    return compiled, None


def _compile(
    core: Any, path: Path, placed: Placement, options: dict[str, Any], request: OpenRequest
) -> Any:
    model = _held_in_f32(core, path) if placed.half_on else core.read_model(path)
    if request.inner_outputs:
        model.add_outputs(list(request.inner_outputs))
    return core.compile_model(model, placed.device, options)


def _held_in_f32(core: Any, path: Path) -> Any:
    """Read a model with the marks of `hold_in_f32`, which what was built for f32 lacks."""
    # On Windows a file in use stays.
    with tempfile.TemporaryDirectory(prefix="gft-edge-", ignore_cleanup_errors=True) as folder:
        marked = Path(folder) / "model.xml"
        save_ir(core.read_model(path), marked, compress_to_fp16=False)
        hold_in_f32(marked)
        return core.read_model(marked)


def compile_options(where: Placement, request: OpenRequest, counted: bool) -> dict[str, Any]:
    """The properties that a model is compiled with; of several processors each has its own."""
    # A graph typed for another engine is computed as it stands, not lowered further.
    precision = request.runtime_precision.replace("typed", "f32")
    own: dict[str, dict[str, Any]] = {
        each.kind: {"INFERENCE_PRECISION_HINT": each.precision(precision)}
        for each in where.processors
    }
    if request.threads is not None:
        if CPU not in own:
            raise UsageError(f"threads are a CPU's: leave them out for --device {where.device}")
        own[CPU]["INFERENCE_NUM_THREADS"] = request.threads
    shared = {"PERFORMANCE_HINT": request.hint.upper(), "PERF_COUNT": counted}
    if where.device.partition(":")[0] == "AUTO":
        # Its first answers would come from the CPU, and later ones from another processor.
        shared["ENABLE_STARTUP_FALLBACK"] = False
    if where.virtual:
        return {**shared, "DEVICE_PROPERTIES": own}
    return {**shared, **next(iter(own.values()))}


def reason_of(error: RuntimeError) -> str:
    """The last line of OpenVINO's own, which is the reason; those before are places in its code."""
    lines = [line.strip(" ;") for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if line), type(error).__name__)
