"""A bundle as tables: what it is, how faithful it is, its engines, and what TensorRT makes of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from gft_edge.bundle.manifest import Engine, Manifest, Quantization
from gft_edge.bundle.reports import FidelityReport, NoiseFloor
from gft_edge.bundle.specs import ModelSpec
from gft_edge.bundle.stages import stages_text
from gft_edge.bundle.store import Bundle, size_bytes
from gft_edge.fidelity.noise_floor import NAMES
from gft_edge.nvidia.engines import bound_to_gpu
from gft_edge.nvidia.layer_report import LayerReport
from gft_edge.reporting.table import Table, Value, per_stage, percent

FACTS = ("what", "value")


def bundle_tables(bundle: Bundle) -> list[Table]:
    """Tables of all that a bundle's manifest says."""
    manifest = bundle.manifest
    model, given = manifest.model, manifest.input
    size = model.preprocessing.image_size_px
    typed = manifest.runtime_precision == "typed"
    computed = "as the graph is typed" if typed else f"in {manifest.runtime_precision}"
    rows = [
        ("target", manifest.target),
        ("precision", f"{manifest.precision}, computed {computed}"),
        ("input", f"{given.dtype}, batch {given.batch}, {size}x{size}"),
        ("network", _network(model)),
        ("stages", stages_text(model.stages) or "none"),
        ("classes", str(len(model.labels))),
        ("model files", f"{size_bytes(bundle) / 2**20:.1f} MiB"),
        ("tools", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())),
    ]
    confidence = manifest.confidence
    rows.append(("temperature", f"{confidence.temperature:.3g}"))
    if confidence.min_probability:
        rows.append(("least probability for a label", f"{confidence.min_probability:g}"))
    if manifest.target == "tensorrt" and not manifest.engines:
        rows.append(("engines", "none yet: gft-edge build makes one on the machine that runs it"))
    rows += [
        ("engine", f"{engine.path}, {engine.build_seconds:.0f} s to build")
        for engine in manifest.engines
    ]
    return [Table("Bundle", FACTS, rows), *fidelity_tables("Fidelity against PyTorch", manifest)]


def _network(model: ModelSpec) -> str:
    if model.stages:
        return f"{model.name}, score {model.score}, gala {model.gala}"
    built = model.backbone if model.backbone != model.name else "timm's"
    if model.family == "transfg":
        return f"{model.name} ({built}), chooses parts before its last block"
    return f"{model.name} ({built}), selects no patches"


def fidelity_tables(title: str, manifest: Manifest) -> list[Table]:
    """Every step against PyTorch, the cost of other keep counts and of INT8, the precisions tried."""
    tables = [_steps(title, manifest.reports, _remarks(manifest))]
    if (found := manifest.rescheduled) is not None:
        rows = [
            (stages_text(found.trained_stages), percent(found.trained_accuracy), "as trained"),
            (stages_text(manifest.model.stages), percent(found.accuracy), "exported"),
        ]
        count = manifest.verified_on.count
        heads = ("stages", "accuracy", "is")
        tables.append(Table(f"Keep counts, PyTorch's accuracy on {count} images", heads, rows))
    if manifest.quantization is not None:
        tables.append(_quantization(manifest.quantization))
    if manifest.candidates:
        tried = [
            (c.precision, percent(c.accuracy), percent(c.top1_agreement),
             None if c.median_ms is None else f"{c.median_ms:.2f}", c.reason)
            for c in manifest.candidates
        ]  # fmt: skip
        title = f"Precisions tried on {manifest.candidates[0].machine}"
        columns = ("precision", "accuracy", "agreement", "median ms", "why")
        tables.append(Table(title, columns, tried))
    return tables


def _remarks(manifest: Manifest) -> list[str]:
    """What the last step's figures mean: patches beside those of a change nobody sees, and accuracy."""
    if not manifest.reports:
        return []
    report = manifest.reports[-1]
    lines = []
    if report.noise_floor is not None:
        lines = floor_sentences(manifest, report.cosine, report.patches_lost, report.noise_floor)
    if not report.tolerance.judges:
        lines.append(f"The bundle is not judged: whether {manifest.precision} holds is not known.")
    if report.ece is not None:
        lines.append(
            f"Probabilities are off by {percent(report.ece)} on average (expected calibration error), those "
            f"of PyTorch by {percent(report.reference_ece)}."
        )
    return lines + _drop_sentence(report)


