"""gft-edge profile."""

from __future__ import annotations

import dataclasses
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.specs import Progress
from gft_edge.bundle.store import is_bundle, read_bundle, write_whole
from gft_edge.cli.options import (
    PATH,
    backend_option,
    measuring_options,
    percentiles,
    threads_option,
)
from gft_edge.cli.output import next_line, print_json, progress, say, shown
from gft_edge.cli.profile_tables import print_across, print_profile
from gft_edge.errors import MissingDependencyError, UsageError
from gft_edge.profiling.profile import ProfileRequest, check_request, profile
from gft_edge.profiling.report import Profile, check_comparable, read_profile, write_profile
from gft_edge.reporting.layer_chart import breakdown_sheet
from gft_edge.reporting.profile_page import profile_page

# Options that mean nothing for earlier reports.
MEASURING = ("images", "baseline", "baseline_out", "batch", "threads", "backend", "layers",
             "cuda_graph", "min_samples")  # fmt: skip


@click.command("profile")
@click.argument("bundles", type=PATH, nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--images", type=PATH, help="Folder of photographs [default: golden frames].")
@measuring_options
@click.option("--baseline", metavar="BUNDLE|TIMM_MODEL",
              help="Dense network to measure beside them; a timm model is exported alike.")  # fmt: skip
@click.option("--baseline-out", type=PATH, help="Keep the exported baseline in this folder.")
@click.option("--hint", type=click.Choice(["latency", "throughput"]), default="latency",
              show_default=True, help="throughput: requests in flight, OpenVINO only.")  # fmt: skip
@threads_option
@click.option("--batch", type=int, help="Images a call: what the bundles were exported for.")
@backend_option
@click.option("--cuda-graph", is_flag=True, help="TensorRT: replay launches from one recording.")
@click.option("--layers", is_flag=True, help="Where the time goes, in a run of its own.")
@click.option("--picture", type=PATH, metavar="FILE", help="Draw the layers as SVG.")
@click.option("--load", is_flag=True, help="BUNDLE... are JSON files of earlier profiles.")
@click.option("--html", "html_file", type=PATH, metavar="FILE", help="Write it as one page.")
@click.option(
    "--json", "json_file", type=PATH, metavar="FILE", help="Write the report; - for stdout."
)
def command(bundles: tuple[Path, ...], load: bool, **options: Any) -> None:
    """Latency of bundles on this machine, measured in turn, with what makes it trustworthy.

    engine is the engine's own synchronous inference, end to end goes from encoded image or decoded
    frame to labels. UNSTABLE numbers say what may have disturbed them. --load compares earlier
    reports that measured the same. Ctrl-C reports the samples so far.
    """
    _check_files(options["json_file"], options["html_file"], options["picture"])
    if load:
        _load(bundles, options)
        return
    if options["picture"] is not None and not options["layers"]:
        raise UsageError("--picture draws layers: give --layers too")
    if options["baseline"] is None and options["baseline_out"] is not None:
        raise UsageError("--baseline-out keeps an exported baseline: give --baseline too")
    with ExitStack() as stack:
        request = _request(bundles, options)
        report = stack.enter_context(progress())
        if options["baseline"] is not None:
            check_request(request)
            baseline = _baseline(bundles[0], options, report, stack)
            request = dataclasses.replace(request, baseline=baseline)
        result = profile(request, report, say)
    _deliver({"": result}, options)
    if not result.complete:
        say("interrupted: these are the samples so far")
        raise click.exceptions.Exit(1)


def _request(bundles: tuple[Path, ...], options: dict[str, Any]) -> ProfileRequest:
    return ProfileRequest(
        bundles=bundles,
        images=options["images"],
        duration_s=options["duration"],
        warmup_ms=options["warmup_ms"],
        min_samples=options["min_samples"],
        percentiles=percentiles(options["percentiles"]),
        hint=options["hint"],
        threads=options["threads"],
        batch=options["batch"],
        backend=options["backend"],
        cuda_graph=options["cuda_graph"],
        layers=options["layers"],
    )


def _baseline(like: Path, options: dict[str, Any], report: Progress, stack: ExitStack) -> Path:
    """A bundle as it is; a timm model exported like the first bundle."""
    given, out = options["baseline"], options["baseline_out"]
    if is_bundle(Path(given)):
        if out is not None:
            raise UsageError(f"{given} is a bundle already: leave --baseline-out out")
        return Path(given)
    try:
        from gft_edge.export.baseline import dense_bundle
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "export") from error
    if out is None:
        out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gft-edge-"))) / given
    dense_bundle(read_bundle(like), given, out, report, say)
    return Path(out)


def _check_files(*files: Path | None) -> None:
    """Made sure of before minutes of measuring."""
    for file in files:
        if file is None or str(file) == "-":
            continue
        if file.is_dir() or not file.parent.is_dir():
            raise UsageError(f"{file} cannot be written: give a file in a folder that exists")


def _load(files: tuple[Path, ...], options: dict[str, Any]) -> None:
    for name in MEASURING:
        if options[name]:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"--load measures nothing: leave {flag} out, or --load")
    profiles = {str(file): read_profile(file) for file in files}
    check_comparable(profiles)
    _deliver(profiles, options)


def _deliver(profiles: dict[str, Profile], options: dict[str, Any]) -> None:
    """Print the tables and write what was asked for; profiles are keyed by the file they came from.

    Printed first: a disk that is full by now loses no measurement.
    """
    (first, *others), to_stdout = profiles.values(), str(options["json_file"]) == "-"
    if others and options["json_file"] is not None:
        raise UsageError("--json writes one profile: leave it out with --load")
    if to_stdout:
        print_json(to_json(first))
    else:
        for name, result in profiles.items():
            print_profile(result, name)
        if others:
            print_across(profiles)
    written = []
    if options["json_file"] is not None and not to_stdout:
        write_profile(first, options["json_file"])
        written.append(options["json_file"])
    if options["html_file"] is not None:
        write_whole(options["html_file"], profile_page(profiles).encode())
        written.append(options["html_file"])
    if options["picture"] is not None:
        write_whole(options["picture"], _picture(profiles).encode())
        written.append(options["picture"])
    for file in written:
        click.echo(f"written: {shown(str(file))}", err=to_stdout)
    if options["json_file"] is None and not others:
        next_line("the same with --json FILE keeps the samples for --load, --html FILE draws them")


def _picture(profiles: dict[str, Profile]) -> str:
    found = {
        f"{name} {report.bundle}".strip(): report.layers
        for name, profile in profiles.items()
        for report in profile.reports
        if report.layers is not None
    }
    if not found:
        raise UsageError("--picture draws layers, and there are none: profile with --layers")
    return breakdown_sheet(found)
