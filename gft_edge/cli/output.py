"""What commands print: JSON or tables on stdout, progress and remarks on stderr."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from gft_edge.bundle.json_form import json_text
from gft_edge.bundle.specs import Progress
from gft_edge.errors import UsageError
from gft_edge.remote import PROGRESS_MARK, PROGRESS_VARIABLE
from gft_edge.reporting.table import Table, terminal

TOLD_EVERY_S = 0.5


# C0 but the line feed, C1, and the line ends of Unicode.
_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def speaks() -> bool:
    """Whether this process prints: of those that were launched to work together, the first alone.

    Each says its own errors. https://pytorch.org/docs/stable/elastic/run.html#environment-variables
    """
    return "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"


def print_json(content: Any, lines: bool = False) -> None:
    """One JSON document on stdout, NaN and infinity as null; with `lines` on a single line."""
    if speaks():
        click.echo(json_text(content, indent=None if lines else 2))


def show(*blocks: Table | str) -> None:
    """Tables, each with its notes below it, and words of one line each on stdout."""
    if not speaks():
        return
    console = Console()
    # Piped output keeps whole rows: a table folded at 80 columns cannot be read or searched.
    wide = Console(width=None if console.is_terminal else 160)
    for block in blocks:
        if isinstance(block, Table):
            wide.print(terminal(block))
        for line in block.notes if isinstance(block, Table) else [block]:
            click.echo(shown(line))


def say(text: str) -> None:
    """A remark on stderr."""
    if speaks():
        click.echo(steerless(text), err=True)


def next_line(text: str) -> None:
    """The last line of a command names the next one."""
    show(f"next: {text}")


def quoted(path: object) -> str:
    """A path as a shell takes it, for a command that is printed to be run."""
    return shlex.quote(str(path))


def shown(path: object) -> str:
    """A path, or words that hold one, on one line, whatever its name holds."""
    return steerless(click.format_filename(str(path))).replace("\n", "\\n")


def steerless(text: str) -> str:
    """Words that may hold a name from a disk, with what would steer a terminal escaped."""
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


def writable_file(path: Path, option: str) -> None:
    """Make sure of a file to write before the work. Raises UsageError."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"{path} cannot be written: give {option} a file in a folder that exists")


def made_folder(out: Path, option: str = "--out") -> Path:
    """A folder to write to, made where it is absent and sure to be writable. Raises UsageError."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: give {option} a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{out} cannot be written ({error.strerror}): choose another {option}"
        ) from error
    if not os.access(out, os.W_OK):
        raise UsageError(f"{out} cannot be written: choose another {option}")
    return out


@contextmanager
def progress() -> Iterator[Progress]:
    """A progress bar on stderr, one line a task: report(text, done, total).

    A task is known by its text up to the first double space, behind which it may change. Where
    stderr is no terminal, each finished task is one line of a log.
    """
    if os.environ.get(PROGRESS_VARIABLE) == "json":
        yield _told_as_data()
        return
    console = Console(stderr=True)
    if not console.is_terminal or not speaks():
        yield lambda text, done, total: say(text) if total and done == total else None
        return
    with Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        # rich would send piped JSON to the bar's own stream, stderr.
        redirect_stdout=sys.stdout.isatty(),
    ) as bars:
        tasks: dict[str, Any] = {}

        def report(text: str, done: int, total: int) -> None:
            if total == 0:
                return
            name = text.partition("  ")[0]
            if name not in tasks:
                tasks[name] = bars.add_task(text, total=total)
            elif done < bars.tasks[tasks[name]].completed:
                bars.reset(tasks[name], total=total)
            bars.update(tasks[name], description=text, completed=done, total=total)

        yield report


def _told_as_data() -> Progress:
    """Tell another machine, which draws the bars (remote/device.py), twice a second and at the end."""
    told_at = 0.0

    def report(text: str, done: int, total: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= TOLD_EVERY_S or done == total:
            told_at = time.monotonic()
            # Not by say, which would escape the mark.
            click.echo(f"{PROGRESS_MARK}{json.dumps([text, done, total])}", err=True)

    return report
