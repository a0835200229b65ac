"""What a bundle holds beside its graph: golden outputs, labels, a check by trtexec, versions."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib import metadata as installed
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.manifest import Artifact
from gft_edge.bundle.specs import InputSpec, ModelSpec
from gft_edge.bundle.store import (
    GOLDEN_FILE,
    GOLDEN_IMAGES,
    LABELS_FILE,
    sha256_of,
    write_labels,
)
from gft_edge.errors import UsageError
from gft_edge.export.judge import Judge, Made
from gft_edge.fidelity.compare import TOLERANCES
from gft_edge.nvidia.library import builder_library
from gft_edge.runtime.batches import static_batches
from gft_edge.runtime.outputs import Outputs

TOOLS = (
    "gft-edge",
    "torch",
    "timm",
    "onnx",
    "onnxscript",
    "onnxsim",
    "onnxruntime",
    "openvino",
    "nncf",
    "tensorrt",
    "tensorrt-rtx",
)

CHECK_TEMPLATE = Path(__file__).with_name("check.sh")


def write_contents(judge: Judge, artifact: Artifact, shipped: Made, folder: Path) -> dict[str, str]:
    """Write labels and golden outputs beside the artifact; return every file's sha256."""
    write_labels(folder, judge.spec.labels)
    golden = write_golden(folder, judge.pixels, judge.kept_names, shipped.outputs)
    names = (artifact.path, *artifact.companions, LABELS_FILE, *golden)
    if judge.request.backend.TARGET == "tensorrt":
        names += write_check(judge, artifact, shipped, folder)
    return {name: sha256_of(folder / name) for name in names}


def write_golden(
    folder: Path, pixels: npt.NDArray[np.uint8], names: Sequence[str], shipped: Outputs
) -> tuple[str, ...]:
    """Write golden.npz: images (N,S,S,3), logits and, by `names`, kept patches. Returns its name.

    `shipped` is what the artifact gave here, not what PyTorch gives: another machine is asked for the
    same.
    """
    path = folder / GOLDEN_FILE
    path.parent.mkdir()
    some = slice(0, GOLDEN_IMAGES)
    chosen = zip(names, shipped.kept, strict=True)
    np.savez(
        path,
        images=pixels[some],
        logits=shipped.logits[some],
        **{name: indices[some] for name, indices in chosen},  # type: ignore[arg-type]
    )
    return (GOLDEN_FILE,)


def write_check(judge: Judge, artifact: Artifact, shipped: Made, folder: Path) -> tuple[str, ...]:
    """Write check.sh and the files it feeds to trtexec, of the images in golden.npz. Returns the names.

    images_N.bin is one static batch as the graph takes it, the last one padded with its last image.
    logits_N.bin is float32 (images,classes) of the same batch without the padding. Little-endian.
    """
    pixels = judge.pixels[:GOLDEN_IMAGES]
    golden = (folder / GOLDEN_FILE).parent
    names = []
    first = 0
    for number, (batch, count) in enumerate(
        static_batches(pixels, judge.request.input, judge.spec.preprocessing)
    ):
        logits = shipped.outputs.logits[first : first + count]
        for name, array in ((f"images_{number}.bin", batch), (f"logits_{number}.bin", logits)):
            (golden / name).write_bytes(array.astype(array.dtype.newbyteorder("<")).tobytes())
            names.append(name)
        first += count
    tolerance = TOLERANCES[judge.request.artifact_precision]
    sums = "\n".join(f"{sha256_of(golden / name)}  {name}" for name in names)
    facts = f"""\
images={len(pixels)}
batch={judge.request.input.batch}
classes={len(judge.spec.labels)}
agreement_bound={tolerance.top1_agreement:g}
cosine_bound={tolerance.cosine:g}
version_compatible={"--versionCompatible" if judge.request.builds_with.version_compatible else ""}
model=../{artifact.path}
model_sum='{artifact.sha256}  ../{artifact.path}'
sums='{sums}'"""
    script = CHECK_TEMPLATE.read_text(encoding="utf-8")
    script = script.replace("@FACTS@", facts).replace("@MODEL@", artifact.path)
    check = golden / CHECK_TEMPLATE.name
    check.write_text(script, encoding="utf-8")
    check.chmod(0o755)
    return tuple(f"{golden.name}/{name}" for name in (*names, check.name))


def metadata(spec: ModelSpec, given: InputSpec) -> dict[str, str]:
    """Return the keys that go into ONNX metadata_props and OpenVINO's rt_info alike.

    `model_type` and `labels` are those OpenVINO's Model API reads. Its mean and scale are left
    out on purpose: a graph that normalises by itself must not be normalised again.
    """
    pixels = given.dtype == "uint8"
    return {
        "model_type": "Classification",
        "labels": " ".join(label.replace(" ", "_") for label in spec.labels),
        "gft_edge_version": installed.version("gft-edge"),
        "gft_edge_input": f"{given.dtype} {'NHWC RGB 0..255' if pixels else 'NCHW RGB normalised'}",
        "gft_edge_model": json.dumps(to_json(spec), sort_keys=True),
    }


def tool_versions() -> dict[str, str]:
    """Return the version of Python and of every package that has a hand in an export."""
    versions = {"python": platform.python_version()}
    for name in TOOLS:
        try:
            versions[name] = installed.version(name)
        except installed.PackageNotFoundError:
            versions[name] = "absent"
    return versions


def parser_here() -> str:
    """Name the TensorRT that reads graphs on this machine: one that is installed need not be able to."""
    try:
        return builder_library().name
    except UsageError:
        return "absent"
