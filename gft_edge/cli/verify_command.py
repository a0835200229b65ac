"""gft-edge verify."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.images import CocoCategory
from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.manifest import Manifest
from gft_edge.bundle.store import read_manifest
from gft_edge.cli.options import PATH, backend_option, data_option, json_option, split_option
from gft_edge.cli.output import advance, overlaps, percent, print_json, print_table, progress, say
from gft_edge.cli.references import open_reference
from gft_edge.cli.sources import given_source
from gft_edge.datasets import read_split, reporting_split
from gft_edge.errors import PipelineError
from gft_edge.fidelity.verify import VerifyReport, verify


@click.command("verify")
@click.argument("bundle", type=PATH)
@data_option
@split_option()
@click.option("--reference", type=PATH, help="Run (needs torch) or bundle to compare with.")
@backend_option
@json_option
def command(
    bundle: Path,
    data: Path | None,
    dataset: str | None,
    coco_category: CocoCategory | None,
    split: str | None,
    reference: Path | None,
    backend: str | None,
    as_json: bool,
) -> None:
    """Check a bundle on this machine: hashes, structure, golden outputs.

    With --data also accuracy, with --reference also agreement on those images. Exit 1 when a check
    fails.
    """
    manifest = read_manifest(bundle)
    source = given_source(data, dataset, coco_category)
    images = None
    if source is not None:
        images = read_split(source, split or reporting_split(source), manifest.model.labels)
    with ExitStack() as stack:
        expected = open_reference(reference, bundle, manifest, stack) if reference else None
        report = stack.enter_context(progress())
        count = advance(report, f"verify on {images.name}", len(images.paths)) if images else None
        result = verify(bundle, backend, images, expected, count)
    if result.golden is not None:
        result = _with_structure(result, bundle / manifest.artifact.path, manifest)
    if as_json:
        content = {f.name: to_json(getattr(result, f.name)) for f in dataclasses.fields(result)}
        print_json(content)
    else:
        _print(bundle, result)
    if result.verdict == "fail":
        raise click.exceptions.Exit(1)


def _with_structure(result: VerifyReport, path: Path, manifest: Manifest) -> VerifyReport:
    """The report with the graph's own structure checked, where this machine can read the graph."""
    if path.suffix != ".onnx":
        reason = f"graph structure: checked at export, onnx does not read {path.name}"
        return dataclasses.replace(result, skipped=(*result.skipped, reason))
    try:
        from gft_edge.export.structure import check_structure, expected_casts
    except ImportError as error:
        reason = f"graph structure: {error.name} is not installed here"
        return dataclasses.replace(result, skipped=(*result.skipped, reason))
    try:
        half = manifest.precision == "fp16" or (
            manifest.target == "tensorrt" and manifest.precision == "int8"
        )
        check_structure(path, manifest.model, expected_casts(manifest.model, manifest.input, half))
    except PipelineError as error:
        failures = (*result.failures, f"graph structure: {error}")
        return dataclasses.replace(result, verdict="fail", failures=failures)
    return result


def _print(bundle: Path, result: Any) -> None:
    rows = [("verdict", result.verdict)]
    if result.golden is not None:
        rows.append(("golden top-1 agreement", percent(result.golden.top1_agreement)))
        rows.append(("golden kept patches", overlaps(result.golden.kept_overlap)))
    if result.top1 is not None:
        rows.append(("images", str(result.images)))
        rows.append(("top-1", percent(result.top1)))
    if result.top1_agreement is not None:
        rows += [
            ("reference top-1", percent(result.reference_top1)),
            ("top-1 agreement", percent(result.top1_agreement)),
            ("kept patches", overlaps(result.kept_overlap)),
            ("cosine", f"{result.cosine:.6f}"),
            ("max abs", f"{result.max_abs:.1e}"),
        ]
    print_table(str(bundle), ("check", "result"), rows)
    for failure in result.failures:
        say(f"Error: {failure}")
    for reason in result.skipped:
        say(f"skipped: {reason}")
