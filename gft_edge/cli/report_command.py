"""gft-edge report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.store import write_whole
from gft_edge.cli.options import (
    PATH,
    data_option,
    device_options,
    json_option,
    refuse_given,
    split_option,
)
from gft_edge.cli.output import (
    made_folder,
    print_json,
    progress,
    say,
    show,
    shown,
    speaks,
    writable_file,
)
from gft_edge.datasets import splits_of
from gft_edge.errors import GftEdgeError, UsageError
from gft_edge.fidelity.confusion import confusion_of
from gft_edge.profiling.report_file import check_comparable, read_profile
from gft_edge.reporting.drawing import check_installed, save
from gft_edge.reporting.page import Page, html_of
from gft_edge.reporting.profile_page import profile_page
from gft_edge.reporting.profile_tables import across_table, profile_blocks
from gft_edge.reporting.run_page import RunResult, confusion_tables, epochs_table, run_page
from gft_edge.reporting.table import Table

# What a run is judged on where no split is named: the first that is here.
SPLITS = ("test", "val", "train")


@dataclass(frozen=True)
class Reported:
    """What is known of the given files: for --json, for a terminal, and how their page is drawn."""

    content: dict[str, Any]
    blocks: Sequence[Table | str]
    page: Callable[[], Page]


@dataclass(frozen=True)
class Kind:
    """What can be reported: the file that its folder holds, a key that tells its JSON, its reader."""

    name: str
    file: str | None
    key: str | None
    read: Callable[[Sequence[Path], dict[str, Any]], Reported]


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

    gft-edge report profile.json orin.json --html profile.html
    """
    kind = _kind(paths)
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("one of them is given twice: give it once")
    if len(paths) > 1 and kind.name not in ("profile", "run"):
        raise UsageError(f"{paths[1]}: only profiles and runs go side by side, give one")
    if len(paths) > 1 or kind.name != "run":
        refuse_given("data", "dataset", "coco_category", "split",
                     why="says which images one run is judged on: leave it out")  # fmt: skip
    files = [path / kind.file if kind.file and path.is_dir() else path for path in paths]
    if page_file is None and out is None and len(paths) == 1:
        page_file = files[0].with_suffix(".html") if kind.file else paths[0] / "report.html"
    # Made sure of before the work.
    if page_file is not None or out is not None:
        check_installed()
    if page_file is not None:
        writable_file(page_file, "--html")
    if out is not None:
        made_folder(out)
    report = kind.read(files, options)
    written = _written(report, page_file, out) if speaks() else []
    if as_json:
        content = {"kind": kind.name, "of": [str(path) for path in paths], **report.content}
        print_json({**content, "written": written})
        return
    show(*report.blocks)
    if written:
        show(f"written: {', '.join(written)}")


def _kind(paths: Sequence[Path]) -> Kind:
    """What all the files and folders hold. Raises UsageError where it is not one."""
    found = [_kind_of(path) for path in paths]
    for path, kind in zip(paths, found, strict=True):
        if kind != found[0]:
            raise UsageError(
                f"{paths[0]} is a {found[0].name} and {path} a {kind.name}: report them one by one"
            )
    return found[0]


def _kind_of(path: Path) -> Kind:
    """Tell what a file or folder holds. A file that cannot be told is a profile, which then says more."""
    *others, profile, run = KINDS
    if path.is_dir():
        return next((kind for kind in (*others, profile) if (path / str(kind.file)).is_file()), run)
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return profile
    keys = content if isinstance(content, dict) else {}
    return next((kind for kind in others if kind.key in keys), profile)


def _written(report: Reported, page_file: Path | None, out: Path | None) -> list[str]:
    if page_file is None and out is None:
        return []
    page = report.page()
    written = []
    if page_file is not None:
        write_whole(page_file, html_of(page).encode())
        written.append(str(page_file))
    if out is not None:
        for name, chart in page.charts().items():
            save(chart.figure, out / f"{name}.png")
            written.append(str(out / f"{name}.png"))
    return written


def _profiles(files: Sequence[Path], options: dict[str, Any]) -> Reported:
    profiles = {shown(file): read_profile(file) for file in files}
    check_comparable(profiles)
    across = across_table(profiles)
    blocks = [block for name, one in profiles.items() for block in profile_blocks(one, name)]
    content = {"rows": across.records(), "stable": all(one.stable for one in profiles.values())}
    beside = [across] if len(profiles) > 1 else []
    return Reported(content, [*blocks, *beside], lambda: profile_page(profiles))


def _benchmark(files: Sequence[Path], options: dict[str, Any]) -> Reported:
    from gft_edge.studies.benchmark_page import benchmark_page, read_results

    benchmark, profile = read_results(files[0])
    page = benchmark_page(benchmark, profile)
    return Reported({"best": benchmark.best}, _tables(page, "best"), lambda: page)


def _curves(files: Sequence[Path], options: dict[str, Any]) -> Reported:
    from gft_edge.explanation.curves_page import curves_page, read_curves

    name, report = read_curves(files[0])
    page = curves_page(shown(name), report)
    return Reported({"explained": name}, _tables(page), lambda: page)


def _tables(page: Page, *without: str) -> list[Table]:
    """The first table of the page, with fewer columns."""
    blocks = [block for section in page.sections for block in section.blocks]
    return [block.without(*without) for block in blocks if isinstance(block, Table)][:1]


def _runs(runs: Sequence[Path], options: dict[str, Any]) -> Reported:
    from gft_edge.training.gradients import GRADIENTS_FILE, read_norms
    from gft_edge.training.history import read_history

    histories = {shown(run): read_history(run) for run in runs}
    for name, history in histories.items():
        for gap in history.gaps():
            say(f"{name}: {gap}: left out of the curves")
    columns = {name: history.by_column() for name, history in histories.items()}
    content: dict[str, Any] = {"histories": histories}
    if len(runs) > 1:
        return Reported(content, [epochs_table(columns)], lambda: run_page(columns))
    file = runs[0] / GRADIENTS_FILE
    norms = read_norms(file) if file.is_file() else {}
    if not norms:
        say("no gradient norms: gft-edge train --log-gradients keeps them")
    result = _evaluated(runs[0], options)
    content |= {"gradients": norms or None, "confusion": result and result.record()}
    tables = [epochs_table(columns), *(confusion_tables(result) if result else [])]
    return Reported(content, tables, lambda: run_page(columns, norms, result))


def _evaluated(run: Path, options: dict[str, Any]) -> RunResult | None:
    """Evaluate the run; None, with a remark, where images that nobody asked for cannot be had."""
    from gft_edge.studies.evaluation import evaluate_run

    given, split = options["given"], options["split"]
    how = {name: options[name] for name in ("device", "workers")}
    try:
        source = given.of_run(run)
        here = splits_of(source)
        chosen = split or next((name for name in SPLITS if name in here), SPLITS[0])
        with progress() as report:
            found = evaluate_run(run, source, chosen, progress=report, say=say, **how)
    except GftEdgeError as error:
        if split is not None or given.any():
            raise
        say(f"no confusion matrix: {error}")
        return None
    confusion = confusion_of(found.logits, found.targets, found.case.spec.labels)
    return RunResult(chosen, found.metrics.images, found.metrics.top1, confusion)


KINDS = (
    Kind("benchmark", "benchmark.json", "best", _benchmark),
    Kind("curves", "curves.json", "fractions", _curves),
    Kind("profile", "profile.json", None, _profiles),
    Kind("run", None, None, _runs),
)
