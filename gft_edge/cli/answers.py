"""What devices answered: one answer shown as if the work were done here, several as a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from gft_edge.cli.output import print_json
from gft_edge.errors import RemoteError
from gft_edge.reporting.table import Table, Value


@dataclass
class Answer:
    """What came of a command on a host: its documents of JSON, or the error that ended it.

    `root` is the folder there that holds what was sent, and what was made below it.
    """

    host: str
    exit_code: int = 1
    documents: list[Any] = field(default_factory=list)
    error: str | None = None

    @property
    def document(self) -> Any:
        """The one document; None where there is none."""
        return self.documents[0] if self.documents else None


def only(answers: Sequence[Answer]) -> Answer:
    """The answer of the only host. Raises RemoteError where it has none to show."""
    (answer,) = answers
    if answer.error is not None and answer.document is None:
        error = RemoteError(answer.host, answer.error)
        error.exit_code = answer.exit_code
        raise error
    return answer


def with_host(answer: Answer) -> Any:
    """An answer as JSON: its document with its host, or its error."""
    told = {} if answer.error is None else {"error": answer.error}
    return {**(answer.document or {}), **told, "host": answer.host}


def finish(answers: Sequence[Answer]) -> None:
    """Exit as the commands did there: 0 where all are well."""
    code = max(answer.exit_code for answer in answers)
    if code:
        raise click.exceptions.Exit(code)


def fleet_table(
    title: str,
    columns: Sequence[str],
    answers: Sequence[Answer],
    rows: Callable[[Answer], Iterable[Sequence[Value]]],
) -> Table:
    """A table of several hosts; one that failed is a row with its reason."""
    cells: list[Sequence[Value]] = []
    for answer in answers:
        if answer.document is None:
            cells.append((answer.host, *[None] * (len(columns) - 1), answer.error or "nothing"))
        else:
            cells += [(answer.host, *row) for row in rows(answer)]
    return Table(title, ("host", *columns), cells)


def print_answers(answers: Sequence[Answer]) -> None:
    """One document of JSON for one host, a list for several."""
    documents = [with_host(answer) for answer in answers]
    print_json(documents if len(documents) > 1 else documents[0])


def folder_of(out: Path, answer: Answer, several: bool) -> Path:
    """Where a host's files go: of several hosts each has a folder in `out`."""
    return out / re.sub(r"[^A-Za-z0-9._-]+", "-", answer.host) if several else out
