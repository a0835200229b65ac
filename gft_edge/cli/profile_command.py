"""gft-edge profile."""

from __future__ import annotations

import dataclasses
import shlex
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.specs import Progress
from gft_edge.bundle.store import is_bundle, read_bundle
from gft_edge.cli.options import (
    PATH,
    backend_option,
    json_option,
    measuring_options,
    percentiles,
    threads_option,
)
from gft_edge.cli.output import next_line, print_json, progress, say, shown
from gft_edge.cli.profile_tables import print_profile
from gft_edge.errors import MissingDependencyError, UsageError
from gft_edge.profiling.profile import ProfileRequest, check_request, profile
from gft_edge.profiling.report_file import write_profile


@click.command("profile")
@click.argument("bundles", type=PATH, nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--photos", "images", type=PATH, metavar="DIR",
              help="Folder of photographs to measure on [default: the bundle's golden frames].")  # fmt: skip
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
@click.option("--out", type=PATH, metavar="FILE", help="Write the JSON, with every sample.")
@json_option
def command(bundles: tuple[Path, ...], out: Path | None, as_json: bool, **options: Any) -> None:
    """Latency of bundles on this machine, measured in turn, with what makes it trustworthy.

    engine is the engine's own synchronous inference, end to end goes from encoded image or decoded
    frame to labels. UNSTABLE numbers say what may have disturbed them. gft-edge report draws the
    file of --out, and compares several. Ctrl-C reports the samples so far.
    """
    # Made sure of before minutes of measuring.
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise UsageError(f"{out} cannot be written: give --out a file in a folder that exists")
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
    # Printed first: a disk that is full by now loses no measurement.
    if as_json:
        print_json(to_json(result))
    else:
        print_profile(result)
    if out is not None:
        write_profile(result, out)
        click.echo(f"written: {shown(str(out))}", err=as_json)
    if not as_json and out is None:
        next_line("the same with --out FILE keeps the samples, gft-edge report FILE draws them")
    elif not as_json:
        next_line(f"gft-edge report {shlex.quote(shown(str(out)))}")
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
