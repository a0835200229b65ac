"""gft-edge train."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gft_edge.bundle.scores import SCORES
from gft_edge.cli.options import PATH, data_option, json_option
from gft_edge.cli.output import next_line, percent, print_json, print_table, progress, say
from gft_edge.cli.sources import given_source
from gft_edge.errors import MissingDependencyError, TrainingError, UsageError

LOST_CONNECTION = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset)", re.ASCII)
OVERRIDES = (
    "epochs",
    "batch_size",
    "lr",
    "weight_decay",
    "warmup",
    "layer_decay",
    "ema",
    "distillation",
    "distillation_temperature",
    "feature_distillation",
    "seed",
)
OF_A_TEACHER = ("distillation", "distillation_temperature", "feature_distillation")


@click.command("train")
@data_option
@click.option(
    "--model",
    default="gft_tiny",
    show_default=True,
    help="Network to train: a named GFT, TransFG, or any timm classifier.",
)
@click.option(
    "--weights",
    type=PATH,
    help="Weights to start from: a file or folder of timm or Hugging Face, a published GFT, or a run.",
)
@click.option(
    "--teacher",
    metavar="RUN|timm:NAME",
    help="Trained network of the same classes to imitate: a run, or a pretrained model of timm's, "
    "also timm:hf-hub:OWNER/NAME and timm:local-dir:FOLDER.",
)
@click.option("--out", type=PATH, help="Folder of the new run.")
@click.option("--resume", type=PATH, help="Interrupted run to continue; it needs no other option.")
@click.option(
    "--stages",
    help="Blocks to select patches before, each with the number to keep: 8:147,9:98, 8:75%, "
    "3:auto:16 (tokens in multiples of 16), or none.",
)
@click.option(
    "--score",
    type=click.Choice(list(SCORES)),
    help="Score that patches are ranked by [default: the named network's own, else gala].",
)
@click.option(
    "--gala",
    type=click.Choice(["layer", "block"]),
    help="Take the scores from an extra attention layer, or from the block's own attention.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Softmax temperature of the patch scores (paper Eq. 3).",
)
@click.option("--image-size", type=int, help="Square input size in pixels.")
@click.option(
    "--recipe",
    type=click.Choice(["default", "paper"]),
    default="default",
    show_default=True,
    help="Training settings to start from; the options below change them.",
)
@click.option("--epochs", type=click.IntRange(1), help="Number of epochs.")
@click.option(
    "--batch-size", type=click.IntRange(1), help="Images a step, of all processes together."
)
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Peak learning rate.")
@click.option("--weight-decay", type=click.FloatRange(0), help="Weight decay of AdamW.")
@click.option(
    "--warmup",
    type=click.FloatRange(0, 1, max_open=True),
    help="Fraction of all steps in which the learning rate rises.",
)
@click.option(
    "--layer-decay",
    type=click.FloatRange(0, 1, min_open=True),
    help="Factor of the learning rate from each block to the one before.",
)
@click.option(
    "--ema",
    type=float,
    metavar="DECAY",
    help="Decay of a moving average of the weights, which is evaluated and kept [default: 0, off].",
)
@click.option(
    "--distillation",
    type=float,
    help="Share of the loss that compares with the teacher's logits [default: 0.5].",
)
@click.option(
    "--distillation-temperature",
    type=float,
    help="Softening temperature of the teacher's logits [default: 2].",
)
@click.option(
    "--feature-distillation",
    type=float,
    metavar="WEIGHT",
    help="Weight of the distance from the teacher's tokens [default: 1 where they compare, else 0, off].",
)
@click.option(
    "--seed", type=click.IntRange(0), help="Random seed of weights, order and augmentation."
)
@click.option(
    "--amp/--no-amp",
    default=None,
    help="Compute in bf16 where it is safe [default: where the hardware has it].",
)
@click.option(
    "--workers",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="Number of processes that decode images.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Processor to train on; auto takes a GPU where PyTorch sees one.",
)
@click.option(
    "--log-gradients",
    is_flag=False,
    flag_value="some",
    metavar="[EPOCHS|all]",
    help="Epochs in which to log the gradient norm of each layer, for gft-edge report [default: 5 of them].",
)
@click.option("--tensorboard", is_flag=True, help="Write each epoch to RUN/tensorboard as well.")
@json_option
def command(as_json: bool, **options: Any) -> None:
    """Train a GFT, or another network, on a data set, or resume an interrupted training.

    On several GPUs or machines: accelerate launch -m gft_edge train with the same options. The batch
    size is that of all processes together.

    gft-edge train --data grocery --model gft_tiny_edge --weights deit_tiny.safetensors --out runs/grocery
    """
    try:
        import torch  # noqa: F401

        from gft_edge.training.loop import resume, train
        from gft_edge.training.run_folder import METRICS_FILE, STATE_FILE
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "train") from error
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
            say(f"interrupted; the last whole epoch is kept: gft-edge train --resume {out}")
        raise click.exceptions.Exit(130) from None
    if as_json:
        print_json({"run": str(out), "best": dataclasses.asdict(metrics)})
        return
    print_table(
        f"{out}: its best epoch ({out / METRICS_FILE})",
        ("top-1", "top-5", "F1 macro", "images"),
        [(percent(metrics.top1), percent(metrics.top5), percent(metrics.f1_macro), metrics.images)],
    )
    next_line(f"gft-edge evaluate {out} --split test")


def _moved(options: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run may be told anew: where things are. Raises UsageError for the rest."""
    context = click.get_current_context()
    given = {
        name
        for name in options
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    fixed = sorted(given - {"resume", "data", "device", "teacher", "workers"})
    if fixed:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in fixed)
        raise UsageError(f"{names} cannot change in a resumed run: start a new one with --out")
    moved = {name: options[name] for name in given & {"workers", "device"}}
    if moved.get("device") == "auto":
        del moved["device"]
    if "teacher" in given:
        moved["teacher"] = options["teacher"]
    if "data" in given:
        moved["data"] = str(options["data"].resolve())
    return moved


