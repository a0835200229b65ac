"""gft-edge profile."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.json_form import from_json
from gft_edge.bundle.specs import Progress
from gft_edge.bundle.store import is_bundle, read_bundle
from gft_edge.cli.answers import Answer, finish, only, print_answers
from gft_edge.cli.errand import Here, Word
from gft_edge.cli.on_devices import OnDeviceCommand, OnDevices, on_option
from gft_edge.cli.options import (
    PATH,
    backend_option,
    json_option,
    measuring_options,
    names_given,
    openvino_device_option,
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
    writable_file,
)
from gft_edge.errors import UsageError
from gft_edge.fidelity.verify import verify_once
from gft_edge.profiling.profile import ProfileRequest, check_request, profile
from gft_edge.profiling.report import Profile
from gft_edge.profiling.report_file import write_profile
from gft_edge.reporting.fleet import fleet_profiles
from gft_edge.reporting.profile_tables import profile_blocks
from gft_edge.runtime.backends import backend_for


@click.command("profile", cls=OnDeviceCommand)
@click.argument("bundles", type=PATH, nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--photos", "images", type=PATH, metavar="DIR",
              help="Folder of photographs to measure on [default: the bundle's golden frames].")  # fmt: skip
@measuring_options
@click.option("--baseline", metavar="BUNDLE|TIMM_MODEL",
              help="Dense network to measure beside the bundles; a timm model is exported like the "
              "first of them.")  # fmt: skip
@click.option("--baseline-out", type=PATH, metavar="DIR",
              help="Folder to keep the exported baseline in.")  # fmt: skip
@click.option("--hint", type=click.Choice(["latency", "throughput"]), default="latency",
              show_default=True,
              help="Way to call: one image after another, or several in flight (OpenVINO).")  # fmt: skip
@threads_option
@click.option("--batch", type=int,
              help="Number of images a call [default: what the bundles were exported for].")  # fmt: skip
@backend_option
@openvino_device_option
@click.option("--cuda-graph", is_flag=True,
              help="Replay the launches from one recording (TensorRT only).")  # fmt: skip
@click.option(
    "--layers", is_flag=True, help="Time each network's layers too, in a run of their own."
)
@click.option("--out", type=PATH, metavar="FILE",
              help="File for the JSON, with every sample; a folder for those of several --on.")  # fmt: skip
@on_option
@json_option
def command(
    bundles: tuple[Path, ...],
    out: Path | None,
    devices: OnDevices | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the latency of bundles on this machine, in turn, with what makes it trustworthy.

    engine is the engine's own synchronous inference, end to end goes from encoded image or decoded
    frame to labels. UNSTABLE numbers say what may have disturbed them. gft-edge report draws the
    file of --out, and compares several. Ctrl-C reports the samples so far.

    gft-edge profile bundles/grocery --photos grocery/test --out profile.json
    """
    several = devices is not None and len(devices.hosts) > 1
    # Made sure of before minutes of measuring.
    if out is not None and several:
        made_folder(out)
    elif out is not None:
        writable_file(out, "--out")
    if options["baseline"] is None and options["baseline_out"] is not None:
        raise UsageError("--baseline-out keeps an exported baseline: give --baseline too")
    baseline, kept = options.pop("baseline"), options.pop("baseline_out")
    with ExitStack() as stack:
        request = ProfileRequest(bundles=bundles, **options)
        dense = None
        if baseline is not None:
            check_request(request)
            with progress() as report:
                dense = _baseline(bundles[0], baseline, kept, report, stack)
        if devices is not None:
            answers = _measured_on(devices, bundles, dense, request.backend)
        else:
            _verify_on_device(request)
            with progress() as report:
                result = profile(dataclasses.replace(request, baseline=dense), report, say)
    if devices is None:
        _show(result, out, as_json)
    elif several:
        _show_several(answers, out, as_json)
    else:
        answer = only(answers)
        told = {**answer.document, "host": answer.host}
        _show(from_json(Profile, told, "the profile"), out, as_json)
        finish(answers)


def _verify_on_device(request: ProfileRequest) -> None:
    for bundle in map(read_bundle, request.bundles if request.device else ()):
        if backend_for(request.backend or bundle.manifest.target).TARGET == "openvino":
            verify_once(bundle, request.backend, request.device)


def _show(result: Profile, out: Path | None, as_json: bool) -> None:
    # Printed first: a disk that is full by now loses no measurement.
    if as_json:
        print_json(result)
    else:
        show(*profile_blocks(result))
    if out is not None:
        write_profile(result, out)
        click.echo(f"written: {shown(out)}", err=as_json)
    if not as_json and out is None:
        next_line("the same with --out FILE keeps the samples, gft-edge report FILE draws them")
    elif not as_json:
        next_line(f"gft-edge report {quoted(out)}")
    if not result.complete:
        say("interrupted: these are the samples so far")
        raise click.exceptions.Exit(1)


def _measured_on(
    devices: OnDevices, bundles: Sequence[Path], dense: Path | None, backend: str | None
) -> list[Answer]:
    replaced: dict[str, list[Word]] = {}
    if dense is not None:
        replaced["baseline"] = [Here(dense, str(dense))]
    words = devices.words(
        sent=("bundles", "images"), here=("out", "baseline_out"), replaced=replaced
    )
    if len(devices.hosts) > 1 and "layers" not in names_given():
        # The table of several says how many layers each computes in integers.
        words.insert(1, "--layers")
    measured = [*bundles, *([dense] if dense else [])]
    return devices.do(words, measured, backend)


def _show_several(answers: Sequence[Answer], out: Path | None, as_json: bool) -> None:
    found = {
        answer.host: from_json(Profile, {**answer.document, "host": answer.host}, answer.host)
        for answer in answers
        if answer.document is not None
    }
    failed = {answer.host: answer.error or "" for answer in answers if answer.host not in found}
    if as_json:
        print_answers(answers)
    else:
        show(fleet_profiles(found, failed))
    files: list[Path] = []
    for host, result in found.items() if out is not None else ():
        assert out is not None
        files.append(out / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', host)}.json")
        write_profile(result, files[-1])
    if files and not as_json:
        next_line(f"gft-edge report {' '.join(map(quoted, files))} --html fleet.html")
    elif not as_json:
        next_line("the same with --out FOLDER keeps the samples, gft-edge report draws them")
    finish(answers)


def _baseline(
    like: Path, given: str, kept: Path | None, report: Progress, stack: ExitStack
) -> Path:
    """Open a bundle, or export a timm model like the first bundle, to `kept` where it is given."""
    if is_bundle(Path(given)):
        if kept is not None:
            raise UsageError(f"{given} is a bundle already: leave --baseline-out out")
        return Path(given)
    from gft_edge.export.baseline import dense_bundle

    if kept is None:
        kept = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gft-edge-"))) / given
    dense_bundle(read_bundle(like), given, kept, report, say)
    return kept
