"""The engine of every study: variants of a run exported, judged, measured in turn and remembered."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gft_edge.bundle.images import ImageSet
from gft_edge.bundle.manifest import Confidence
from gft_edge.bundle.specs import Progress, Say, counter
from gft_edge.bundle.store import read_bundle, sha256_of, size_bytes
from gft_edge.datasets import Split
from gft_edge.errors import BundleError, FailedError, GateError, GftEdgeError
from gft_edge.export.contents import tool_versions
from gft_edge.export.pipeline import export
from gft_edge.export.request import CalibrationRequest, ExportRequest
from gft_edge.fidelity.verify import Reference, verify
from gft_edge.model.checkpoint import WEIGHTS_FILE
from gft_edge.model.network import Network
from gft_edge.model.remembered import Remembered
from gft_edge.model.schedule import at_stages
from gft_edge.model.temperature import temperature_of
from gft_edge.profiling.machine import summary, this_machine
from gft_edge.profiling.profile import ProfileRequest
from gft_edge.profiling.report import Profile
from gft_edge.profiling.report_file import read_profile, write_profile
from gft_edge.studies.bench import HERE, Bench
from gft_edge.studies.evaluation import Case
from gft_edge.studies.memory import BUNDLES, PROFILE_FILE, Memory
from gft_edge.studies.variants import Accuracy, Variant, measured


@dataclass(frozen=True)
class Study:
    """What the variants of one run share.

    Exports are verified on `verified_on`; None of `calibrated_on` leaves INT8 out. `folder` holds the
    bundles.
    """

    case: Case
    model: Network
    calibrated_on: ImageSet | None
    verified_on: ImageSet
    folder: Path
    memory: Memory
    progress: Progress
    say: Say
    bench: Bench = HERE

    def bundle(self, variant: Variant) -> Path:
        """The folder of a variant's bundle."""
        return self.folder / BUNDLES / variant.file_name

    def asked(self, variant: Variant) -> ExportRequest:
        """The request for a variant's export."""
        calibration = None
        if variant.precision.startswith("int8") and self.calibrated_on is not None:
            calibration = CalibrationRequest(self.calibrated_on)
        return ExportRequest(
            variant.target,
            variant.precision,
            calibration=calibration,
            stages=variant.other_stages,
            # A stage that keeps all its patches costs what it costs.
            keeps_all=True,
            confidence=Confidence(temperature_of(self.case.run)),
        )

    def decides(self, variant: Variant) -> dict[str, Any]:
        """All that decides what a variant's export comes to."""
        calibration = self.asked(variant).calibration
        return {
            "weights": self.case.weights_sha256,
            "model": self.case.spec,
            "stages": variant.other_stages,
            "verified_on": self.verified_on.digest,
            "temperature": temperature_of(self.case.run),
            "calibrated_on": calibration and calibration.images.digest,
            "tools": tool_versions(),
        }


def exported(study: Study, variant: Variant, place: str) -> Variant:
    """Export a variant, or take over what is remembered of it where it would come out the same.

    A failure is the variant's own: it is remembered, and not tried again while nothing that decides it
    changes. Engines raise their own classes, which share only Exception. Raises OSError: a disk that is
    full fails every other variant as well.
    """
    folder, name, decides = study.bundle(variant), _name(variant), study.decides(variant)
    known = study.memory.recall(name, Variant, decides)
    if known is not None and known.reason is not None:
        study.say(f"{place}: failed before, the same; --fresh tries it again")
        return variant.failed(known.reason)
    try:
        if known is not None and _seal(folder) == known.digest:
            study.say(f"{place}: exported already")
            made = dataclasses.replace(variant, digest=known.digest, build_s=known.build_s)
        else:
            study.say(f"{place}: exporting{' anew' if folder.exists() else ''}")
            started = time.perf_counter()
            export(
                study.model,
                study.case.spec,
                study.verified_on,
                study.asked(variant),
                folder,
                study.progress,
                study.say,
                study.case.run / WEIGHTS_FILE,
            )
            made = _kept(study, variant, time.perf_counter() - started)
        if variant.target == "tensorrt":
            made = _with_engines(study, made)
    except Exception as error:
        reason = failure_of(error)
        study.say(f"{place}: failed: {reason}")
        # An older bundle of the variant is of no use.
        shutil.rmtree(folder, ignore_errors=True)
        study.memory.keep(name, variant.failed(reason), decides)
        return variant.failed(reason)
    return dataclasses.replace(
        made,
        bundle=str(folder.relative_to(study.folder)),
        files_mb=size_bytes(read_bundle(folder)) / 2**20,
    )


