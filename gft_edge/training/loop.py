"""The training loop: a network and a data set in, a run folder out, resumable after each epoch."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.specs import ModelSpec, Progress, Say, check_labels
from gft_edge.datasets import Split, images_per_class, read_split, splits_of
from gft_edge.errors import CheckpointError, UnwrittenError, UsageError
from gft_edge.fidelity.metrics import Metrics
from gft_edge.model.checkpoint import IMPORT_FILE, SPEC_FILE, load_backbone
from gft_edge.model.graph_size import refuse_large_graph, why_too_large
from gft_edge.model.named_networks import build_network
from gft_edge.training.logits import quiet, silent
from gft_edge.training.processes import accelerator_on
from gft_edge.training.recipes import check_recipe
from gft_edge.training.run_folder import (
    RunConfig,
    held,
    read_run_config,
    refuse_a_run,
    refuse_other_images,
    replace_text,
    split_records,
    write_run_config,
)
from gft_edge.training.trainer import State, Trainer, seed_all


def train(
    out: Path,
    spec: ModelSpec,
    config: RunConfig,
    weights: Path | None,
    progress: Progress = quiet,
    say: Say = silent,
) -> Metrics:
    """Train a fresh run into `out` and return the metrics of its best epoch.

    Started by `accelerate launch`, all processes call this and share each batch; the first one writes
    the files, which all of them must be able to read. The best epoch is chosen on val/ (on train/
    when there is no val/). Raises LockedError while another process trains into `out`,
    UsageError when it holds a run already or the recipe does not fit the network or its teacher,
    SpecError for a network or classes that no export takes, DataError, CheckpointError, and
    TrainingError when the loss is not finite.
    """
    accelerator = accelerator_on(config.device, out if config.tensorboard else None)
    refuse_a_run(out)
    check_labels(spec.labels)
    check_recipe(config.recipe, config.teacher is not None)
    seed_all(config.recipe.seed)
    model = build_network(spec)
    refuse_large_graph(model, 2)
    if remark := why_too_large(model, 4):
        say(remark)
    if weights is not None:
        fresh = load_backbone(model, spec, weights, say)
        if fresh:
            names = ", ".join(sorted(fresh))
            say(f"started from {weights}, except {names}: not in it, or of other classes")
    train_split, val_split = _splits(config, spec, say)
    # The run finds its images from any folder.
    data = str(Path(config.data).resolve())
    config = dataclasses.replace(config, data=data, splits=split_records(train_split, val_split))
    trainer = Trainer(out, spec, config, model, len(train_split.paths), accelerator, say)
    accelerator.wait_for_everyone()
    with held(out, accelerator):
        refuse_a_run(out)  # Another training may have begun before the folder was had.
        if accelerator.is_main_process:
            replace_text(out / SPEC_FILE, json.dumps(to_json(spec), indent=2) + "\n")
        start = State(0, -1.0, [])
        # The first weights too: an interruption in the first epoch resumes from them.
        trainer.save_state(start)
        if accelerator.is_main_process:
            write_run_config(out, config)
        with _resumable(out):
            return trainer.run(start, train_split, val_split, progress)


def resume(
    out: Path,
    progress: Progress = quiet,
    say: Say = silent,
    teacher: str | None = None,
    **moved: Any,
) -> Metrics:
    """Continue an interrupted run from its last whole epoch, to the uninterrupted run's result.

    On the CPU the result is equal byte for byte; CUDA's own sums, and those of another number of
    processes, are equal within rounding. `moved` replaces fields of the RunConfig that do not decide
    the result: data, device, workers; `teacher` is where the teacher lies now. Raises CheckpointError
    when `out` holds no run, or one that has ended, LockedError while that one is still being trained,
    and UsageError for another teacher.
    """
    if (out / IMPORT_FILE).exists():
        raise CheckpointError(
            f"{out} was imported, not trained here, so there is nothing to resume: start from it "
            f"with gft-edge train --weights {shlex.quote(str(out))}"
        )
    spec, config = read_run_config(out)
    config = dataclasses.replace(config, **moved)
    if teacher is not None:
        if config.teacher is None:
            raise UsageError(f"{out} has no teacher: start a new run with --teacher and --out")
        moved_there = dataclasses.replace(config.teacher, run=teacher)
        config = dataclasses.replace(config, teacher=moved_there)
    accelerator = accelerator_on(config.device, out if config.tensorboard else None)
    model = build_network(spec)
    train_split, val_split = _splits(config, spec, say)
    with held(out, accelerator):
        trainer = Trainer(out, spec, config, model, len(train_split.paths), accelerator, say)
        return trainer.run(trainer.load_state(), train_split, val_split, progress)


@contextmanager
def _resumable(out: Path) -> Iterator[None]:
    """From the first whole state on a full disk costs no more than the epoch that runs."""
    try:
        yield
    except UnwrittenError as error:
        raise CheckpointError(
            f"{error.what}: make room, then gft-edge train --resume {shlex.quote(str(out))}"
        ) from error


def supports_bf16(device: str) -> bool:
    """Whether autocast to bfloat16 runs in hardware on this machine's `device`."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


def _splits(config: RunConfig, spec: ModelSpec, say: Say) -> tuple[Split, Split]:
    """What is trained on and what chooses the best epoch, unchanged since the run began."""
    train_split = val_split = read_split(config.source, "train", spec.labels)
    if "val" in splits_of(config.source):
        val_split = read_split(config.source, "val", spec.labels)
    else:
        say(f"{config.data} has no val split: the best epoch is chosen on train")
    for remark in dict.fromkeys((*train_split.remarks, *val_split.remarks)):
        say(remark)
    counted = (train_split,) if val_split is train_split else (train_split, val_split)
    for line in (line for split in counted for line in images_per_class(split)):
        say(line)
    if config.splits is not None:
        refuse_other_images(config.data, config.splits, split_records(train_split, val_split))
    return train_split, val_split
