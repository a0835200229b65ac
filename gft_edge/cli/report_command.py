"""gft-edge report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.store import write_whole
from gft_edge.cli.options import PATH, data_option, device_options, json_option, split_option
from gft_edge.cli.output import line, made_folder, print_json, progress, say, show, shown, speaks
from gft_edge.cli.profile_tables import print_profile
from gft_edge.cli.sources import images_of_run
from gft_edge.datasets import splits_of
from gft_edge.errors import GftEdgeError, MissingDependencyError, UsageError
from gft_edge.fidelity.confusion import confusion_of
from gft_edge.profiling.report_file import check_comparable, read_profile
from gft_edge.reporting.drawing import check_installed, save
from gft_edge.reporting.page import Page, html_of
from gft_edge.reporting.profile_page import profile_page
from gft_edge.reporting.profile_tables import across_table
from gft_edge.reporting.run_page import Judged, confusion_tables, epochs_table, run_page
from gft_edge.reporting.table import Table

# What a run is judged on where no split is named: the first that is here.
SPLITS = ("test", "val", "train")

Kind = Literal["profile", "benchmark", "curves", "run"]


@dataclass(frozen=True)
class Shown:
    """What a report is made of: what --json prints, what a terminal shows, how its page is drawn."""

    content: dict[str, Any]
    print: Callable[[], None]
    page: Callable[[], Page]


@click.command("report")
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="FILE_OR_FOLDER...")
@click.option("--html", "page_file", type=PATH, metavar="PAGE",
              help="File for the page [default of one report: beside it].")  # fmt: skip
@click.option("--out", type=PATH, metavar="FOLDER", help="Folder for every chart as a PNG file.")
@data_option
@split_option(None)
@device_options
@json_option
def command(
    paths: tuple[Path, ...], page_file: Path | None, out: Path | None, as_json: bool, **options: Any
) -> None:
    """Draw what was measured: a profile, a benchmark, a run, or the curves of explain --data.

    Give the JSON that gft-edge profile, benchmark or explain --data wrote, the folder that holds it,
    or the folder of a run: its page has loss and accuracy, the gradients after train --log-gradients,
    and the confusion on --split, else on the first of test, val and train that is here. Several
    profiles, or several runs, are set side by side.
    """
    kinds = {path: kind_of(path) for path in paths}
    kind = kinds[paths[0]]
    _check(paths, kinds, options)
    if page_file is None and out is None and len(paths) == 1:
        page_file = _beside(paths[0], kind)
    _check_outputs(page_file, out)
    found = _READERS[kind](paths, options)
    written = _written(found, page_file, out) if speaks() else []
    if as_json:
        content = {"kind": kind, "of": [str(path) for path in paths], **found.content}
        print_json({**content, "written": [str(path) for path in written]})
        return
    found.print()
    if written:
        line(f"written: {', '.join(shown(str(path)) for path in written)}")


# The file that a folder holds, and what tells the content of a JSON file.
_FILES: dict[Kind, str] = {
    "benchmark": "benchmark.json", "curves": "curves.json", "profile": "profile.json",
}  # fmt: skip
_KEYS: dict[Kind, str] = {"benchmark": "best", "curves": "fractions"}


def kind_of(path: Path) -> Kind:
    """What a file or a folder holds. A file that cannot be told is a profile, which says more."""
    if path.is_dir():
        return next((kind for kind, name in _FILES.items() if (path / name).is_file()), "run")
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return "profile"
    keys = content if isinstance(content, dict) else {}
    return next((kind for kind, key in _KEYS.items() if key in keys), "profile")


def _file(path: Path, kind: Kind) -> Path:
    return path / _FILES[kind] if path.is_dir() else path


def _beside(path: Path, kind: Kind) -> Path:
    return path / "report.html" if kind == "run" else _file(path, kind).with_suffix(".html")


def _check(paths: Sequence[Path], kinds: dict[Path, Kind], options: dict[str, Any]) -> None:
    first = paths[0]
    for path in paths:
        if kinds[path] != kinds[first]:
            raise UsageError(
                f"{first} is a {kinds[first]} and {path} a {kinds[path]}: report them one by one"
            )
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("one of them is given twice: give it once")
    if len(paths) > 1 and kinds[first] not in ("profile", "run"):
        raise UsageError(f"{paths[1]}: only profiles and runs go side by side, give one")
    for name in ("data", "dataset", "coco_category", "split"):
        if options[name] is not None and (kinds[first] != "run" or len(paths) > 1):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} says which images one run is judged on: leave it out")


def _check_outputs(page_file: Path | None, out: Path | None) -> None:
    """Made sure of before the work."""
    if page_file is not None or out is not None:
        check_installed()
    if page_file is not None and (page_file.is_dir() or not page_file.absolute().parent.is_dir()):
        raise UsageError(
            f"{page_file} cannot be written: give --html a file in a folder that exists"
        )
    if out is not None:
        made_folder(out)


def _written(found: Shown, page_file: Path | None, out: Path | None) -> list[Path]:
    if page_file is None and out is None:
        return []
    page = found.page()
    written = []
    if page_file is not None:
        write_whole(page_file, html_of(page).encode())
        written.append(page_file)
    if out is not None:
        for name, chart in page.charts().items():
            save(chart.figure, out / f"{name}.png")
            written.append(out / f"{name}.png")
    return written


def _profiles(paths: Sequence[Path], options: dict[str, Any]) -> Shown:
    profiles = {shown(str(path)): read_profile(_file(path, "profile")) for path in paths}
    check_comparable(profiles)
    across = across_table(profiles)

    def show_all() -> None:
        for name, profile in profiles.items():
            print_profile(profile, name)
        if len(profiles) > 1:
            show(across)

    content = {"rows": across.records(), "stable": all(one.stable for one in profiles.values())}
    return Shown(content, show_all, lambda: profile_page(profiles))


def _benchmark(paths: Sequence[Path], options: dict[str, Any]) -> Shown:
    from gft_edge.studies.benchmark_page import benchmark_page, read_results

    benchmark, profile = read_results(_file(paths[0], "benchmark"))
    page = benchmark_page(benchmark, profile)
    return Shown({"best": to_json(benchmark.best)}, lambda: _show_table(page, "best"), lambda: page)


def _curves(paths: Sequence[Path], options: dict[str, Any]) -> Shown:
    from gft_edge.explanation.curves_page import curves_page, read_curves

    name, report = read_curves(_file(paths[0], "curves"))
    page = curves_page(shown(name), report)
    return Shown({"explained": name}, lambda: _show_table(page), lambda: page)


def _runs(paths: Sequence[Path], options: dict[str, Any]) -> Shown:
    try:
        from gft_edge.training.gradients import GRADIENTS_FILE, read_norms
        from gft_edge.training.history import read_history
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "export") from error
    histories = {shown(str(run)): read_history(run) for run in paths}
    for name, history in histories.items():
        for gap in history.gaps():
            say(f"{name}: {gap}: left out of the curves")
    content: dict[str, Any] = {"histories": to_json(histories)}
    norms: dict[int, dict[str, float]] = {}
    judged = None
    if len(paths) == 1:
        file = paths[0] / GRADIENTS_FILE
        norms = read_norms(file) if file.is_file() else {}
        if not norms:
            say("no gradient norms: gft-edge train --log-gradients keeps them")
        judged = _judged(paths[0], options)
        content |= {"gradients": norms or None, "confusion": judged and _confusion(judged)}
    columns = {name: history.by_column() for name, history in histories.items()}

    def show_all() -> None:
        for table in [epochs_table(columns), *(confusion_tables(judged) if judged else [])]:
            show(table)

    return Shown(content, show_all, lambda: run_page(columns, norms, judged))


def _judged(run: Path, options: dict[str, Any]) -> Judged | None:
    """None, with a remark, where images that nobody asked for cannot be had."""
    from gft_edge.studies.evaluation import evaluate_run

    given = (options["data"], options["dataset"], options["coco_category"])
    split = options["split"]
    try:
        source = images_of_run(run, *given)
        here = splits_of(source)
        split = split or next((name for name in SPLITS if name in here), SPLITS[0])
        with progress() as report:
            found = evaluate_run(
                run, source, split, progress=report, say=say, device=options["device"],
                workers=options["workers"],
            )  # fmt: skip
    except GftEdgeError as error:
        if options["split"] is not None or any(given):
            raise
        say(f"no confusion matrix: {error}")
        return None
    confusion = confusion_of(found.logits, found.targets, found.spec.labels)
    return Judged(split, found.metrics.images, found.metrics.top1, confusion)


def _confusion(judged: Judged) -> dict[str, Any]:
    return {
        "split": judged.split,
        "images": judged.images,
        "top1": judged.top1,
        "hardest": to_json(judged.confusion.hardest()),
        "pairs": to_json(judged.confusion.pairs()),
    }


_READERS: dict[Kind, Callable[[Sequence[Path], dict[str, Any]], Shown]] = {
    "profile": _profiles, "benchmark": _benchmark, "curves": _curves, "run": _runs,
}  # fmt: skip


def _show_table(page: Page, *without: str) -> None:
    """The first table of the page, with fewer columns."""
    blocks = [block for section in page.sections for block in section.blocks]
    for table in [block for block in blocks if isinstance(block, Table)][:1]:
        show(table.without(*without))
