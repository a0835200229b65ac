"""A device as the machine that decides: what is exported here is judged and timed there."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from gft_edge.bundle.images import ImageSet
from gft_edge.bundle.json_form import from_json
from gft_edge.bundle.specs import Progress, Say
from gft_edge.bundle.store import read_manifest
from gft_edge.cli.answers import Answer, only
from gft_edge.cli.build_command import built_on
from gft_edge.cli.errand import Here, Word
from gft_edge.cli.on_devices import OnDevices
from gft_edge.cli.output import say
from gft_edge.errors import RemoteError, UsageError
from gft_edge.profiling.machine import Machine, summary
from gft_edge.profiling.profile import ProfileRequest
from gft_edge.profiling.report import Profile
from gft_edge.runtime.backends import backend_for


class Device:
    """The one host of --on as a studies.bench.Bench."""

    def __init__(self, devices: OnDevices, device: str | None = None) -> None:
        """With bundles for OpenVINO on a `device` there. Raises UsageError for several hosts: one decides."""
        if len(devices.hosts) > 1:
            raise UsageError("one device decides: give --on once")
        self._devices, self._device = devices, device
        self._doctors: dict[str | None, Any] = {}

    @property
    def _host(self) -> str:
        return self._devices.hosts[0]

    def machine(self) -> str:
        """One line that names it."""
        told = next(iter(self._doctors.values()), None) or self._doctor(None)
        on = "" if self._device is None else f", OpenVINO on {self._device}"
        return f"{summary(from_json(Machine, told['machine'], 'machine'))} ({self._host}{on})"

    def unfit(self, target: str, precision: str) -> str | None:
        """Why there is no engine there, or none for the precision."""
        target = backend_for(target).TARGET
        engine = self._doctor(target)["engines"][target]
        unfit = {each["name"]: each["precisions"] for each in engine["devices"]}
        precisions = unfit.get(self._device, engine["precisions"])
        reason = engine["missing"] or precisions.get(precision)
        return None if reason is None else f"{self._host}: {reason}"

    def _doctor(self, target: str | None) -> Any:
        if target not in self._doctors:
            self._doctors[target] = self._asked(["doctor"], [], target).document
        return self._doctors[target]

    def build(self, bundle: Path, explain: bool, progress: Progress, say: Say) -> None:
        """Build the engine there; it comes back into the bundle."""
        words: list[Word] = ["build", *(["--explain"] if explain else []), _here(bundle)]
        only(built_on(self._devices, words, bundle, progress))

    def misses(
        self, bundle: Path, fp32: Path, images: ImageSet, progress: Progress
    ) -> tuple[str, ...]:
        """Verify a bundle there, against the one in fp32 on the same photographs."""
        there: list[Word] = ["verify", *self._on(read_manifest(bundle).target)]
        if bundle == fp32:
            answer = self._asked([*there, _here(bundle)], [bundle], None, progress)
            return tuple(answer.document["failures"])
        with tempfile.TemporaryDirectory(prefix="gft-edge-") as scratch:
            folder = Path(scratch, "photographs")
            folder.mkdir()
            # The classes do not matter: agreement and kept patches need none.
            for number, path in enumerate(images.paths):
                (folder / f"{number:05d}{Path(path).suffix}").symlink_to(Path(path).absolute())
            data = Here(folder, "the images that the export is verified on")
            words = [*there, "--data", data, "--reference", _here(fp32), _here(bundle)]
            # That these images have no classes there is no news.
            answer = self._asked(words, [bundle], None, progress, lambda text: None)
        return tuple(answer.document["failures"])

    def _on(self, target: str) -> list[Word]:
        return ["--device", self._device] if self._device and target == "openvino" else []

    def judge_device(self, target: str) -> str | None:
        """None: this machine judges on its CPU."""
        return None

    def judge_backend(self, target: str) -> str | None:
        """ONNX Runtime for TensorRT, which this machine need not have."""
        return "onnx" if target == "tensorrt" else None

    def profile(self, request: ProfileRequest, progress: Progress, say: Say) -> Profile:
        """Measure bundles there. Raises RemoteError."""
        words: list[Word] = [
            "profile", "--duration", str(request.duration_s), "--warmup-ms", str(request.warmup_ms),
            "--percentiles", ",".join(f"{each:g}" for each in request.percentiles),
        ]  # fmt: skip
        if request.min_samples is not None:
            words += ["--min-samples", str(request.min_samples)]
        if request.layers:
            words.append("--layers")
        targets = [read_manifest(each).target for each in request.bundles]
        words += self._on("openvino" if "openvino" in targets else "")
        if request.images is not None:
            words += ["--photos", _here(request.images)]
        answer = self._asked(
            [*words, *map(_here, request.bundles)], request.bundles, None, progress
        )
        return from_json(Profile, {**answer.document, "host": self._host}, "the profile")

    def _asked(
        self,
        words: list[Word],
        bundles: Any,
        backend: str | None,
        progress: Progress | None = None,
        told: Say = say,
    ) -> Answer:
        answer = only(self._devices.do(words, bundles, backend, report=progress, told=told))
        if answer.document is None:
            raise RemoteError(self._host, f"{words[0]} gave no answer")
        return answer


def _here(path: Path) -> Here:
    return Here(path, str(path))
