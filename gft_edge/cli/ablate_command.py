"""gft-edge ablate."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.store import write_whole
from gft_edge.cli import train_command
from gft_edge.cli.options import PATH, json_option, split_option
from gft_edge.cli.output import (
    line,
    next_line,
    print_json,
    print_table,
    progress,
    say,
    shown,
)
from gft_edge.errors import MissingDependencyError, UsageError

CSV_FILE, MARKDOWN_FILE, PICTURE_FILE = "ablation.csv", "ablation.md", "ablation.png"
# Of gft-edge train, but given by the grid, or of its output.
_OF_A_CELL = ("out", "resume", "stages", "score", "seed", "as_json")
# What --report may be told: where things are, and how they are shown.
_OF_A_REPORT = {"out", "report", "data", "against", "intervals", "device", "workers", "as_json"}


@click.command("ablate")
@click.option("--out", type=PATH, metavar="DIR", help="Folder to fill, or to go on in.")
@click.option("--scores", metavar="NAME,...",
              help="Scores to compare; none is the dense network, trained once a seed.")  # fmt: skip
@click.option("--stages", multiple=True, metavar="STAGES",
              help="As of gft-edge train; may be repeated [default: the model's own].")  # fmt: skip
@click.option("--vary", multiple=True, metavar="NAME=V1,V2,...",
              help="Compare values of a recipe setting, such as layer_decay=0.65,0.75; may be "
              "repeated.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True,
              help="Trainings of each, with the seeds 0, 1, ...")  # fmt: skip
@split_option()
@click.option("--against", metavar="SCORE",
              help="What the others are compared with [default: random where it is there, else the "
              "first score].")  # fmt: skip
@click.option("--intervals/--no-intervals", default=None,
              help="95 % intervals of the differences [default: with two seeds or more].")  # fmt: skip
@click.option("--report", is_flag=True, help="Show what --out has so far; nothing is trained.")
@json_option
def command(out: Path | None, report: bool, as_json: bool, **options: Any) -> None:
    """Train and evaluate a grid: scores x stages x recipe settings x seeds, compared in one table.

    Every cell is an ordinary run in --out, without last.pt once it is finished. Ctrl-C keeps all whole
    epochs: the same command goes on, and finished cells are not trained again, also in a larger grid.
    Differences are paired over the same images and seeds. All other options are those of gft-edge train.
    """
    try:
        import matplotlib.figure  # noqa: F401
        import scipy.stats  # noqa: F401

        from gft_edge.studies.ablation import ablate, once
        from gft_edge.studies.ablation_plan import read_plan
        from gft_edge.studies.ablation_result import check_against, compare, shows_intervals
    except ImportError as error:
        extra = "report" if (error.name or "").startswith("matplotlib") else "train"
        raise MissingDependencyError(error.name or "torch", extra) from error
    if out is None:
        raise UsageError("give --out DIR: the folder of all runs, the table and the picture")
    against, intervals = options["against"], options["intervals"]
    device, workers = options["device"], options["workers"]
    say_once = once(say)
    try:
        with progress() as steps:
            if report:
                _refuse_beside_report()
                plan = read_plan(out)
                if options["data"] is not None:
                    plan = dataclasses.replace(plan, data=str(options["data"].resolve()))
            else:
                request = _request(out, options)
                shows_intervals(request.seeds, intervals)
                check_against(against, request.scores)
                plan = ablate(request, steps, say_once)
            result = compare(out, plan, against, intervals, device, workers, steps, say_once)
    except KeyboardInterrupt:
        say(
            f"interrupted: every whole epoch is kept in {shown(str(out))}, the same command goes on"
        )
        raise click.exceptions.Exit(130) from None
    files = _written(result, out)
    if as_json:
        print_json({**to_json(result), "files": [str(file) for file in files]})
    else:
        _print(result, files)
    if not report and result.finished < result.cells:
        raise click.exceptions.Exit(1)


# Options that train gains are ablate's too.
command.params += [
    option for option in train_command.command.params if option.name not in _OF_A_CELL
]


def _refuse_beside_report() -> None:
    context = click.get_current_context()
    given = {
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if others := sorted(given - _OF_A_REPORT):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise UsageError(f"--report shows the grid that --out remembers: leave {names} out")


def _request(out: Path, options: dict[str, Any]) -> Any:
    from gft_edge.studies.ablation import AblationRequest
    from gft_edge.studies.ablation_plan import scores_of

    if options["scores"] is None:
        raise UsageError(
            "give --scores, such as --scores gala,class,random; or --report for what --out has"
        )
    scores = scores_of(options["scores"])
    vary: dict[str, list[Any]] = {}
    for text in options["vary"]:
        name, values = _varied(text)
        if name in vary:
            raise UsageError(f"--vary {name} is given twice: give all of its values in one")
        if "distillation" in name and options["teacher"] is None:
            raise UsageError(f"--vary {name} changes nothing without a teacher: give --teacher RUN")
        vary[name] = values
    return AblationRequest(
        out=out,
        base=train_command.run_config({**options, "seed": None}),
        model=options["model"],
        scores=scores,
        stages=options["stages"],
        seeds=options["seeds"],
        vary=vary,
        weights=options["weights"],
        image_size_px=options["image_size"],
        gala=options["gala"],
        temperature=options["temperature"],
        split=options["split"],
    )


def _varied(text: str) -> tuple[str, list[Any]]:
    """The recipe field and values of a --vary, each in its type and range. Raises UsageError."""
    from gft_edge.studies.ablation_plan import recipe_value

    name, equals, listed = text.partition("=")
    name = name.strip().replace("-", "_")
    words = [word.strip() for word in listed.split(",")]
    if not equals or not all(words):
        raise UsageError(
            f"--vary {text} is not NAME=VALUE,VALUE: write --vary layer_decay=0.65,0.75"
        )
    values = [recipe_value(name, _in_range(name, word)) for word in words]
    for number, value in enumerate(values):
        if value in values[:number]:
            raise UsageError(f"--vary {name} has the value {value} twice: once is enough")
    return name, values


def _in_range(name: str, word: str) -> Any:
    """What train's own option of that name would take, else what JSON makes of it, else the word."""
    option = next((p for p in train_command.command.params if p.name == name), None)
    if option is not None:
        try:
            return option.type.convert(word, option, None)
        except click.BadParameter as error:
            raise UsageError(f"--vary {name}: {error.message}") from error
    try:
        return json.loads(word.lower())
    except ValueError:
        return word


def _written(result: Any, out: Path) -> list[Path]:
    from gft_edge.studies.ablation_table import to_csv, to_markdown
    from gft_edge.studies.figures import draw_ablation

    files = [out / name for name in (CSV_FILE, MARKDOWN_FILE, PICTURE_FILE)]
    write_whole(files[0], to_csv(result).encode())
    write_whole(files[1], to_markdown(result).encode())
    draw_ablation(result, files[2])
    return files


def _print(result: Any, files: list[Path]) -> None:
    from gft_edge.studies.ablation_table import cells, heading, heads, notes

    print_table(heading(result), heads(result), cells(result))
    for note in notes(result):
        line(note)
    line(f"written: {', '.join(shown(str(file)) for file in files)}")
    best = max(result.arms, key=lambda arm: arm.mean)
    next_line(
        f"gft-edge export {shown(str(files[0].parent / best.runs[0]))} --target onnx --out BUNDLE"
    )
