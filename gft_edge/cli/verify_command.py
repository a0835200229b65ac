"""gft-edge verify."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.images import DataSource
from gft_edge.bundle.json_form import from_json
from gft_edge.bundle.manifest import Manifest
from gft_edge.bundle.specs import ModelSpec, counter
from gft_edge.bundle.store import read_manifest
from gft_edge.cli.answers import Answer, finish, fleet_table, folder_of, only, print_answers
from gft_edge.cli.errand import Word, fetched_folder
from gft_edge.cli.given_images import GivenImages
from gft_edge.cli.on_devices import OnDeviceCommand, OnDevices, on_option
from gft_edge.cli.options import (
    PATH,
    backend_option,
    data_option,
    json_option,
    openvino_device_option,
    split_option,
)
from gft_edge.cli.output import made_folder, print_json, progress, say, show, shown
from gft_edge.cli.references import is_bundle_not_run, open_reference
from gft_edge.cli.sent_data import sent_data
from gft_edge.datasets import Photographs, reporting_split
from gft_edge.datasets.photographs import photographs_split, read_photographs
from gft_edge.errors import UsageError
from gft_edge.fidelity.disagreements import Comparison
from gft_edge.fidelity.noise_floor import NAMES
from gft_edge.fidelity.verify import VerifyReport, verify
from gft_edge.profiling.machine import this_machine, without_dot_products
from gft_edge.reporting.bundle_tables import floor_sentences
from gft_edge.reporting.comparison_sheet import comparison_sheet
from gft_edge.reporting.table import Table, Value, per_stage, percent

PICTURE = "compare.png"
LISTED = 20


@click.command("verify", cls=OnDeviceCommand)
@click.argument("bundle", type=PATH)
@data_option
@split_option()
@click.option("--reference", type=PATH,
              help="Run (needs torch) or bundle of the same network to compare with.")  # fmt: skip
@click.option("--pictures", type=PATH, metavar="DIR",
              help=f"With --reference: folder for {PICTURE}, the patches that each kept.")  # fmt: skip
@click.option("--noise-floor", is_flag=True,
              help="With --reference: also what changes that nobody sees do to it (noise, JPEG, brightness "
              "+ 2 %, a move by one pixel).")  # fmt: skip
@backend_option
@openvino_device_option
@on_option
@json_option
def command(
    bundle: Path,
    given: GivenImages,
    split: str | None,
    reference: Path | None,
    pictures: Path | None,
    noise_floor: bool,
    backend: str | None,
    device: str | None,
    devices: OnDevices | None,
    as_json: bool,
) -> None:
    """Check a bundle on this machine: hashes, structure, golden outputs.

    With --data also its accuracy; with --reference how far it is from another artifact of the same
    network on those images, and on which of them the two disagree. The latter takes any folder of
    photographs: images of no class of the network's do not count for the accuracy. Exits 1 when a check
    fails.

    gft-edge verify bundles/grocery --data grocery --reference runs/grocery --pictures pictures
    """
    manifest = read_manifest(bundle)
    if pictures is not None:
        _check_picture(reference, manifest.model)
    if noise_floor and (reference is None or not given.any()):
        raise UsageError(
            "--noise-floor changes the reference's images: give --data and --reference too"
        )
    if devices is not None:
        words = _words(devices, given, split, manifest.model, reference)
        _on(devices, words, bundle, reference, backend, pictures, as_json)
        return
    source = given.source()
    changes = tuple(NAMES) if noise_floor else ()
    images = None
    if source is not None:
        chosen = photographs_split(source, split, reporting_split)
        images = read_photographs(source, chosen, manifest.model.labels)
        for remark in images.remarks:
            say(remark)
        _say_what_accuracy_is_of(images, reference)
    drawn: list[Comparison] = []
    with ExitStack() as stack:
        expected = open_reference(reference, bundle, manifest, stack) if reference else None
        # Made sure of before the work, and not before it is known that there will be some.
        folder = made_folder(pictures, "--pictures") if pictures and images else None
        report = stack.enter_context(progress())
        count = counter(report, f"verify on {images.name}", len(images.paths)) if images else None
        result = verify(bundle, backend, images, expected, count, drawn.append, changes, device)
    picture = None
    if folder is not None and drawn:
        picture = folder / PICTURE
        comparison_sheet(drawn[0], manifest.model).save(picture)
    on_cpu = result.integer_layers is not None and device in (None, "CPU")
    if on_cpu and (slow := without_dot_products(this_machine())):
        result = dataclasses.replace(result, warnings=(*result.warnings, slow))
    if as_json:
        content = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
        print_json(
            {**content, "device": device, "picture": None if picture is None else str(picture)}
        )
    else:
        title = str(bundle) if device is None else f"{bundle} on {device}"
        _show(title, result, manifest, picture)
    if result.verdict == "fail":
        raise click.exceptions.Exit(1)


def _show(title: str, result: VerifyReport, manifest: Manifest, picture: Path | None) -> None:
    show(_checks(title, result, manifest), *_noise_floors(result), *_disagreements(result))
    for failure in result.failures:
        say(f"Error: {failure}")
    for reason in result.skipped:
        say(f"skipped: {reason}")
    for warning in result.warnings:
        say(f"Warning: {warning}")
    if picture is not None:
        show(f"picture: {picture}")


def _words(
    devices: OnDevices,
    given: GivenImages,
    split: str | None,
    model: ModelSpec,
    reference: Path | None,
) -> list[Word]:
    """The words for a device: of the data only the images that it reads travel. Raises UsageError."""
    if reference is not None and not is_bundle_not_run(reference):
        raise UsageError(
            f"{reference} is a run, which needs torch: with --on give the fp32 bundle as --reference"
        )

    def read(source: DataSource) -> Photographs:
        chosen = photographs_split(source, split, reporting_split)
        return read_photographs(source, chosen, model.labels)

    replaced = sent_data(devices, given, read)
    return devices.words(sent=("bundle", "reference"), out="pictures", replaced=replaced)


def _on(
    devices: OnDevices,
    words: list[Word],
    bundle: Path,
    reference: Path | None,
    backend: str | None,
    pictures: Path | None,
    as_json: bool,
) -> None:
    bundles = [bundle, *([reference] if reference else [])]
    several = len(devices.hosts) > 1
    answers = devices.do(words, bundles, backend, fetched_folder(pictures, several))
    if not several:
        only(answers)
    manifest = read_manifest(bundle)
    if as_json:
        print_answers(answers)
    else:
        for answer in answers:
            if (told := answer.document) is not None:
                picture = (
                    None if pictures is None else folder_of(pictures, answer, several) / PICTURE
                )
                title = f"{bundle} on {answer.host}"
                _show(title, report_in(told), manifest, picture)
        if several:
            columns = ("verdict", "top-1", "agreement", "kept patches", "INT8 layers in integers")
            show(fleet_table(str(bundle), columns, answers, _row))
    finish(answers)


def report_in(told: dict[str, Any]) -> VerifyReport:
    """The report in a document of verify --json."""
    names = {each.name for each in dataclasses.fields(VerifyReport)}
    return from_json(VerifyReport, {k: v for k, v in told.items() if k in names}, "the report")


def _row(answer: Answer) -> list[tuple[Value, ...]]:
    found = report_in(answer.document)
    return [(
        found.verdict, percent(found.top1), percent(found.top1_agreement), per_stage(found.kept_overlap),
        found.integer_layers,
    )]  # fmt: skip


def _say_what_accuracy_is_of(images: Photographs, reference: Path | None) -> None:
    """Say which images the accuracy is of, where these are not all."""
    if not images.labelled:
        more = "" if reference else "; give --reference RUN to see agreement and kept patches"
        say(f"the accuracy is not known: no image has a class of the network's{more}")
    elif images.labelled < len(images.paths):
        say(f"the accuracy is that of the other {images.labelled:,} images")


def _check_picture(reference: Path | None, model: ModelSpec) -> None:
    """Raise UsageError where there is nothing to draw."""
    if reference is None:
        raise UsageError("--pictures shows what two artifacts kept: give --reference too")
    if not model.stages:
        raise UsageError(
            "this network drops no patches, there is nothing to draw: leave out --pictures"
        )


def _checks(title: str, result: VerifyReport, manifest: Manifest) -> Table:
    rows: list[tuple[str, str]] = [("verdict", result.verdict)]
    if result.golden is not None:
        rows.append(("golden top-1 agreement", percent(result.golden.top1_agreement)))
        rows.append(("golden kept patches", per_stage(result.golden.kept_overlap)))
    if result.labelled is not None:
        rows.append(("images", str(result.images)))
        if result.labelled < result.images:
            rows.append(("of a class of the network's", str(result.labelled)))
        rows.append(("top-1", percent(result.top1)))
    if result.top1_agreement is not None:
        rows += [
            ("reference top-1", percent(result.reference_top1)),
            ("top-1 agreement", percent(result.top1_agreement)),
            ("kept patches", per_stage(result.kept_overlap)),
            ("cosine", f"{result.cosine:.6f}"),
            ("max abs", f"{result.max_abs:.1e}"),
        ]
    if result.ece is not None:
        rows.append(("calibration error (ECE)", percent(result.ece)))
        rows.append(("reference ECE", percent(result.reference_ece)))
    if result.kept_overlap:
        lost, near = (
            " / ".join(f"{value:.2f}" for value in values)
            for values in (result.patches_lost or (), result.lost_near_border or ())
        )
        rows.append(("patches lost an image", lost))
        rows.append(("of these near the border", near or "not known: only a run ranks its patches"))
    if result.integer_layers is not None:
        rows.append(("INT8 layers computed in integers", str(result.integer_layers)))
    notes: list[str] = []
    if result.noise_floor and result.patches_lost is not None and result.cosine is not None:
        notes = floor_sentences(manifest, result.cosine, result.patches_lost, result.noise_floor)
    return Table(title, ("check", "result"), rows, notes)


def _noise_floors(result: VerifyReport) -> list[Table]:
    """What changes that nobody sees do to the reference, beside what the bundle does."""
    if not result.noise_floors:
        return []
    all_rows = [(NAMES[floor.change], floor) for floor in result.noise_floors] + [
        ("the bundle, images unchanged", result)
    ]
    rows = [
        (
            name,
            percent(found.top1_agreement),
            f"{found.cosine:.6f}",
            per_stage(found.kept_overlap),
            " / ".join(f"{lost:.1f}" for lost in found.patches_lost or ()) or "-",
        )
        for name, found in all_rows
    ]
    heads = ("the images after", "top-1 agreement", "cosine", "kept patches", "exchanged an image")
    return [Table("The reference against itself", heads, rows)]


def _disagreements(result: VerifyReport) -> list[Table | str]:
    """List what the two artifacts classify differently; nothing where there is one alone."""
    differing = result.disagreements
    if differing is None:
        return []
    if not differing:
        return ["A (the reference) and B (the bundle) give every image the same label"]
    rows = [
        (shown(row.path), row.label, row.reference, row.candidate, per_stage(row.kept_overlap[-1:]))
        for row in differing[:LISTED]
    ]
    title = f"A (the reference) and B (the bundle) disagree on {len(differing)} of {result.images} images"
    more = len(differing) - LISTED
    notes = [f"and {more} more: --json lists all"] if more > 0 else []
    heads = ("image", "true label", "A", "B", "kept patches, last stage")
    return [Table(title, heads, rows, notes)]
