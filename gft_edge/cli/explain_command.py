"""gft-edge explain."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np

from gft_edge.bundle.images import CocoCategory, DataSource
from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.scores import SCORES
from gft_edge.bundle.specs import Score
from gft_edge.bundle.store import MANIFEST_FILE, is_bundle, read_bundle, write_whole
from gft_edge.cli.options import (
    PATH,
    backend_option,
    data_option,
    json_option,
    split_option,
    threads_option,
)
from gft_edge.cli.output import (
    advance,
    finite,
    made_folder,
    next_line,
    percent,
    print_json,
    print_table,
    progress,
    say,
    show,
    shown,
)
from gft_edge.cli.references import engine_of
from gft_edge.cli.sources import given_source, source_of_run
from gft_edge.datasets import read_split, reporting_split
from gft_edge.errors import ImageError, MissingDependencyError, UsageError
from gft_edge.explanation.curves_page import areas_table
from gft_edge.explanation.deletion import (
    LEAST_IMAGES,
    OWN,
    DeletionReport,
    InsertFrom,
    deletion_report,
)
from gft_edge.explanation.occlusion import (
    cover_side,
    occlude,
)
from gft_edge.explanation.record import footnotes, record_of
from gft_edge.explanation.sheet import explanation_sheet
from gft_edge.explanation.subject import BundleSubject, Subject
from gft_edge.explanation.view import explanations
from gft_edge.runtime.classifier import load_pixels
from gft_edge.runtime.sources import expanded

CONTENT = "explain.json"
CURVES = "curves.json"


@click.command("explain")
@click.argument("run_or_bundle", type=PATH)
@click.argument("paths", nargs=-1)
@click.option("--out", type=PATH, help="Folder for the pictures and their numbers.")
@click.option(
    "--cover",
    type=click.IntRange(0),
    show_default="2, or less on a smaller grid",
    help="Side of what is covered to compare two classes; 0 leaves it out. In a GFT's patches, in "
    "cells of 14 x 14 on any other network.",
)
@data_option
@split_option()
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Images of the split, drawn by --seed.",
)
@click.option(
    "--points", type=click.IntRange(2), default=14, show_default=True, help="Points of each curve."
)
@click.option(
    "--insert-from",
    type=click.Choice(get_args(InsertFrom)),
    default="blur",
    show_default=True,
    help="What insertion starts from.",
)
@click.option(
    "--random-orders",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Random orders an image, of which the mean counts.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@backend_option
@threads_option
@json_option
def command(
    run_or_bundle: Path,
    paths: tuple[str, ...],
    out: Path | None,
    data: Path | None,
    dataset: str | None,
    coco_category: CocoCategory | None,
    as_json: bool,
    backend: str | None,
    threads: int | None,
    **settings: Any,
) -> None:  # fmt: skip
    """What the network looks at: pictures of images, or with --data what its ranking is worth.

    For each IMAGE (files, folders, globs) a picture of what every stage ranks and keeps and what
    speaks for the two likeliest classes. With --data DIR instead, deletion and insertion curves. A
    bundle is asked itself, in its engine; a run in PyTorch.
    """
    if out is None:
        raise UsageError("the pictures need a folder: give --out FOLDER")
    measured = data is not None or dataset is not None
    if bool(paths) == measured:
        raise UsageError(
            "give images to explain or --data FOLDER to measure the ranking on, not both"
            if paths
            else "nothing to explain: name images, or give --data FOLDER to measure the ranking on"
        )
    with _opened(run_or_bundle, backend, threads) as subject:
        if isinstance(subject, BundleSubject) or not measured:
            source = given_source(data, dataset, coco_category)
        else:
            source = source_of_run(run_or_bundle, data, dataset, coco_category)
        if source is None:
            settings["cover"] = cover_side(subject.model, settings["cover"])
        if source is None:
            _explain(subject, run_or_bundle, paths, out, settings, as_json)
        else:
            _measure(subject, run_or_bundle, source, out, settings, as_json)


@contextmanager
def _opened(path: Path, backend: str | None, threads: int | None) -> Iterator[Subject]:
    subject: Subject
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder, give a run or a bundle")
    if is_bundle(path):
        bundle = read_bundle(path)
        subject = BundleSubject(bundle, engine_of(bundle, backend), threads)
    else:
        subject = _opened_run(path, backend, threads)
    try:
        yield subject
    finally:
        subject.close()


def _opened_run(path: Path, backend: str | None, threads: int | None) -> Subject:
    try:
        from gft_edge.explanation.torch_subject import open_run
        from gft_edge.model.checkpoint import SPEC_FILE
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "export") from error
    if not (path / SPEC_FILE).is_file():
        raise UsageError(
            f"{path} is neither a run (no {SPEC_FILE}) nor a bundle (no {MANIFEST_FILE}): give a "
            "folder that gft-edge train or gft-edge export wrote"
        )
    if backend is not None or threads is not None:
        raise UsageError("--backend and --threads are a bundle's: PyTorch computes a run")
    return open_run(path)


def _explain(
    subject: Subject,
    of: Path,
    paths: tuple[str, ...],
    out: Path,
    settings: dict[str, Any],
    as_json: bool,
) -> None:
    images = _each_once(expanded(paths))
    made_folder(out)
    entries: list[dict[str, Any]] = []
    failed = 0
    with progress() as report:
        for place, path in enumerate(images, start=1):
            try:
                pixels = load_pixels(path, subject.model.preprocessing)
            except ImageError as error:
                failed += 1
                say(f"Error: {shown(str(error))}")
                entries.append({"path": path, "error": str(error)})
                continue
            (explained,) = explanations(subject.see(pixels[None]), subject.model.patch_count)
            covered = occlude(subject, pixels, settings["cover"]) if settings["cover"] else None
            name = f"{place:0{len(str(len(images)))}d}-{Path(path).stem}.png"
            notes = footnotes(subject, explained, covered)
            drawn = explanation_sheet(
                shown(Path(path).name), pixels, explained, subject.model, covered, notes
            )
            _write_picture(out / name, drawn)
            entry = record_of(explained, covered, subject.model)
            entries.append({"path": path, "picture": name, **entry})
            report("explain", place, len(images))
    content = {
        "explained": str(of),
        "runs": subject.runs,
        "unavailable": subject.unavailable,
        "patch_grid": subject.model.patch_grid,
        "score": subject.model.score,
        "images": entries,
    }
    _write_json(out / CONTENT, content)
    if as_json:
        print_json(content)
    else:
        _print_explained(subject, of, entries, out)
    if failed:
        say(f"{failed} of {len(images)} images could not be read")
        raise click.exceptions.Exit(1)


def _each_once(paths: Iterator[str]) -> list[str]:
    """The paths without repetitions, which are told."""
    found: dict[str, str] = {}
    for path in paths:
        key = os.path.realpath(path)
        if key in found:
            say(f"{shown(path)} is named twice: it is explained once")
        found.setdefault(key, path)
    return [*found.values()]


def _print_explained(subject: Subject, of: Path, entries: list[dict[str, Any]], out: Path) -> None:
    rows = []
    without = {"gft": "all", "timm": "-", "transfg": "not shown"}[subject.model.family]
    for entry in entries:
        if "error" in entry:
            continue
        best = [f"{p['label']} {percent(p['probability'])}" for p in entry["predictions"]]
        kept = " / ".join(str(len(stage["kept"])) for stage in entry["stages"])
        rows.append(
            (
                shown(entry["path"]),
                best[0],
                best[1] if len(best) > 1 else "-",
                kept or without,
                entry["picture"],
            )
        )
    columns = ("image", "prediction", "runner-up", "kept patches", "picture")
    print_table(shown(f"{of}, {subject.runs}"), columns, rows)
    for reason in subject.unavailable:
        click.echo(f"not available: {reason}")
    click.echo(f"pictures and {CONTENT} in {shown(str(out))}")
    if subject.model.stages:
        next_line(
            f"gft-edge explain {shown(str(of))} --data FOLDER --out {shown(str(out))} "
            "measures whether the ranking means something"
        )


def _measure(
    subject: Subject,
    of: Path,
    data: DataSource,
    out: Path,
    settings: dict[str, Any],
    as_json: bool,
) -> None:
    model = subject.model
    if not model.stages:
        why = "shows no parts" if model.family == "transfg" else "ranks no patches"
        raise UsageError(f"this network {why}: there is no order to delete patches in")
    if subject.unavailable:
        raise UsageError(f"there is no order to delete patches in: {subject.unavailable[-1]}")
    settings["split"] = settings["split"] or reporting_split(data)
    split = read_split(data, settings["split"], model.labels)
    generator = np.random.default_rng(settings["seed"])
    drawn = generator.permutation(len(split.paths))[: settings["limit"]]
    chosen = [split.paths[i] for i in sorted(drawn)]
    pixels = np.stack(
        [load_pixels(path, model.preprocessing, split.crop_bottom_px) for path in chosen]
    )
    others, untold = _other_orders(subject)
    made_folder(out)
    with progress() as bar:
        report = deletion_report(
            subject,
            others,
            pixels,
            min(settings["points"], model.patch_count),
            settings["insert_from"],
            settings["random_orders"],
            settings["seed"],
            advance(bar, f"delete and insert on {settings['split']}", len(pixels)),
        )
    content = {
        "explained": str(of),
        "runs": subject.runs,
        "split": settings["split"],
        "score": model.score,
        "unavailable": untold,
        **to_json(report),
    }
    _write_json(out / CURVES, content)
    if as_json:
        print_json(content)
    else:
        _print_measured(of, report, untold, model.score, out)


def _other_orders(subject: Subject) -> tuple[dict[str, Subject], list[str]]:
    """The same weights ranking by the other scores, and which of these are not to be had."""
    wanted: list[Score] = [name for name in ("class", "gala") if name != subject.model.score]
    if isinstance(subject, BundleSubject):
        return {}, [
            f"the order by {SCORES[name].title}: a bundle ranks by its own score alone; give the run"
            for name in wanted
        ]
    from gft_edge.explanation.torch_subject import NetworkSubject

    assert isinstance(subject, NetworkSubject)
    return {SCORES[name].title: subject.ranking_by(name) for name in wanted}, []


def _print_measured(
    of: Path, report: DeletionReport, untold: list[str], score: Score, out: Path
) -> None:
    own = {OWN: f"{OWN} ({SCORES[score].title}, its own)"}
    table = areas_table(shown(str(of)), report)
    rows = [(own.get(str(order), order), *rest) for order, *rest in table.rows]
    show(dataclasses.replace(table, rows=rows))
    if report.images < LEAST_IMAGES:
        click.echo(
            f"{report.images} images are too few for an interval: take {LEAST_IMAGES} or more"
        )
    else:
        click.echo("in brackets: 95 % of the mean over images; a gain is paired, image by image")
    click.echo(
        "an order: patches that survive more stages first, among these as the last stage to see them "
        "ranks them"
    )
    for reason in untold:
        click.echo(f"not available: {reason}")
    click.echo(
        f"{report.inferences} inferences in {report.seconds:.0f} s; written: "
        f"{shown(str(out / CURVES))}"
    )
    next_line(f"gft-edge report {shown(str(out / CURVES))} draws them")


def _write_picture(path: Path, picture: Any) -> None:
    content = io.BytesIO()
    picture.save(content, "PNG")
    write_whole(path, content.getvalue())


def _write_json(path: Path, content: Any) -> None:
    write_whole(path, (json.dumps(finite(content), indent=2) + "\n").encode())
