"""The engine of every study: variants of a run exported, judged, measured in turn and remembered."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.images import ImageSet
from gft_edge.bundle.specs import ModelSpec, Progress, Say, Stage
from gft_edge.bundle.store import read_bundle, sha256_of, size_bytes
from gft_edge.datasets import Split
from gft_edge.errors import BundleError, FailedError, GateError, GftEdgeError
from gft_edge.export.contents import tool_versions
from gft_edge.export.pipeline import export
from gft_edge.export.request import ExportRequest
from gft_edge.fidelity.verify import Reference, verify
from gft_edge.model.network import Network
from gft_edge.model.reference import torch_outputs
from gft_edge.model.schedule import at_stages
from gft_edge.nvidia.build import build_engine
from gft_edge.profiling.machine import summary, this_machine
from gft_edge.profiling.profile import ProfileRequest, profile
from gft_edge.profiling.report import Profile
from gft_edge.profiling.report_file import read_profile, write_profile
from gft_edge.runtime.outputs import Outputs
from gft_edge.studies.memory import BUNDLES, PROFILE_FILE, Memory
from gft_edge.studies.variants import Accuracy, Variant, measured


@dataclass(frozen=True)
class Study:
    """What the variants of one run share.

    `request` is what every export asks for beside a variant's own target, precision and keep counts;
    its calibration is taken for int8 alone. `folder` holds the bundles. With `explain` those for
    TensorRT get a second engine, which returns the kept patches.
    """

    weights: Path | None
    weights_sha256: str
    model: Network
    spec: ModelSpec
    request: ExportRequest
    verified_on: ImageSet
    folder: Path
    memory: Memory
    progress: Progress
    say: Say
    explain: bool = False

    def bundle(self, variant: Variant) -> Path:
        """The folder of a variant's bundle."""
        return self.folder / BUNDLES / variant.file_name

    def stages(self, variant: Variant) -> tuple[Stage, ...] | None:
        """The stages that a variant is exported at; None for the trained ones."""
        if variant.keep is None:
            return self.request.stages
        return None if variant.keep.role == "trained" else variant.keep.stages

    def asked(self, variant: Variant) -> ExportRequest:
        """The request for a variant's export."""
        return dataclasses.replace(
            self.request,
            target=variant.target,
            precision=variant.precision,
            calibration=self.request.calibration if variant.precision == "int8" else None,
            stages=self.stages(variant),
        )

    def decides(self, variant: Variant) -> dict[str, Any]:
        """All that decides what a variant's export comes to."""
        calibration = self.asked(variant).calibration
        return {
            "weights": self.weights_sha256,
            "model": self.spec,
            "stages": self.stages(variant),
            "verified_on": self.verified_on.digest,
            "calibrated_on": calibration and calibration.images.digest,
            "tools": tool_versions(),
        }


@dataclass(frozen=True)
class Exported:
    """What is remembered of an export: the bundle's seal, or why there is none."""

    seal: str | None
    failure: str | None
    build_s: float


@dataclass(frozen=True)
class Judged:
    """What is remembered of a judgement: the accuracy, or why there is none."""

    accuracy: Accuracy | None
    failure: str | None


@dataclass(frozen=True)
class Stable:
    """What is remembered of a stable measurement: the sha256 of its profile."""

    profile_sha256: str


def exported(
    study: Study, variant: Variant, place: str, survived: type[Exception] = Exception
) -> Variant:
    """Export a variant, or take over what is remembered of it where it would come out the same.

    A failure of the kind `survived` is the variant's own: it is remembered, and not tried again while
    nothing that decides it changes. Engines raise their own classes, which share only Exception.
    Raises any other error, and OSError: a disk that is full fails every other variant as well.
    """
    folder = study.bundle(variant)
    known = study.memory.recall(_name(variant), Exported, study.decides(variant))
    if known is not None and known.failure is not None:
        study.say(f"{place}: failed before, the same; --fresh tries it again")
        return variant.failed(known.failure)
    try:
        if known is not None and _is_whole(folder, known):
            study.say(f"{place}: exported already")
        else:
            study.say(f"{place}: exporting{' anew' if folder.exists() else ''}")
            known = _export(study, variant, folder)
        known = _with_engines(study, variant, known)
    except survived as error:
        reason = _reason(error)
        study.say(f"{place}: failed: {reason}")
        # An older bundle of the variant is of no use.
        shutil.rmtree(folder, ignore_errors=True)
        study.memory.keep(_name(variant), Exported(None, reason, 0.0), study.decides(variant))
        return variant.failed(reason)
    bundle = read_bundle(folder)
    return dataclasses.replace(
        variant,
        bundle=str(folder.relative_to(study.folder)),
        digest=known.seal,
        files_mb=size_bytes(bundle) / 2**20,
        build_s=known.build_s,
    )


def _export(study: Study, variant: Variant, folder: Path) -> Exported:
    started = time.perf_counter()
    bundle = export(
        study.model,
        study.spec,
        study.verified_on,
        study.asked(variant),
        folder,
        study.progress,
        study.say,
        study.weights,
    )
    known = Exported(bundle.manifest.seal, None, time.perf_counter() - started)
    study.memory.keep(_name(variant), known, study.decides(variant))
    return known


