"""The command line: parse, build a spec, make one call, print. Heavy imports stay inside commands."""

from __future__ import annotations

import ast
import importlib
import io
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import click

from gft_edge.errors import GftEdgeError, MissingDependencyError

# The extra that has what a command imports; of the others it is `export`.
_EXTRAS = {
    "train": "train", "import": "train", "evaluate": "train", "inspect": "train", "demo": "all",
}  # fmt: skip


class _Failure(click.ClickException):
    def __init__(self, error: GftEdgeError):
        from gft_edge.cli.output import steerless

        super().__init__(steerless(str(error)))
        self.exit_code = error.exit_code  # type: ignore[misc]


class _Commands(Mapping[str, click.Command]):
    """Each module named *_command holds one command of that name, imported when it is asked for."""

    def __iter__(self) -> Iterator[str]:
        for info in pkgutil.iter_modules(__path__):
            if info.name.endswith("_command"):
                yield info.name.removesuffix("_command")

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, name: str) -> click.Command:
        if name not in [*self]:
            raise KeyError(name)
        command: click.Command = importlib.import_module(f"{__name__}.{name}_command").command
        return command


class _Group(click.Group):
    """Turns the library's errors, absent packages and a full disk into one line and an exit code."""

    def main(self, *args: Any, **extra: Any) -> Any:
        # A file's or a class's name that the terminal's encoding lacks is printed escaped, as on stderr.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        return super().main(*args, **extra)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # From the docstrings in their sources: importing every command takes four times as long.
        listed = {name: click.Command(name, help=_docstring(name)) for name in self.commands}
        click.Group(commands=listed).format_commands(ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GftEdgeError as error:
            raise _Failure(error) from error
        except ImportError as error:
            raise _Failure(_missing(error, ctx.invoked_subcommand or "")) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gft-edge")
def main() -> None:
    """Train a Gradient Focal Transformer, export it for edge devices, verify it and run it there.

    Exit codes: 0 done, 1 a check or the work failed, 2 wrong use; interrupted (Ctrl-C) 1,
    of train 130, of predict on live sources alone 0.
    """


main.commands = _Commands()  # type: ignore[assignment]


def _missing(error: ImportError, command: str) -> MissingDependencyError:
    """Name the package that a command cannot import. A module of our own is our mistake."""
    package = (error.name or "torch").partition(".")[0]
    if package == "gft_edge":
        raise error
    extra = _EXTRAS.get(command, "export")
    return MissingDependencyError(package, "export" if package == "onnx" else extra)


def _docstring(name: str) -> str | None:
    source = pkgutil.get_data(__name__, f"{name}_command.py")
    assert source is not None
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return next(ast.get_docstring(node) for node in functions if node.name == "command")
