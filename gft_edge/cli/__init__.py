"""The command line: parse, build a spec, make one call, print. Heavy imports stay inside commands."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import click

from gft_edge.errors import GftEdgeError


class _Failure(click.ClickException):
    def __init__(self, error: GftEdgeError):
        super().__init__(str(error))
        self.exit_code = error.exit_code  # type: ignore[misc]


class _Group(click.Group):
    """Turns the library's errors, and a full or read-only disk, into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GftEdgeError as error:
            raise _Failure(error) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gft-edge")
def main() -> None:
    """Train a Gradient Focal Transformer, export it for edge devices, verify it and run it there.

    Exit codes: 0 done, 1 a check or the work failed, 2 wrong use.
    """


# Each module named *_command holds one command of that name.
for _info in pkgutil.iter_modules(__path__):
    if _info.name.endswith("_command"):
        main.add_command(importlib.import_module(f"{__name__}.{_info.name}").command)