def _with_engines(study: Study, variant: Variant, known: Exported) -> Exported:
    """Build the engines of a bundle for TensorRT that it lacks, which alters the bundle's seal."""
    folder = study.bundle(variant)
    for explain in (False, True)[: 1 + study.explain] if variant.target == "tensorrt" else ():
        started = time.perf_counter()
        build_engine(folder, explain=explain, progress=study.progress, say=study.say)
        seal = read_bundle(folder).manifest.seal
        if seal != known.seal:
            # Kept at once: an interrupt while the second is built does not cost the first.
            known = Exported(seal, None, known.build_s + time.perf_counter() - started)
            study.memory.keep(_name(variant), known, study.decides(variant))
    return known


def _is_whole(folder: Path, known: Exported) -> bool:
    """Whether the bundle is there as it was remembered."""
    try:
        return read_bundle(folder).manifest.seal == known.seal
    except BundleError:
        return False


def _name(variant: Variant) -> str:
    return f"{variant.file_name}.export"


def _reason(error: Exception) -> str:
    """What a failure says. Raises it again where it is the disk's."""
    if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
        raise error
    text = error.reason if isinstance(error, GateError) else str(error)
    return " ".join(text.split()) or type(error).__name__


def reference_at(study: Study, variant: Variant) -> Reference:
    """PyTorch at a variant's keep counts, each batch of pixels computed once for all who ask."""
    spec, model, stages = study.spec, study.model, study.stages(variant)
    if stages is not None:
        spec, model = at_stages(spec, model, stages)
    known: dict[bytes, Outputs] = {}

    def outputs(pixels: npt.NDArray[np.uint8]) -> Outputs:
        key = hashlib.sha256(pixels.tobytes()).digest()
        if key not in known:
            known[key] = torch_outputs(model, pixels, spec.preprocessing)
        return known[key]

    return outputs


def judged(
    study: Study, variant: Variant, split: Split, digest: str, reference: Reference, place: str
) -> Variant:
    """Measure a bundle's accuracy on a split against PyTorch, unless it is remembered.

    `digest` is the split's. A failure is the variant's own, but for OSError.
    """
    decides = {
        "bundle": variant.digest,
        "split": split.name,
        "images": digest,
        "machine": summary(this_machine()),
        "tools": tool_versions(),
    }
    name = f"{variant.file_name}.accuracy"
    found = study.memory.recall(name, Judged, decides)
    if found is None:
        try:
            found = Judged(_accuracy(study, variant, split, reference, place), None)
        except Exception as error:
            found = Judged(None, _reason(error))
            study.say(f"{place}: failed: {found.failure}")
        study.memory.keep(name, found, decides)
    if found.failure is not None:
        return variant.failed(found.failure)
    return dataclasses.replace(variant, accuracy=found.accuracy)


def _accuracy(
    study: Study, variant: Variant, split: Split, reference: Reference, place: str
) -> Accuracy:
    total, done = len(split.paths), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        study.progress(f"{place}: accuracy on {split.name}", done, total)

    found = verify(study.bundle(variant), None, split, reference, advance)
    if found.top1 is None or found.reference_top1 is None or found.top1_agreement is None:
        raise FailedError("; ".join(found.failures))
    return Accuracy(
        found.top1,
        found.reference_top1,
        found.reference_top1 - found.top1,
        found.top1_agreement,
        found.kept_overlap or (),
        found.failures,
        found.skipped,
    )


def measured_together(
    study: Study, variants: Sequence[Variant], how: ProfileRequest
) -> tuple[list[Variant], Profile | None]:
    """Measure all that is done in one interleaved run; the profile is None where nothing is.

    One that cannot be measured is a failure, and the others are measured without it. A run that was
    stable is taken over while bundles, settings, machine and tools are the same; `how` names no
    bundles. Raises what `profile` raises about no bundle in particular.
    """
    variants, file = list(variants), study.folder / PROFILE_FILE
    while done := [variant for variant in variants if variant.status == "done"]:
        decides = {
            "bundles": [variant.digest for variant in done],
            "settings": {**vars(how), "bundles": None, "images": str(how.images)},
            "machine": summary(this_machine()),
            "tools": tool_versions(),
        }
        found = _measured_before(study, decides)
        if found is None:
            study.say(f"measuring in turn: {', '.join(variant.name for variant in done)}")
            folders = {study.bundle(variant): variant for variant in done}
            try:
                found = profile(
                    dataclasses.replace(how, bundles=tuple(folders)), study.progress, study.say
                )
            except GftEdgeError as error:
                failed = folders.get(error.bundle) if error.bundle else None
                if failed is None:
                    raise
                study.say(f"{failed.name}: failed: {error}")
                variants[variants.index(failed)] = failed.failed(str(error))
                continue
            write_profile(found, file)
            if found.complete and found.stable:
                study.memory.keep("measured", Stable(sha256_of(file)), decides)
        else:
            study.say("latencies: as measured before, the bundles are the same")
        by_digest = {report.digest: measured(report) for report in found.reports}
        return [
            dataclasses.replace(variant, measured=by_digest.get(variant.digest or ""))
            for variant in variants
        ], found
    # An earlier one is of other bundles.
    file.unlink(missing_ok=True)
    return variants, None


def _measured_before(study: Study, decides: dict[str, Any]) -> Profile | None:
    """The stable profile of the same bundles, if there is one."""
    file, known = study.folder / PROFILE_FILE, study.memory.recall("measured", Stable, decides)
    if known is None or not file.is_file() or sha256_of(file) != known.profile_sha256:
        return None
    return read_profile(file)
