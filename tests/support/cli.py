"""The command line as a script meets it: its JSON, or the one line in which it refuses."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result

from gft_edge.cli import main


def run(*arguments: object) -> Result:
    """Run gft-edge; an exception that is not the user's to mend is raised here."""
    return CliRunner().invoke(main, [str(each) for each in arguments], catch_exceptions=False)


def run_json(*arguments: object, exit_code: int = 0) -> dict[str, Any]:
    """Return the JSON that a command prints with --json, alone on stdout."""
    result = run(*arguments, "--json")
    assert result.exit_code == exit_code, result.stderr
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def refused(result: Result, *words: str, exit_code: int = 2) -> str:
    """Return the one `Error:` line of a command that failed with that code and printed nothing else.

    `words` stand in the line: the option, file or number that it names.
    """
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.stderr
    line = lines[0].removeprefix("Error: ")
    for word in words:
        assert word in line
    return line


def refusal(*arguments: object, exit_code: int = 2) -> str:
    """Run gft-edge and return the one line in which it refuses."""
    return refused(run(*arguments), exit_code=exit_code)
