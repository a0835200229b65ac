"""gft-edge explain."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import click

from gft_edge.bundle.images import DataSource
from gft_edge.bundle.json_form import from_json, json_text, to_json
from gft_edge.bundle.scores import SCORES
from gft_edge.bundle.specs import ModelSpec, Score, counter
from gft_edge.bundle.store import read_bundle, read_manifest, write_whole
from gft_edge.cli.answers import finish, folder_of, only, print_answers
from gft_edge.cli.errand import fetched_folder
from gft_edge.cli.given_images import GivenImages
from gft_edge.cli.on_devices import OnDeviceCommand, OnDevices, on_option
from gft_edge.cli.options import (
    PATH,
    backend_option,
    data_option,
    json_option,
    openvino_device_option,
    seed_option,
    split_option,
    threads_option,
)
from gft_edge.cli.output import (
    made_folder,
    next_line,
    print_json,
    progress,
    quoted,
    say,
    show,
    shown,
)
from gft_edge.cli.references import engine_of, is_bundle_not_run
from gft_edge.cli.sent_data import sent_data
from gft_edge.datasets import Split, read_split, reporting_split
from gft_edge.errors import UsageError
from gft_edge.explanation.curves_page import areas_table
from gft_edge.explanation.deletion import LEAST_IMAGES, OWN, DeletionReport, InsertFrom
from gft_edge.explanation.explain import (
    check_ranking,
    drawn_pixels,
    explain_images,
    measure_ranking,
)
from gft_edge.explanation.occlusion import cover_side
from gft_edge.explanation.subject import BundleSubject, Subject
from gft_edge.fidelity.verify import verify_once
from gft_edge.reporting.table import Table, percent
from gft_edge.runtime.sources.images import expanded

CONTENT = "explain.json"
CURVES = "curves.json"


@click.command("explain", cls=OnDeviceCommand)
@click.argument("run_or_bundle", type=PATH)
@click.argument("paths", nargs=-1)
@click.option("--out", type=PATH, metavar="DIR", help="Folder for the pictures and their numbers.")
@click.option("--cover", type=click.IntRange(0), show_default="2, or less on a smaller grid",
              help="Side of the square that is covered to compare two classes, in a GFT's patches, in "
              "cells of 14 x 14 on any other network; 0 covers nothing.")  # fmt: skip
@data_option
@split_option()
@click.option("--limit", type=click.IntRange(1), default=64, show_default=True,
              help="Number of images of the split, drawn by --seed.")  # fmt: skip
@click.option("--points", type=click.IntRange(2), default=14, show_default=True,
              help="Number of points of each curve.")  # fmt: skip
@click.option("--insert-from", type=click.Choice(get_args(InsertFrom)), default="blur",
              show_default=True,
              help="Image that insertion starts from: the blurred one, or its mean colour.")  # fmt: skip
@click.option("--random-orders", type=click.IntRange(1), default=3, show_default=True,
              help="Number of random orders an image, of which the mean counts.")  # fmt: skip
@seed_option
@backend_option
@threads_option
@openvino_device_option
@on_option
@json_option
def command(
    run_or_bundle: Path,
    paths: tuple[str, ...],
    out: Path | None,
    given: GivenImages,
    backend: str | None,
    threads: int | None,
    device: str | None,
    devices: OnDevices | None,
    as_json: bool,
    cover: int | None,
    **settings: Any,
) -> None:
    """Show what the network looks at: pictures of images, or with --data what its ranking is worth.

    For each IMAGE (files, folders, globs) a picture of what every stage ranks and keeps and what
    speaks for the two likeliest classes. With --data DIR instead, deletion and insertion curves. A
    bundle is asked itself, in its engine; a run in PyTorch.

    gft-edge explain bundles/grocery photo.jpg --out looks
    """
    if out is None:
        raise UsageError("the pictures need a folder: give --out FOLDER")
    measured = given.data is not None or given.dataset is not None
    if bool(paths) == measured:
        raise UsageError(
            "give images to explain or --data FOLDER to measure the ranking on, not both"
            if paths
            else "nothing to explain: name images, or give --data FOLDER to measure the ranking on"
        )
    if devices is not None:
        _on(devices, run_or_bundle, paths, out, given, settings["split"], backend, as_json)
        return
    with closing(_opened(run_or_bundle, backend, threads, device)) as subject:
        of_bundle = isinstance(subject, BundleSubject)
        source = given.source() if of_bundle or not measured else given.of_run(run_or_bundle)
        if source is None:
            cover = cover_side(subject.model, cover)
            _explain(subject, run_or_bundle, paths, out, cover, as_json)
        else:
            _measure(subject, run_or_bundle, source, out, settings, as_json)


def _opened(path: Path, backend: str | None, threads: int | None, device: str | None) -> Subject:
    if is_bundle_not_run(path):
        bundle = read_bundle(path)
        verify_once(bundle, backend, device)
        return BundleSubject(bundle, engine_of(bundle, backend), threads, device)
    from gft_edge.explanation.torch_subject import open_run

    if any(option is not None for option in (backend, threads, device)):
        raise UsageError("--backend, --threads and --device are a bundle's: PyTorch computes a run")
    return open_run(path)


def _explain(
    subject: Subject, of: Path, paths: tuple[str, ...], out: Path, cover: int, as_json: bool
) -> None:
    images = _each_once(expanded(paths, say))
    made_folder(out)
    entries = []
    with progress() as report:
        for entry in explain_images(subject, images, out, cover):
            entries.append(entry)
            if "error" in entry:
                say(f"Error: {shown(entry['error'])}")
            report("explain", len(entries), len(images))
    content = {
        "explained": str(of),
        "runs": subject.runs,
        "unavailable": subject.unavailable,
        "patch_grid": subject.model.patch_grid,
        "score": subject.model.score,
        "images": entries,
    }
    write_whole(out / CONTENT, f"{json_text(content)}\n".encode())
    if as_json:
        print_json(content)
    else:
        _show_explained(content, of, subject.model, out)
    failed = sum("error" in entry for entry in entries)
    if failed:
        say(f"{failed} of {len(images)} images could not be read")
        raise click.exceptions.Exit(1)


def _show_explained(
    content: dict[str, Any], of: Path, model: ModelSpec, out: Path, host: str | None = None
) -> None:
    show(_explained(content, of, model))
    show(*(f"not available: {reason}" for reason in content["unavailable"]))
    read = len([entry for entry in content["images"] if "error" not in entry])
    show(f"{'pictures and ' if read else ''}{CONTENT} in {shown(out)}")
    if read and model.stages:
        next_line(
            f"gft-edge explain {quoted(of)} --data FOLDER --out {quoted(out)}"
            f"{'' if host is None else f' --on {quoted(host)}'} measures whether the ranking means something"
        )


def _each_once(paths: Iterator[str]) -> list[str]:
    """Each path once; a repetition is told."""
    found: dict[str, str] = {}
    for path in paths:
        key = os.path.realpath(path)
        if key in found:
            say(f"{shown(path)} is named twice: it is explained once")
        found.setdefault(key, path)
    return [*found.values()]


def _explained(content: dict[str, Any], of: Path, model: ModelSpec) -> Table:
    """A table with a row for each image that could be read."""
    without = {"gft": "all", "timm": "-", "transfg": "not shown"}[model.family]
    rows = []
    for entry in content["images"]:
        if "error" in entry:
            continue
        best = [f"{p['label']} {percent(p['probability'])}" for p in entry["predictions"]]
        kept = " / ".join(str(len(stage["kept"])) for stage in entry["stages"])
        runner_up = best[1] if len(best) > 1 else None
        rows.append((shown(entry["path"]), best[0], runner_up, kept or without, entry["picture"]))
    columns = ("image", "prediction", "runner-up", "kept patches", "picture")
    return Table(shown(f"{of}, {content['runs']}"), columns, rows)


def _measure(
    subject: Subject,
    of: Path,
    data: DataSource,
    out: Path,
    settings: dict[str, Any],
    as_json: bool,
) -> None:
    check_ranking(subject)
    name = settings.pop("split") or reporting_split(data)
    split = read_split(data, name, subject.model.labels)
    for remark in split.remarks:
        say(remark)
    pixels = drawn_pixels(split, subject.model, settings.pop("limit"), settings["seed"])
    made_folder(out)
    with progress() as bar:
        count = counter(bar, f"delete and insert on {name}", len(pixels))
        report, missing = measure_ranking(subject, pixels, advance=count, **settings)
    content = {
        "explained": str(of),
        "runs": subject.runs,
        "split": name,
        "score": subject.model.score,
        "unavailable": missing,
        **to_json(report),
    }
    write_whole(out / CURVES, f"{json_text(content)}\n".encode())
    if as_json:
        print_json(content)
    else:
        _show_curves(content, of, out)


def _show_curves(content: dict[str, Any], of: Path, out: Path) -> None:
    names = {each.name for each in dataclasses.fields(DeletionReport)}
    report = from_json(
        DeletionReport, {k: v for k, v in content.items() if k in names}, "the curves"
    )
    show(
        _areas(of, report, content["score"]),
        *(f"not available: {reason}" for reason in content["unavailable"]),
        f"{report.inferences} inferences in {report.seconds:.0f} s; written: {out / CURVES}",
    )
    next_line(f"gft-edge report {quoted(out / CURVES)} draws them")


def _on(
    devices: OnDevices,
    bundle: Path,
    paths: tuple[str, ...],
    out: Path,
    given: GivenImages,
    split: str | None,
    backend: str | None,
    as_json: bool,
) -> None:
    """Have devices explain, and fetch pictures and numbers."""
    if not is_bundle_not_run(bundle):
        raise UsageError(f"{bundle} is a run, which needs torch: with --on give its bundle")
    model = read_manifest(bundle).model

    def read(source: DataSource) -> Split:
        return read_split(source, split or reporting_split(source), model.labels)

    replaced = {"paths": devices.sources(paths), **sent_data(devices, given, read)}
    words = devices.words(sent=("run_or_bundle",), out="out", replaced=replaced)
    made_folder(out)
    several = len(devices.hosts) > 1
    answers = devices.do(words, [bundle], backend, fetched_folder(out, several))
    if not several:
        only(answers)
    for answer in answers:
        if (content := answer.document) is None:
            continue
        folder = folder_of(out, answer, several)
        # The names of what was sent are the user's.
        told = {**content, "host": answer.host}
        write_whole(folder / (CONTENT if paths else CURVES), f"{json_text(told)}\n".encode())
        if not as_json and paths:
            _show_explained(content, bundle, model, folder, answer.host)
        elif not as_json:
            _show_curves(content, bundle, folder)
    if as_json:
        print_answers(answers)
    finish(answers)


def _areas(of: Path, report: DeletionReport, score: Score) -> Table:
    """The areas under the curves, and how to read them."""
    own = {OWN: f"{OWN} ({SCORES[score].title}, its own)"}
    table = areas_table(shown(of), report)
    intervals = (
        f"{report.images} images are too few for an interval: take {LEAST_IMAGES} or more"
        if report.images < LEAST_IMAGES
        else "in brackets: 95 % of the mean over images; a gain is paired, image by image"
    )
    orders = (
        "an order: patches that survive more stages first, among these as the last stage to see them "
        "ranks them"
    )
    rows = [(own.get(str(order), order), *rest) for order, *rest in table.rows]
    return dataclasses.replace(table, rows=rows, notes=[intervals, orders])
