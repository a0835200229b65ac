"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


def json_option(command: F) -> F:
    """--json: machine-readable output."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print JSON alone on stdout; progress goes to stderr.",
    )(command)


def data_option(command: F) -> F:
    """--data: a class folder."""
    return click.option(
        "--data", type=PATH, help="Folder with train/ val/ test/ folders of class folders."
    )(command)


def split_option(default: str | None = "test") -> Callable[[F], F]:
    """--split: which of its folders."""
    return click.option(
        "--split", default=default, show_default=bool(default), help="Split to use."
    )


def backend_option(command: F) -> F:
    """--backend: the engine that runs a bundle."""
    return click.option(
        "--backend", help="Engine to run it on, unless the one it was exported for."
    )(command)


def threads_option(command: F) -> F:
    """--threads: of the engine."""
    return click.option("--threads", type=int, help="Threads of the engine [default: all cores].")(
        command
    )
