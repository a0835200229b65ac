"""The stages of an export in order: a trained run in, a verified bundle out."""

from __future__ import annotations

import dataclasses
import json
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata as installed
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gft_edge.backends import BuildRequest, backend_for, backends
from gft_edge.bundle import (
    GOLDEN_FILE,
    GOLDEN_IMAGES,
    LABELS_FILE,
    SCHEMA_VERSION,
    Bundle,
    read_bundle,
    replacing,
    sha256_of,
    write_labels,
    write_manifest,
)
from gft_edge.classifier import open_request, session_outputs
from gft_edge.errors import GftEdgeError, PipelineError, UsageError
from gft_edge.export.onnx_from_torch import check_opset, onnx_from_torch
from gft_edge.export.simplify import has_simplifier, simplify
from gft_edge.export.structure import check_structure, finish
from gft_edge.export.verify import gate, pixels_of, refuse_inert_selection, torch_outputs
from gft_edge.fidelity import TOLERANCES, Outputs, compare
from gft_edge.model.gft import GFT
from gft_edge.specs import (
    Artifact,
    FidelityReport,
    ImageRecord,
    ImageSet,
    InputSpec,
    Manifest,
    ModelSpec,
    Progress,
    Say,
    to_json,
)

PRECISIONS = ("fp32",)


@dataclass(frozen=True)
class ExportRequest:
    """What to build. `compress_weights` stores OpenVINO's weights in FP16; it computes in f32."""

    target: str
    precision: str = "fp32"
    input: InputSpec = field(default_factory=lambda: InputSpec("uint8", 1))
    opset: int = 20
    simplify: bool = True
    compress_weights: bool = False


def check_request(request: ExportRequest) -> None:
    """Raise UsageError for a target, precision or option that does not exist together."""
    backend = backend_for(request.target)
    if backend.TARGET not in backends():
        raise UsageError(f"target {request.target!r} is not deployable")
    if request.precision not in PRECISIONS:
        raise UsageError(
            f"--precision {request.precision} is not available for {backend.TARGET}: "
            f"choose from {', '.join(PRECISIONS)}"
        )
    if request.compress_weights and backend.TARGET != "openvino":
        raise UsageError("--compress-weights is OpenVINO's: use it with --target openvino")
    if request.input.batch < 1:
        raise UsageError(f"--batch is {request.input.batch}: give 1 or more")
    check_opset(request.opset)
    if reason := backend.missing():
        raise UsageError(reason)


def export(
    model: GFT,
    spec: ModelSpec,
    images: ImageSet,
    request: ExportRequest,
    out: Path,
    progress: Progress = lambda text, done, total: None,
    say: Say = lambda text: None,
    weights: Path | None = None,
) -> Bundle:
    """Export, verify every stage against PyTorch on `images`, and replace the bundle at `out`.

    `weights` is the file that `model` was read from: the first entry of the bundle's lineage.
    Raises UsageError, GateError when a stage misses its bound and PipelineError when one fails; the
    bundle that stood at `out` then still stands.
    """
    check_request(request)
    # Opened first: a disk that cannot be written should not cost minutes of verification.
    with replacing(out) as folder, tempfile.TemporaryDirectory(prefix="gft-edge-") as scratch:
        work = _Export(model, spec, images, request, Path(scratch), progress, say)
        if weights is not None:
            work.record(weights, "safetensors")
        work.run(folder)
    return read_bundle(out)


