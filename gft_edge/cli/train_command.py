"""gft-edge train."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.scores import SCORES
from gft_edge.cli.options import (
    PATH,
    FiniteRange,
    data_option,
    device_options,
    flag,
    json_option,
    names_given,
    refuse_given,
    together,
)
from gft_edge.cli.output import next_line, print_json, progress, quoted, say, show
from gft_edge.errors import TrainingError, UsageError
from gft_edge.fidelity.confidence import CalibrationError
from gft_edge.reporting.confidence_tables import calibration_sentence
from gft_edge.reporting.table import Table, percent

LOST_CONNECTION = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset)", re.ASCII)
OF_A_TEACHER = ("distillation", "distillation_temperature", "feature_distillation")

# Field of a recipe -> its type, its metavar, and its help.
_OF_THE_RECIPE: dict[str, tuple[Any, str | None, str]] = {
    "epochs": (click.IntRange(1), None, "Number of epochs."),
    "batch_size": (click.IntRange(1), None, "Number of images a step, of all processes together."),
    "lr": (FiniteRange(0, min_open=True), None, "Peak learning rate."),
    "weight_decay": (FiniteRange(0), None, "Weight decay of AdamW."),
    "warmup": (FiniteRange(0, 1, max_open=True), None,
               "Fraction of all steps in which the learning rate rises."),
    "layer_decay": (FiniteRange(0, 1, min_open=True), None,
                    "Factor of the learning rate from each block to the one before."),
    "ema": (float, "DECAY", "Decay of a moving average of the weights, which is evaluated and kept "
            "[default: 0, off]."),
    "distillation": (float, "SHARE", "Share of the loss that compares with the teacher's logits "
                     "[default: 0.5]."),
    "distillation_temperature": (float, None, "Softening temperature of the teacher's logits "
                                 "[default: 2]."),
    "feature_distillation": (float, "WEIGHT", "Weight of the distance from the teacher's tokens "
                             "[default: 1 where they compare, else 0, off]."),
    "seed": (click.IntRange(0), None, "Random seed of weights, order and augmentation."),
}  # fmt: skip


@click.command("train")
@data_option
@click.option("--model", default="gft_tiny", show_default=True,
              help="Network to train: a named GFT, TransFG, or any timm classifier.")  # fmt: skip
@click.option("--weights", type=PATH,
              help="Weights to start from: a file or folder of timm or Hugging Face, a published GFT, "
              "or a run.")  # fmt: skip
@click.option("--teacher", metavar="RUN|timm:NAME",
              help="Trained network of the same classes to imitate: a run, or a pretrained model of "
              "timm's, also timm:hf-hub:OWNER/NAME and timm:local-dir:FOLDER.")  # fmt: skip
@click.option("--out", type=PATH, metavar="DIR", help="Folder of the new run.")
@click.option("--resume", type=PATH, metavar="RUN",
              help="Interrupted run to continue; it needs no other option.")  # fmt: skip
@click.option("--stages",
              help="Blocks to select patches before, each with the number to keep: 8:147,9:98, 8:75%, "
              "3:auto:16 (tokens in multiples of 16), or none.")  # fmt: skip
@click.option("--score", type=click.Choice(list(SCORES)),
              help="Score that patches are ranked by [default: the network's own, else gala].")  # fmt: skip
@click.option("--gala", type=click.Choice(["layer", "block"]),
              help="Attention that gives the scores: an extra layer's, or the block's own.")  # fmt: skip
@click.option("--temperature", type=FiniteRange(0, min_open=True), default=1.0,
              show_default=True, help="Softmax temperature of the patch scores (paper Eq. 3).")  # fmt: skip
@click.option("--image-size", type=int,
              help="Square input size in pixels [default: the network's own].")  # fmt: skip
@click.option("--recipe", type=click.Choice(["default", "paper"]), default="default",
              show_default=True,
              help="Training settings to start from; the options below change them.")  # fmt: skip
@together(*(
    click.option(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=said)
    for name, (kind, metavar, said) in _OF_THE_RECIPE.items()
))  # fmt: skip
@click.option("--amp/--no-amp", default=None,
              help="Compute in bf16 where it is safe [default: where the hardware has it].")  # fmt: skip
@device_options
@click.option("--log-gradients", is_flag=False, flag_value="some", metavar="[EPOCHS|all]",
              help="Epochs in which to log the gradient norm of each layer, for gft-edge report "
              "[default: 5 of them].")  # fmt: skip
@click.option("--tensorboard", is_flag=True, help="Write each epoch to RUN/tensorboard as well.")
@json_option
def command(as_json: bool, **options: Any) -> None:
    """Train a GFT, or another network, on a data set, or resume an interrupted training.

    On several GPUs or machines: accelerate launch -m gft_edge train with the same options. The batch
    size is that of all processes together.

    gft-edge train --data grocery --model gft_tiny_edge --weights deit_tiny.safetensors --out runs/grocery
    """
    from gft_edge.model.temperature import read_temperature
    from gft_edge.training.loop import resume, train
    from gft_edge.training.run_folder import METRICS_FILE, STATE_FILE

    out: Path | None = options["resume"] or options["out"]
    if out is None:
        raise UsageError("give --out RUN for the new run, or --resume RUN for an interrupted one")
    try:
        with progress() as report:
            if options["resume"]:
                metrics = resume(out, report, say, **_moved(options))
            else:
                spec, config = _plan(options)
                metrics = train(out, spec, config, options["weights"], report, say)
    except RuntimeError as error:
        # The others of a launch lose the connection to one that stopped.
        if not LOST_CONNECTION.search(str(error)):
            raise
        raise TrainingError("another process of this launch stopped: see what it said") from error
    except KeyboardInterrupt:
        if (out / STATE_FILE).exists():
            say(f"interrupted; the last whole epoch is kept: gft-edge train --resume {quoted(out)}")
        raise click.exceptions.Exit(130) from None
    if as_json:
        print_json({"run": str(out), "best": metrics})
        return
    row = (percent(metrics.top1), percent(metrics.top5), percent(metrics.f1_macro), metrics.images)
    title = f"{out}: its best epoch ({out / METRICS_FILE})"
    notes = []
    if (fitted := read_temperature(out)) is not None:
        found = CalibrationError(fitted.temperature, fitted.ece, fitted.ece_uncalibrated)
        notes = [calibration_sentence(found)]
    show(Table(title, ("top-1", "top-5", "F1 macro", "images"), [row], notes))
    next_line(f"gft-edge evaluate {quoted(out)} --split test")


def _moved(options: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run may be told anew: where things are. Raises UsageError for the rest."""
    given = {*names_given()}
    fixed = sorted(given - {"resume", "data", "device", "teacher", "workers", "as_json"})
    if fixed:
        raise UsageError(
            f"{', '.join(map(flag, fixed))} cannot change in a resumed run: start a new one with --out"
        )
    moved = {name: options[name] for name in given & {"workers", "device", "teacher"}}
    if moved.get("device") == "auto":
        del moved["device"]
    if "data" in given:
        moved["data"] = str(options["given"].data.resolve())
    return moved


