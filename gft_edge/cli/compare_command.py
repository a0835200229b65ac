"""gft-edge compare."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from gft_edge.bundle.images import CocoCategory
from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.specs import ModelSpec
from gft_edge.bundle.store import MANIFEST_FILE, Bundle, is_bundle, read_bundle
from gft_edge.cli.options import PATH, backend_option, data_option, json_option, split_option
from gft_edge.cli.output import (
    advance,
    next_line,
    overlaps,
    percent,
    print_json,
    print_table,
    progress,
    shown,
)
from gft_edge.cli.references import engine_of, open_reference
from gft_edge.cli.sources import given_source
from gft_edge.datasets import read_split, reporting_split
from gft_edge.errors import UsageError
from gft_edge.explanation.comparison import Comparison, compare_on_split
from gft_edge.runtime.classifier import Classifier

PICTURE = "compare.png"
LISTED = 20


@click.command("compare")
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@data_option
@split_option()
@click.option("--out", type=PATH, help=f"Folder for {PICTURE}: the patches each kept.")
@backend_option
@json_option
def command(
    a: Path,
    b: Path,
    data: Path | None,
    dataset: str | None,
    coco_category: CocoCategory | None,
    split: str | None,
    out: Path | None,
    backend: str | None,
    as_json: bool,
) -> None:
    """How far bundle B is from A on the same images, and on which they disagree.

    A, the reference, is a bundle or a run (needs torch) of the same network; a run's own ranking
    also tells how many lost patches were near the border. This is a report, not a check: it exits 0
    whatever it finds.
    """
    source = given_source(data, dataset, coco_category)
    if source is None:
        raise UsageError("two artifacts are compared on images: give --data FOLDER")
    if backend == "fake":
        raise UsageError("the fake backend says nothing about a network: choose a real one")
    bundle = _candidate(b)
    model = bundle.manifest.model
    images = read_split(source, split or reporting_split(source), model.labels)
    with ExitStack() as stack:
        reference = open_reference(a, b, bundle.manifest, stack, backend)
        engine = engine_of(bundle, backend)
        candidate = stack.enter_context(Classifier.load(bundle, engine, kept=True))
        picture = _picture_path(out, model) if out else None
        report = stack.enter_context(progress())
        count = advance(report, f"compare on {images.name}", len(images.paths))
        comparison = compare_on_split(reference, candidate, images, count)
    if picture is not None:
        comparison.picture(model).save(picture)
    if as_json:
        print_json(_content(a, b, comparison, picture))
        return
    _print(a, b, comparison)
    if picture is not None:
        click.echo(f"picture: {picture}")
    elif model.stages:
        next_line("the same with --out FOLDER draws the patches that A and B kept")


def _candidate(folder: Path) -> Bundle:
    if folder.is_dir() and not is_bundle(folder):
        raise UsageError(
            f"{folder} is no bundle: it has no {MANIFEST_FILE}. Give as B a folder that gft-edge "
            "export wrote; a run can only be A"
        )
    return read_bundle(folder)


def _picture_path(out: Path, model: ModelSpec) -> Path:
    """Where the picture goes, made sure of before the work. Raises UsageError."""
    if not model.stages:
        raise UsageError("this network drops no patches, there is nothing to draw: leave out --out")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: give --out a folder")
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise UsageError(f"{out} cannot be written: choose another --out")
    return out / PICTURE


def _content(a: Path, b: Path, comparison: Comparison, picture: Path | None) -> dict[str, object]:
    found = comparison.fidelity
    return {
        "reference": str(a),
        "candidate": str(b),
        "split": comparison.split.name,
        "images": found.images,
        "reference_accuracy": found.reference_accuracy,
        "accuracy": found.accuracy,
        "top1_agreement": found.top1_agreement,
        "cosine": found.cosine,
        "max_abs": found.max_abs,
        "kept_overlap": found.kept_overlap,
        "patches_lost": found.patches_lost,
        "lost_near_border": found.lost_near_border,
        "disagreements": to_json(comparison.disagreements()),
        "picture": None if picture is None else str(picture),
    }


def _print(a: Path, b: Path, comparison: Comparison) -> None:
    found = comparison.fidelity
    rows = [
        ("images", str(found.images)),
        ("top-1 of A", percent(found.reference_accuracy)),
        ("top-1 of B", percent(found.accuracy)),
        ("top-1 agreement", percent(found.top1_agreement)),
        ("cosine", f"{found.cosine:.6f}"),
        ("max abs", f"{found.max_abs:.1e}"),
        ("kept patches", overlaps(found.kept_overlap)),
    ]
    if found.kept_overlap:
        near = _counts(found.lost_near_border) or "not known: only a run ranks its patches"
        rows.append(("patches lost an image", _counts(found.patches_lost)))
        rows.append(("of these near the border", near))
    print_table(shown(f"A {a}, B {b}"), ("measure", "result"), rows)
    differing = comparison.disagreements()
    if not differing:
        click.echo("A and B give every image the same label")
        return
    print_table(
        f"A and B disagree on {len(differing)} of {found.images} images",
        ("image", "true label", "A", "B", "kept patches, last stage"),
        [
            (shown(row.path), row.label, row.reference, row.candidate,
             overlaps(row.kept_overlap[-1:]))
            for row in differing[:LISTED]
        ],
    )  # fmt: skip
    if len(differing) > LISTED:
        click.echo(f"and {len(differing) - LISTED} more: --json lists all")


def _counts(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.2f}" for value in values)