class _Export:
    """One export under way: what the stages share, and the reports they leave."""

    def __init__(
        self,
        model: GFT,
        spec: ModelSpec,
        images: ImageSet,
        request: ExportRequest,
        scratch: Path,
        progress: Progress,
        say: Say,
    ):
        self.model, self.spec, self.images, self.request = model.eval(), spec, images, request
        self.scratch, self.progress, self.say = scratch, progress, say
        self.backend = backend_for(request.target)
        self.pixels: npt.NDArray[np.uint8]
        self.reference: Outputs
        self.kept: tuple[str, ...] = ()
        self.done: list[str] = []
        self.lineage: list[Artifact] = []
        self.reports: list[FidelityReport] = []

    def run(self, folder: Path) -> None:
        with self._stage("reference in PyTorch"):
            self.pixels = pixels_of(self.images, self.spec.preprocessing)
            refuse_inert_selection(self.model, self.pixels, self.spec.preprocessing)
            self.reference = torch_outputs(
                self.model,
                self.pixels,
                self.spec.preprocessing,
                self._counter("reference in PyTorch"),
            )
        graph = self._exported()
        if self.request.simplify:
            graph = self._simplified(graph)
        graph = self._finished(graph)
        artifact = self._compiled(graph, folder)
        with self._stage("bundle"):
            self._write_rest(folder, artifact)

    def _exported(self) -> Path:
        path = self.scratch / "exported.onnx"
        with self._stage("onnx_from_torch"):
            self.kept = onnx_from_torch(
                self.model, self.spec, self.request.input, self.request.opset, path
            )
            self._check(path)
            self._verify("onnx_from_torch", "onnx", "fp32", path)
        self.record(path, "onnx")
        return path

    def _simplified(self, source: Path) -> Path:
        if not has_simplifier():
            self.say(
                "onnxsim is not installed here, going on with the exporter's own optimisation "
                "(pip install 'gft-edge[export]' adds it)"
            )
            return source
        path = self.scratch / "simplified.onnx"
        with self._stage("simplify"):
            simplify(source, path)
            self._check(path)
            self._verify("simplify", "onnx", "fp32", path)
        self.record(path, "onnx")
        return path

    def _finished(self, source: Path) -> Path:
        path = self.scratch / "model.onnx"
        with self._stage("finish"):
            finish(source, path, self._metadata(), self.kept)
        self.record(path, "onnx")
        return path

    def _compiled(self, graph: Path, folder: Path) -> Artifact:
        name = f"build for {self.backend.TARGET}"
        with self._stage(name):
            artifact = self.backend.build(
                graph,
                folder,
                BuildRequest(
                    self._precision,
                    self.request.compress_weights,
                    self._metadata(),
                    self.lineage[-1].sha256,
                ),
            )
            path = folder / artifact.path
            self._verify(name, self.backend.TARGET, artifact.precision, path)
        last = self.lineage[-1]
        if artifact.sha256 == last.sha256:
            # The engine loads the graph as it is: one file, not a file and its child.
            self.lineage.pop()
            return dataclasses.replace(artifact, parent_sha256=last.parent_sha256)
        return artifact

    def _write_rest(self, folder: Path, artifact: Artifact) -> None:
        write_labels(folder, self.spec.labels)
        some = slice(0, GOLDEN_IMAGES)
        chosen = zip(self.kept, self.reference.kept, strict=True)
        np.savez(
            folder / GOLDEN_FILE,
            images=self.pixels[some],
            logits=self.reference.logits[some],
            **{name: indices[some] for name, indices in chosen},  # type: ignore[arg-type]
        )
        names = (artifact.path, *artifact.companions, LABELS_FILE, GOLDEN_FILE)
        write_manifest(
            folder,
            Manifest(
                schema_version=SCHEMA_VERSION,
                target=self.backend.TARGET,
                precision=self._precision,
                runtime_precision=self.backend.RUNTIME_PRECISION,
                model=self.spec,
                input=self.request.input,
                kept_outputs=self.kept,
                artifact=artifact,
                lineage=tuple(self.lineage),
                verified_on=ImageRecord(
                    len(self.images.paths), self.images.seed, self.images.digest
                ),
                files={name: sha256_of(folder / name) for name in names},
                tools=self._tools(),
                reports=tuple(self.reports),
            ),
        )

    def _verify(self, name: str, target: str, precision: str, path: Path) -> None:
        backend = backend_for(target)
        session = backend.open_session(
            path,
            open_request(self.spec, self.request.input, backend.RUNTIME_PRECISION, self.kept),
        )
        try:
            outputs = session_outputs(
                session,
                self.pixels,
                self.request.input,
                self.spec.preprocessing,
                self._counter(f"verify {name}"),
            )
        finally:
            session.close()
        self.reports.append(gate(compare(name, self.reference, outputs, TOLERANCES[precision])))

    @property
    def _precision(self) -> str:
        suffix = "-fp16-weights" if self.request.compress_weights else ""
        return f"{self.request.precision}{suffix}"

    def _check(self, path: Path) -> None:
        # One Cast, uint8 to float, where pixels enter the network; none where floats do.
        check_structure(path, self.spec, casts=int(self.request.input.dtype == "uint8"))

    def record(self, path: Path, kind: str) -> None:
        """Add a file to the lineage, as the child of the one before."""
        parent = self.lineage[-1].sha256 if self.lineage else None
        self.lineage.append(Artifact(path.name, kind, "fp32", sha256_of(path), parent))

    def _metadata(self) -> dict[str, str]:
        """The keys that go into ONNX metadata_props and OpenVINO's rt_info alike.

        `model_type` and `labels` are those OpenVINO's Model API reads. Its mean and scale are left
        out on purpose: a graph that normalises by itself must not be normalised again.
        """
        return {
            "model_type": "Classification",
            "labels": " ".join(label.replace(" ", "_") for label in self.spec.labels),
            "gft_edge_version": installed.version("gft-edge"),
            "gft_edge_input": f"{self.request.input.dtype} "
            f"{'NHWC RGB 0..255' if self.request.input.dtype == 'uint8' else 'NCHW RGB normalised'}",
            "gft_edge_model": json.dumps(to_json(self.spec), sort_keys=True),
        }

    def _tools(self) -> dict[str, str]:
        names = (
            "gft-edge",
            "torch",
            "timm",
            "onnx",
            "onnxscript",
            "onnxsim",
            "onnxruntime",
            "openvino",
        )
        versions = {"python": platform.python_version()}
        for name in names:
            try:
                versions[name] = installed.version(name)
            except installed.PackageNotFoundError:
                versions[name] = "absent"
        return versions

    def _counter(self, text: str) -> Callable[[int], None]:
        done, total = 0, len(self.pixels)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self.progress(text, done, total)

        return advance

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.progress(name, 0, 0)
        try:
            yield
        except PipelineError as error:
            raise self._failure(name, str(error)) from error
        except GftEdgeError:
            raise
        # An OSError is the folder's (disk full, read-only), not the stage's: `replacing` words it.
        except (OSError, MemoryError):
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise self._failure(name, lines[0]) from error
        self.done.append(name)

    def _failure(self, name: str, reason: str) -> PipelineError:
        ran = ", ".join(self.done) or "none"
        return PipelineError(f"stage {name!r} failed (finished before it: {ran}): {reason}")
