"""gft-edge doctor."""

from __future__ import annotations

import dataclasses
from importlib import metadata

import click

from gft_edge.cli.options import json_option
from gft_edge.cli.output import print_json, show
from gft_edge.profiling.machine import this_machine
from gft_edge.reporting.profile_tables import machine_table
from gft_edge.reporting.table import Table
from gft_edge.runtime.backends import backends
from gft_edge.runtime.engine_probe import why_fatal

# Package -> the extra that installs it, for what only the host side needs.
HOST_PACKAGES = {
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


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Show what this machine has: engines, instruction sets, GPUs; and how to install the rest.

    gft-edge doctor
    """
    machine = this_machine()
    engines = {
        # A library that is unfit for the processor would take this process along.
        target: _status(
            None if (reason := why_fatal(target) or engine.missing()) else engine.version(), reason
        )
        for target, engine in backends().items()
    }
    packages = {name: _package(name, extra) for name, extra in HOST_PACKAGES.items()}
    if as_json:
        print_json({"machine": dataclasses.asdict(machine), "engines": engines, "host": packages})
        return
    show(machine_table("This machine", machine))
    for title, found in (("Engines", engines), ("To train and export", packages)):
        rows = [(name, entry["version"] or entry["missing"]) for name, entry in found.items()]
        show(Table(title, ("name", "status"), rows))


def _package(name: str, extra: str) -> dict[str, str | None]:
    try:
        return _status(metadata.version(name), None)
    except metadata.PackageNotFoundError:
        return _status(None, f"not installed: pip install 'gft-edge[{extra}]'")


def _status(version: str | None, missing: str | None) -> dict[str, str | None]:
    return {"version": version, "missing": missing}