def _plan(options: dict[str, Any]) -> tuple[Any, Any]:
    from gft_edge.datasets import read_split
    from gft_edge.model.named_networks import spec_from_name, squashed

    config = run_config(options)
    spec = spec_from_name(
        options["model"],
        read_split(config.source, "train").labels,
        image_size_px=options["image_size"],
        stages=options["stages"],
        score=options["score"],
        gala=options["gala"],
        temperature=options["temperature"],
        say=say,
    )
    if options["stages"] is None and spec.family == "gft" and not spec.stages:
        say(f"no --stages: {spec.name} is trained dense")
    return (squashed(spec) if config.recipe.augmentation == "paper" else spec), config


def run_config(options: dict[str, Any]) -> Any:
    """The RunConfig that this command's options mean. Raises UsageError and CheckpointError."""
    import torch

    from gft_edge.datasets import read_split
    from gft_edge.model.named_networks import spec_from_name
    from gft_edge.training.gradients import chosen_epochs
    from gft_edge.training.loop import supports_bf16
    from gft_edge.training.recipes import RECIPES
    from gft_edge.training.run_folder import RunConfig
    from gft_edge.training.teacher import taught_recipe, teacher_of

    source = given_source(options["data"], options["dataset"], options["coco_category"])
    if source is None:
        raise UsageError(
            "give --data FOLDER with train/ val/ test/ folders of class folders, or with a --dataset"
        )
    changes = {name: options[name] for name in OVERRIDES if options[name] is not None}
    if options["teacher"] is None and (alone := [n for n in OF_A_TEACHER if n in changes]):
        raise UsageError(
            f"--{alone[0].replace('_', '-')} is for a training with a teacher: give --teacher, or leave "
            "it out"
        )
    recipe = dataclasses.replace(RECIPES[options["recipe"]], **changes)
    teacher = None
    if options["teacher"] is None:
        recipe = dataclasses.replace(recipe, feature_distillation=0.0)
    else:
        teacher = teacher_of(options["teacher"])
        if options["feature_distillation"] is None:
            labels = read_split(source, "train").labels
            size = options["image_size"]
            pupil = spec_from_name(options["model"], labels, image_size_px=size, stages="none")
            recipe = taught_recipe(recipe, teacher, pupil, say)
    device = options["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    amp = supports_bf16(device) if options["amp"] is None else options["amp"]
    logged: tuple[int, ...] = ()
    if (asked := options["log_gradients"]) is not None:
        logged = chosen_epochs(None if asked == "some" else asked, recipe.epochs)
    return RunConfig(
        str(source.folder.resolve()),
        recipe,
        amp,
        options["workers"],
        device,
        options["tensorboard"],
        logged,
        teacher=teacher,
        dataset=source.dataset,
        coco_category=source.coco_category,
    )
