"""What commands print: JSON or tables on stdout, progress and remarks on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from gft_edge.bundle.manifest import Engine, Manifest, Quantization
from gft_edge.bundle.reports import FidelityReport
from gft_edge.bundle.specs import Progress
from gft_edge.bundle.stages import stages_text
from gft_edge.errors import UsageError
from gft_edge.nvidia.engines import bound_to_gpu
from gft_edge.reporting.table import Table, terminal


def speaks() -> bool:
    """Whether this process prints: of those that were launched to work together, the first alone.

    Each says its own errors. https://pytorch.org/docs/stable/elastic/run.html#environment-variables
    """
    return "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"


def print_json(content: Any, lines: bool = False) -> None:
    """One JSON document on stdout, NaN and infinity as null; with `lines` on a single line.

    ASCII alone: file names need not be valid UTF-8.
    """
    if speaks():
        click.echo(json.dumps(finite(content), allow_nan=False, indent=None if lines else 2))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout; a column of numbers aligns right."""
    show(Table(title, columns, [[str(cell) for cell in row] for row in rows]))


def show(table: Table) -> None:
    """A table on stdout, and its notes below it."""
    if not speaks():
        return
    console = Console()
    # Piped output keeps whole rows: a table folded at 80 columns cannot be read or searched.
    Console(width=None if console.is_terminal else 160).print(terminal(table))
    for note in table.notes:
        click.echo(note)


def finite(content: Any) -> Any:
    """The content with None for NaN and infinity, which JSON has not."""
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(item) for item in content]
    return content


def print_fidelity(title: str, reports: Sequence[FidelityReport]) -> None:
    """One row a report; what is not known is a dash."""
    print_table(
        title,
        ("step", "images", "accuracy", "reference", "agreement", "kept patches",
         "lost (near border)", "cosine", "verdict"),
        [
            (r.step, r.images, percent(r.accuracy), percent(r.reference_accuracy),
             percent(r.top1_agreement), overlaps(r.kept_overlap), lost_patches(r),
             f"{r.cosine:.6f}", r.verdict)
            for r in reports
        ],
    )  # fmt: skip


def print_rescheduled(manifest: Manifest) -> None:
    """What other keep counts than those of the training cost, of a bundle that has them."""
    found = manifest.rescheduled
    assert found is not None
    print_table(
        f"Keep counts, PyTorch's accuracy on {manifest.verified_on.count} images",
        ("stages", "accuracy", "is"),
        [
            (stages_text(found.trained_stages), percent(found.trained_accuracy), "as trained"),
            (stages_text(manifest.model.stages), percent(found.accuracy), "exported"),
        ],
    )


def print_quantization(quantization: Quantization) -> None:
    """What is in INT8 and what is not."""
    calibrated = quantization.calibrated_on
    strength = quantization.smooth_quant
    high = quantization.high_precision
    print_table(
        "INT8",
        ("what", "value"),
        [
            ("layers", f"{quantization.int8_layers} of {quantization.int8_layers + len(high)}, "
             f"{quantization.int8_macs:.0%} of their work"),
            ("ranges", quantization.method),
            ("smooth-quant", "off" if strength is None else f"{strength:g}"),
            ("calibrated on", f"{calibrated.count} images, seed {calibrated.seed}"),
            ("in high precision", ", ".join(high) or "none"),
        ],
    )  # fmt: skip


def print_engine(bundle: Path, engine: Engine) -> None:
    """One engine of a bundle: where it is and where it loads."""
    size = (bundle / engine.path).stat().st_size
    where = ", ".join(engine.compute_capabilities)
    gpu = engine.gpu if bound_to_gpu(engine) else None
    print_table(
        "Engine",
        ("what", "value"),
        [
            ("file", bundle / engine.path),
            ("size", f"{size / 2**20:.1f} MiB"),
            ("library", f"{engine.flavor} {engine.version}"),
            ("loads on", f"{gpu or 'GPUs'} of compute capability {where}"),
            ("outputs", ", ".join(engine.outputs)),
            ("built in", f"{engine.build_seconds:.1f} s"),
        ],
    )


def lost_patches(report: FidelityReport) -> str:
    """Patches lost an image, and of these near the border, one pair a stage."""
    if not report.lost_near_border:
        return " / ".join(f"{lost:.2f}" for lost in report.patches_lost) or "-"
    pairs = zip(report.patches_lost, report.lost_near_border, strict=True)
    return " / ".join(f"{lost:.2f} ({near:.2f})" for lost, near in pairs)


def say(text: str) -> None:
    """A remark on stderr."""
    if speaks():
        click.echo(text, err=True)


def line(text: str) -> None:
    """A line, or several, on stdout."""
    if speaks():
        click.echo(text)


def next_line(text: str) -> None:
    """The last line of a command names the next one."""
    if speaks():
        click.echo(f"next: {text}")


def percent(fraction: float | None) -> str:
    """0.8996 -> 89.96 %."""
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def overlaps(values: Sequence[float] | None) -> str:
    """One number a stage."""
    return "-" if values is None else " / ".join(f"{value:.4f}" for value in values) or "no stage"


def shown(path: str) -> str:
    """A path on one line, whatever bytes its name has."""
    return str(click.format_filename(path)).replace("\n", "\\n")


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


def advance(report: Progress, text: str, total: int) -> Callable[[int], None]:
    """A counter for functions that say how many images they just did."""
    done = 0

    def count(images: int) -> None:
        nonlocal done
        done += images
        report(text, done, total)

    return count
