"""One export under way: what its stages share, the reports they leave, and how each is judged."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata as installed
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.images import ImageSet
from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.manifest import Artifact
from gft_edge.bundle.reports import FidelityReport, Tolerance
from gft_edge.bundle.specs import InputSpec, ModelSpec, Progress, Say
from gft_edge.bundle.store import sha256_of
from gft_edge.errors import GateError, GftEdgeError, PipelineError
from gft_edge.export.plain_weights import with_plain_weights
from gft_edge.export.structure import check_structure
from gft_edge.export.verify import gate, pixels_of, refuse_inert_selection, torch_outputs
from gft_edge.fidelity.compare import compare
from gft_edge.model.networks import Network
from gft_edge.runtime.backends import backend_for
from gft_edge.runtime.classifier import open_request, session_outputs
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


class Workbench:
    """The network, the images it is verified on with PyTorch's outputs for them, and a scratch folder.

    `tolerance` is what the artifact that is shipped has to hold; `keeps_all` is as in ExportRequest.
    """

    def __init__(
        self,
        model: Network,
        spec: ModelSpec,
        images: ImageSet,
        given: InputSpec,
        tolerance: Tolerance,
        scratch: Path,
        progress: Progress,
        say: Say,
        keeps_all: bool = False,
    ):
        self.model, self.spec, self.images, self.given = model.eval(), spec, images, given
        self.tolerance = tolerance
        self.scratch, self.progress, self.say = scratch, progress, say
        self.kept = tuple(f"kept_{number}" for number in range(1, len(spec.stages) + 1))
        self.done: list[str] = []
        self.lineage: list[Artifact] = []
        self.reports: list[FidelityReport] = []
        self.pixels: npt.NDArray[np.uint8]
        self.reference: Outputs
        self.shipped: Outputs
        with self.stage("reference in PyTorch"):
            self.pixels = pixels_of(images, spec.preprocessing)
            refuse_inert_selection(self.model, self.pixels, spec.preprocessing, keeps_all)
            self.reference = torch_outputs(
                self.model,
                self.pixels,
                spec.preprocessing,
                self.counter("reference in PyTorch", len(self.pixels)),
            )

        # Behind the reference, so that what is shipped is held to the network as it was trained.
        self.model = with_plain_weights(self.model)
        if tolerance.max_drop is not None:
            self._refuse_constant_decisions()

    def measure(
        self, name: str, target: str, runtime_precision: str, path: Path, tolerance: Tolerance
    ) -> FidelityReport:
        """Run a graph on `target`'s engine over the images and compare it with PyTorch."""
        outputs = self.outputs(name, target, runtime_precision, path, self.pixels)
        self.shipped = outputs
        return compare(name, self.reference, outputs, tolerance, self.images.targets)

    def outputs(
        self,
        name: str,
        target: str,
        runtime_precision: str,
        path: Path,
        pixels: npt.NDArray[np.uint8],
    ) -> Outputs:
        """What a graph gives for uint8 (images,S,S,3) on `target`'s engine."""
        session = backend_for(target).open_session(
            path, open_request(self.spec, self.given, runtime_precision, self.kept)
        )
        try:
            return session_outputs(
                session,
                pixels,
                self.given,
                self.spec.preprocessing,
                self.counter(f"verify {name}", len(pixels)),
            )
        finally:
            session.close()

    def verify(
        self, name: str, target: str, runtime_precision: str, path: Path, tolerance: Tolerance
    ) -> None:
        """Keep the report of a graph. Raises GateError when it misses a bound."""
        self.reports.append(gate(self.measure(name, target, runtime_precision, path, tolerance)))

    def check(self, path: Path, casts: int | None) -> None:
        """Raise PipelineError for a graph that some engine would refuse."""
        check_structure(path, self.spec, casts)

    def record(self, path: Path, kind: str, precision: str) -> None:
        """Add a file to the lineage, as the child of the one before."""
        parent = self.lineage[-1].sha256 if self.lineage else None
        self.lineage.append(Artifact(path.name, kind, precision, sha256_of(path), parent))

    def metadata(self) -> dict[str, str]:
        """The keys that go into ONNX metadata_props and OpenVINO's rt_info alike.

        `model_type` and `labels` are those OpenVINO's Model API reads. Its mean and scale are left
        out on purpose: a graph that normalises by itself must not be normalised again.
        """
        pixels = self.given.dtype == "uint8"
        return {
            "model_type": "Classification",
            "labels": " ".join(label.replace(" ", "_") for label in self.spec.labels),
            "gft_edge_version": installed.version("gft-edge"),
            "gft_edge_input": f"{self.given.dtype} "
            f"{'NHWC RGB 0..255' if pixels else 'NCHW RGB normalised'}",
            "gft_edge_model": json.dumps(to_json(self.spec), sort_keys=True),
        }

    def counter(self, text: str, total: int) -> Callable[[int], None]:
        """A callback that reports how many of `total` are done."""
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self.progress(text, done, total)

        return advance

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Name what runs inside: an unexpected failure becomes a PipelineError with the history."""
        self.progress(name, 0, 0)
        try:
            yield
        except PipelineError as error:
            raise PipelineError(str(error), step=name, finished=self.done) from error
        except GftEdgeError:
            raise
        # An OSError is the folder's (disk full, read-only), not the stage's: `replacing` words it.
        except (OSError, MemoryError):
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise PipelineError(lines[0], step=name, finished=self.done) from error
        self.done.append(name)

    def _refuse_constant_decisions(self) -> None:
        """Raise GateError for a network that calls everything the same: any wreck agrees with it."""
        decisions = self.reference.logits.argmax(axis=1)
        if len(set(self.images.targets)) > 1 and (decisions == decisions[0]).all():
            raise GateError(
                f"the FP32 network calls all {len(decisions)} images {self.spec.labels[decisions[0]]!r}: "
                "agreement with it would mean nothing; train it, or take an earlier checkpoint"
            )


def tool_versions() -> dict[str, str]:
    """Python and every package that had a hand in the export."""
    versions = {"python": platform.python_version()}
    for name in TOOLS:
        try:
            versions[name] = installed.version(name)
        except installed.PackageNotFoundError:
            versions[name] = "absent"
    return versions