def _plan(options: dict[str, Any]) -> tuple[Any, Any]:
    """The ModelSpec and the RunConfig that the options mean. Raises UsageError and CheckpointError."""
    import torch

    from gft_edge.datasets import read_split
    from gft_edge.model.named_networks import spec_from_name, squashed
    from gft_edge.training.gradients import chosen_epochs
    from gft_edge.training.loop import supports_bf16
    from gft_edge.training.recipes import RECIPES
    from gft_edge.training.run_folder import RunConfig
    from gft_edge.training.teacher import taught_recipe, teacher_of

    source = options["given"].source()
    if source is None:
        raise UsageError(
            "give --data FOLDER with train/ val/ test/ folders of class folders, or with a --dataset"
        )
    model, size = options["model"], options["image_size"]
    changes = {name: options[name] for name in _OF_THE_RECIPE if options[name] is not None}
    recipe = dataclasses.replace(RECIPES[options["recipe"]], **changes)
    teacher = None
    if options["teacher"] is None:
        refuse_given(
            *OF_A_TEACHER, why="is for a training with a teacher: give --teacher, or leave it out"
        )
        recipe = dataclasses.replace(recipe, feature_distillation=0.0)
    else:
        teacher = teacher_of(options["teacher"])
    labels = read_split(source, "train").labels
    if teacher is not None and options["feature_distillation"] is None:
        pupil = spec_from_name(model, labels, image_size_px=size, stages="none")
        recipe = taught_recipe(recipe, teacher, pupil, say)
    device = options["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    logged: tuple[int, ...] = ()
    if (asked := options["log_gradients"]) is not None:
        logged = chosen_epochs(None if asked == "some" else asked, recipe.epochs)
    config = RunConfig(
        str(source.folder),
        recipe,
        supports_bf16(device) if options["amp"] is None else options["amp"],
        options["workers"],
        device,
        options["tensorboard"],
        logged,
        teacher=teacher,
        dataset=source.dataset,
        coco_category=source.coco_category,
    )
    network = {name: options[name] for name in ("stages", "score", "gala", "temperature")}
    spec = spec_from_name(model, labels, image_size_px=size, say=say, **network)
    if options["stages"] is None and spec.family == "gft" and not spec.stages:
        say(f"no --stages: {spec.name} is trained dense")
    return squashed(spec) if recipe.augmentation == "paper" else spec, config