def _kept(study: Study, variant: Variant, build_s: float) -> Variant:
    """The variant with its bundle's seal and the time that it took, remembered as such."""
    made = dataclasses.replace(variant, digest=_seal(study.bundle(variant)), build_s=build_s)
    study.memory.keep(_name(variant), made, study.decides(variant))
    return made


def _with_engines(study: Study, variant: Variant) -> Variant:
    """Build the engines of a bundle for TensorRT that it lacks, which alters the bundle's seal.

    The second one returns the kept patches, which are compared.
    """
    folder = study.bundle(variant)
    for explain in (False, True):
        started = time.perf_counter()
        study.bench.build(folder, explain, study.progress, study.say)
        if _seal(folder) != variant.digest:
            # Kept at once: an interrupt while the second is built does not cost the first.
            seconds = time.perf_counter() - started
            variant = _kept(study, variant, (variant.build_s or 0.0) + seconds)
    return variant


def _seal(folder: Path) -> str | None:
    """The seal of a bundle; None where there is none, or one that is not whole."""
    try:
        return read_bundle(folder).manifest.seal
    except BundleError:
        return None


def _name(variant: Variant) -> str:
    return f"{variant.file_name}.export"


def failure_of(error: Exception) -> str:
    """What a failure says. Raises it again where it is the disk's."""
    if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
        raise error
    text = error.reason if isinstance(error, GateError) else str(error)
    return " ".join(text.split()) or type(error).__name__


def reference_at(study: Study, variant: Variant) -> Reference:
    """PyTorch at a variant's keep counts, each image computed once for all who ask."""
    spec, model = study.case.spec, study.model
    if variant.other_stages is not None:
        spec, model = at_stages(spec, model, variant.other_stages)
    return Remembered(model, spec).outputs


def judged(study: Study, variant: Variant, reference: Reference, place: str) -> Variant:
    """Measure a bundle's accuracy on the split against PyTorch, unless it is remembered.

    A failure is the variant's own, but for OSError.
    """
    name, split = f"{variant.file_name}.accuracy", study.case.split
    decides = {
        "bundle": variant.digest,
        "split": split.name,
        "images": study.case.split_digest,
        "machine": summary(this_machine()),
        "device": study.bench.judge_device(variant.target),
        "tools": tool_versions(),
    }
    found = study.memory.recall(name, Variant, decides)
    if found is None:
        try:
            found = dataclasses.replace(
                variant, accuracy=_accuracy(study, variant, split, reference, place)
            )
        except Exception as error:
            found = variant.failed(failure_of(error))
            study.say(f"{place}: failed: {found.reason}")
        study.memory.keep(name, found, decides)
    return dataclasses.replace(
        variant, status=found.status, reason=found.reason, accuracy=found.accuracy
    )


def _accuracy(
    study: Study, variant: Variant, split: Split, reference: Reference, place: str
) -> Accuracy:
    text = f"{place}: accuracy on {split.name}"
    advance = counter(study.progress, text, len(split.paths))
    backend = study.bench.judge_backend(variant.target)
    device = study.bench.judge_device(variant.target)
    found = verify(study.bundle(variant), backend, split, reference, advance, device=device)
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
            "machine": study.bench.machine(),
            "tools": tool_versions(),
        }
        found = _measured_before(study, decides)
        if found is None:
            study.say(f"measuring in turn: {', '.join(variant.name for variant in done)}")
            folders = {study.bundle(variant): variant for variant in done}
            try:
                request = dataclasses.replace(how, bundles=tuple(folders))
                found = study.bench.profile(request, study.progress, study.say)
            except GftEdgeError as error:
                failed = folders.get(error.bundle) if error.bundle else None
                if failed is None:
                    raise
                study.say(f"{failed.name}: failed: {error}")
                variants[variants.index(failed)] = failed.failed(str(error))
                continue
            write_profile(found, file)
            if found.complete and found.stable:
                study.memory.keep("measured", sha256_of(file), decides)
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
    file, sha256 = study.folder / PROFILE_FILE, study.memory.recall("measured", str, decides)
    if sha256 is None or not file.is_file() or sha256_of(file) != sha256:
        return None
    return read_profile(file)
