"""gft-edge doctor."""

from __future__ import annotations

import dataclasses
from importlib import metadata

import click

from gft_edge.cli.options import json_option
from gft_edge.cli.output import print_json, print_table
from gft_edge.profiling.machine import this_machine
from gft_edge.runtime.backends import backends

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
    """What this machine has: engines, instruction sets, GPUs; and how to install what is missing."""
    machine = this_machine()
    engines = {
        target: {
            "version": None if (reason := backend.missing()) else backend.version(),
            "missing": reason,
        }
        for target, backend in backends().items()
    }
    packages = {name: _package(name, extra) for name, extra in HOST_PACKAGES.items()}
    if as_json:
        print_json({"machine": dataclasses.asdict(machine), "engines": engines, "host": packages})
        return
    print_table(
        "This machine",
        ("what", "value"),
        [
            ("CPU", f"{machine.cpu}, {machine.cores} cores"),
            ("instruction sets", " ".join(machine.instruction_sets) or "none of interest"),
            ("memory", f"{machine.memory_bytes / 2**30:.1f} GiB"),
            ("GPU", "; ".join(machine.gpus) or "none seen by NVML or CUDA"),
            ("board", machine.board or "-"),
            ("Jetson Linux", machine.l4t or "-"),
            ("system", f"{machine.system}, Python {machine.python}"),
        ],
    )
    for title, rows in (("Engines", engines), ("To train and export", packages)):
        print_table(
            title,
            ("name", "status"),
            [(name, entry["version"] or entry["missing"]) for name, entry in rows.items()],
        )


def _package(name: str, extra: str) -> dict[str, str | None]:
    try:
        return {"version": metadata.version(name), "missing": None}
    except metadata.PackageNotFoundError:
        return {"version": None, "missing": f"not installed: pip install 'gft-edge[{extra}]'"}