def floor_sentences(
    manifest: Manifest, cosine: float, patches_lost: Sequence[float], floor: NoiseFloor
) -> list[str]:
    """Say how many patches the bundle exchanges, and how many the change that it is judged by."""
    name, change = manifest.precision.upper(), NAMES[floor.change]
    if not manifest.model.stages:
        return [
            f"{name} turns the logits by {1 - cosine:.2e} (1 - cosine); {change} by "
            f"{1 - floor.cosine:.2e}."
        ]
    lost = zip(manifest.model.stages, patches_lost, floor.patches_lost, strict=True)
    return [
        f"{name} exchanges {ours:.1f} of {stage.keep} patches at stage {number}; {change} exchanges "
        f"{theirs:.1f}."
        for number, (stage, ours, theirs) in enumerate(lost, start=1)
    ]


def _drop_sentence(report: FidelityReport) -> list[str]:
    """What the images cannot tell of the accuracy; nothing where they are enough."""
    if report.accuracy is None:
        return ["The accuracy is not known: no image is of a class that the network knows."]
    if report.resolved:
        return []
    least, most = (100 * bound for bound in report.drop or ())
    return [
        f"The verdict passes, not resolved: the accuracy's drop lies between {least:+.1f} and "
        f"{most:+.1f} points on {report.labelled} images."
    ]


def _steps(title: str, reports: Sequence[FidelityReport], notes: Sequence[str]) -> Table:
    columns = ("step", "images", "accuracy", "reference", "agreement", "kept patches",
               "lost (near border)", "cosine", "verdict")  # fmt: skip
    rows = [
        (r.step, r.images, percent(r.accuracy), percent(r.reference_accuracy),
         percent(r.top1_agreement), per_stage(r.kept_overlap), _lost(r), f"{r.cosine:.6f}",
         r.verdict)
        for r in reports
    ]  # fmt: skip
    return Table(title, columns, rows, notes)


def _lost(report: FidelityReport) -> str:
    """Patches lost an image, and of these near the border, one pair a stage."""
    if not report.lost_near_border:
        return " / ".join(f"{lost:.2f}" for lost in report.patches_lost) or "-"
    pairs = zip(report.patches_lost, report.lost_near_border, strict=True)
    return " / ".join(f"{lost:.2f} ({near:.2f})" for lost, near in pairs)


def _quantization(found: Quantization) -> Table:
    """What is in INT8 and what is not."""
    layers = found.int8_layers + len(found.high_precision)
    rows = [
        ("layers", f"{found.int8_layers} of {layers}, {found.int8_macs:.0%} of their work"),
        ("ranges", f"{found.method}, weights {found.weights_range}"),
        ("smooth-quant", "off" if found.smooth_quant is None else f"{found.smooth_quant:g}"),
        ("calibrated on", f"{found.calibrated_on.count} images, seed {found.calibrated_on.seed}"),
        ("in high precision", ", ".join(found.high_precision) or "none"),
    ]
    return Table("INT8", FACTS, rows)


def engine_table(folder: Path, engine: Engine) -> Table:
    """One engine of the bundle in `folder`: where it is and where it loads."""
    gpu = (engine.gpu if bound_to_gpu(engine) else None) or "GPUs"
    capabilities = ", ".join(engine.compute_capabilities)
    rows = [
        ("file", str(folder / engine.path)),
        ("size", f"{(folder / engine.path).stat().st_size / 2**20:.1f} MiB"),
        ("library", f"{engine.flavor} {engine.version}"),
        ("loads on", f"{gpu} of compute capability {capabilities}"),
        ("outputs", ", ".join(engine.outputs)),
        ("built in", f"{engine.build_seconds:.1f} s"),
    ]
    return Table("Engine", FACTS, rows)


def tensorrt_tables(report: LayerReport) -> list[Table]:
    """What TensorRT makes of a bundle's graph: precisions, layers by stage, attention."""
    fused = Counter(one.verdict for one in report.attention)
    facts: list[tuple[str, Value]] = [
        ("INT8 layers", report.int8_layers),
        ("FP16 layers", report.fp16_layers),
        ("products", ", ".join(f"{count} in {name}" for name, count in report.products.items())),
        ("attention", ", ".join(f"{count} {verdict}" for verdict, count in fused.items())),
    ]
    stages = [
        (row.stage, ", ".join(row.groups),
         ", ".join(f"{count} {name}" for name, count in row.precisions.items()),
         row.top_k, row.gather, row.cast, row.reformat)
        for row in report.stages
    ]  # fmt: skip
    alike: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    for one in report.attention:
        alike[one.verdict, one.reason].append(one.group)
    heads = ("stage", "what lies there", "precisions", "TopK", "Gather", "Cast", "reformat")
    return [
        Table(f"TensorRT, {report.source}", FACTS, facts),
        Table("Layers by stage", heads, stages),
        Table("Attention", ("where", "one kernel", "why not"),
              [(", ".join(groups), verdict, why or None)
               for (verdict, why), groups in alike.items()]),
    ]  # fmt: skip
