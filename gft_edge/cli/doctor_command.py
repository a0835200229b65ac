"""gft-edge doctor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import click

from gft_edge.bundle.json_form import from_json
from gft_edge.cli.answers import Answer, finish, fleet_table, only, print_answers
from gft_edge.cli.on_devices import OnDeviceCommand, OnDevices, on_option
from gft_edge.cli.options import json_option
from gft_edge.cli.output import print_json, show
from gft_edge.errors import UsageError
from gft_edge.profiling.machine import Machine, this_machine
from gft_edge.reporting.profile_tables import machine_table
from gft_edge.reporting.table import Table, Value
from gft_edge.runtime.backends import Backend, backends
from gft_edge.runtime.backends.ov import devices
from gft_edge.runtime.engine_probe import why_fatal

Status = Mapping[str, Mapping[str, Any]]

# Package -> the extra that installs it, for what images and engines do without.
PACKAGES = {
    "av": "video",
    "torch": "train",
    "timm": "train",
    "onnx": "export",
    "onnxscript": "export",
    "onnxsim": "export",
    "nncf": "export",
    "matplotlib": "report",
    "jinja2": "report",
    "tabulate": "report",
}

# What OpenVINO lists among the types that a device computes in.
_NO_TYPES = ("BIN", "EXPORT_IMPORT", "WINOGRAD")

_BY_ITSELF = (
    "a command with --on installs the engine of its bundle where it is missing; a Jetson's TensorRT is "
    "installed there by apt",
)


@click.command("doctor", cls=OnDeviceCommand)
@on_option
@click.option("--clean", is_flag=True,
              help="With --on: remove everything that gft-edge put on the device.")  # fmt: skip
@json_option
def command(devices: OnDevices | None, clean: bool, as_json: bool) -> None:
    """Show what this machine has: engines, instruction sets, GPUs; and how to install the rest.

    With --on what a device has, once gft-edge is made ready there.

    gft-edge doctor
    """
    if devices is not None:
        _on(devices, clean, as_json)
        return
    if clean:
        raise UsageError("--clean removes what is on a device: give --on HOST too")
    machine = this_machine()
    engines = {target: _engine(target, backend) for target, backend in backends().items()}
    packages = {name: _package(name, extra) for name, extra in PACKAGES.items()}
    if as_json:
        print_json(
            {"machine": dataclasses.asdict(machine), "engines": engines, "packages": packages}
        )
        return
    _show("This machine", machine, engines, packages)


def _show(
    title: str,
    machine: Machine,
    engines: Status,
    packages: Status,
    about_engines: Sequence[str] = (),
) -> None:
    show(machine_table(title, machine), *_engine_tables(engines, about_engines))
    if packages:
        show(_status_table("Other packages", packages))


def _engine_tables(engines: Status, notes: Sequence[str]) -> list[Table]:
    """The engines, and the processors of the one that has several."""
    tables = [_status_table("Engines", engines, notes)]
    processors = [
        (
            each["name"],
            each["full_name"],
            _types(each["capabilities"]),
        )
        for engine in engines.values()
        for each in engine["devices"]
    ]
    if processors:
        heads = ("--device", "name", "computes in")
        notes = ("AUTO and HETERO:GPU,CPU combine them",) if len(processors) > 1 else ()
        tables.append(Table("OpenVINO's devices", heads, processors, notes))
    return tables


def _types(capabilities: Sequence[str]) -> str:
    return " ".join(name for name in capabilities if name not in _NO_TYPES)


def _status_table(title: str, found: Status, notes: Sequence[str] = ()) -> Table:
    rows = [(name, entry["version"] or entry["missing"]) for name, entry in found.items()]
    return Table(title, ("name", "status"), rows, notes)


def _on(devices: OnDevices, clean: bool, as_json: bool) -> None:
    answers = devices.clean() if clean else devices.do(devices.words())
    if len(answers) == 1:
        only(answers)
    if as_json:
        print_answers(answers)
    elif clean:
        show(*(_cleaned(answer) for answer in answers))
    elif len(answers) == 1:
        told = answers[0].document
        # A device neither trains nor exports.
        machine = from_json(Machine, told["machine"], "machine")
        _show(answers[0].host, machine, told["engines"], {}, _BY_ITSELF)
    else:
        columns = ("board", "cores", "memory GiB", "instruction sets", "GPU", "engines")
        show(fleet_table("Devices", columns, answers, _row))
    finish(answers)


def _cleaned(answer: Answer) -> str:
    if answer.document is None:
        return f"{answer.host}: {answer.error}"
    did = "removed" if answer.document["removed"] else "nothing was there:"
    return f"{answer.host}: {did} {answer.document['folder']}"


def _row(answer: Answer) -> list[tuple[Value, ...]]:
    machine = from_json(Machine, answer.document["machine"], "machine")
    engines = [
        f"{name} {entry['version']}"
        for name, entry in answer.document["engines"].items()
        if entry["version"]
    ]
    return [(
        machine.board or machine.cpu, machine.cores, f"{machine.memory_bytes / 2**30:.1f}",
        " ".join(machine.instruction_sets), "; ".join(machine.gpus) or None, ", ".join(engines) or "none",
    )]  # fmt: skip


def _engine(target: str, backend: Backend) -> dict[str, Any]:
    """An engine's version, its devices, and why precisions cannot be had of it, or why there is none."""
    # A library that is unfit for the processor would take this process along.
    if reason := why_fatal(target) or backend.missing():
        return {**_status(None, reason), "precisions": {}, "devices": []}
    unfit = {precision: backend.unsupported(precision) for precision in backend.PRECISIONS}
    found = [
        {
            **dataclasses.asdict(each),
            "precisions": {p: backend.unsupported(p, each.name) for p in backend.PRECISIONS},
        }
        for each in (devices() if target == "openvino" else ())
    ]
    return {**_status(backend.version(), None), "precisions": unfit, "devices": found}


def _package(name: str, extra: str) -> dict[str, str | None]:
    try:
        return _status(metadata.version(name), None)
    except metadata.PackageNotFoundError:
        return _status(None, f"not installed: pip install 'gft-edge[{extra}]'")


def _status(version: str | None, missing: str | None) -> dict[str, str | None]:
    return {"version": version, "missing": missing}
