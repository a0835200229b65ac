"""The training loop: a network and a class folder in, a run folder out, resumable after each epoch."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from gft_edge.errors import CheckpointError, DataError, SpecError, TrainingError, UsageError
from gft_edge.image_folder import Split, read_split
from gft_edge.model.checkpoint import SPEC_FILE, load_backbone, replace_file, save_network
from gft_edge.model.gft import GFT, build_gft
from gft_edge.specs import ModelSpec, Progress, Say, from_json, to_json
from gft_edge.training.data import evaluation_loader, targets_of, training_loader
from gft_edge.training.metrics import Metrics, classification_metrics
from gft_edge.training.recipes import Recipe

STATE_FILE = "last.pt"
CONFIG_FILE = "train.json"
HISTORY_FILE = "history.csv"
METRICS_FILE = "metrics.json"
HISTORY_FIELDS = ("epoch", "lr", "train_loss", "val_top1", "val_top5", "images_per_s", "seconds")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What `--resume` needs beside the spec and the state: the images and the settings."""

    data: str
    recipe: Recipe
    amp: bool
    workers: int
    device: str


@dataclasses.dataclass
class _State:
    epoch: int
    best_top1: float
    history: list[dict[str, float]]


def silent(text: str) -> None:
    """A Say that says nothing."""


def quiet(text: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


def train(
    out: Path,
    spec: ModelSpec,
    config: RunConfig,
    weights: Path | None,
    progress: Progress = quiet,
    say: Say = silent,
) -> Metrics:
    """Train a fresh run into `out` and return the metrics of its best epoch.

    The best epoch is chosen on val/ (on train/ when there is no val/). Raises UsageError when `out`
    holds a run already, DataError, CheckpointError, and TrainingError when the loss is not finite.
    """
    if (out / CONFIG_FILE).exists():
        raise UsageError(
            f"{out} already holds a run: continue it with gft-edge train --resume {out}, "
            "or choose another --out"
        )
    _check_device(config.device)
    _seed(config.recipe.seed)
    model = build_gft(spec)
    if weights is not None:
        fresh = load_backbone(model, spec, weights)
        if fresh:
            say(f"started from {weights}, except {', '.join(sorted(fresh))}: other classes")
    train_split, val_split = _splits(config, spec, say)
    out.mkdir(parents=True, exist_ok=True)
    _replace_text(out / SPEC_FILE, json.dumps(to_json(spec), indent=2) + "\n")
    trainer = _Trainer(out, spec, config, model, len(train_split.paths))
    start = _State(0, -1.0, [])
    # The first weights too: an interruption in the first epoch resumes from them.
    trainer.save_state(start)
    _replace_text(out / CONFIG_FILE, json.dumps(to_json(config), indent=2) + "\n")
    return trainer.run(start, train_split, val_split, progress)


def resume(out: Path, progress: Progress = quiet, say: Say = silent, **moved: Any) -> Metrics:
    """Continue an interrupted run from its last whole epoch, to the uninterrupted run's result.

    On the CPU the result is equal byte for byte; CUDA's own sums are not reproducible. `moved`
    replaces fields of the RunConfig that do not decide the result: data, device, workers.
    Raises CheckpointError when `out` holds no run, or one that has ended.
    """
    spec, config = read_run_config(out)
    config = dataclasses.replace(config, **moved)
    _check_device(config.device)
    model = build_gft(spec)
    train_split, val_split = _splits(config, spec, say)
    trainer = _Trainer(out, spec, config, model, len(train_split.paths))
    return trainer.run(trainer.load_state(), train_split, val_split, progress)


def read_run_config(run: Path) -> tuple[ModelSpec, RunConfig]:
    """model.json and train.json of a run folder. Raises CheckpointError."""
    try:
        spec = from_json(ModelSpec, json.loads((run / SPEC_FILE).read_text()), SPEC_FILE)
        config = from_json(RunConfig, json.loads((run / CONFIG_FILE).read_text()), CONFIG_FILE)
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise CheckpointError(f"{run} is no run: it has no {missing}") from None
    except (ValueError, SpecError) as error:
        raise CheckpointError(f"{run} cannot be used: {error}") from error
    return spec, config


def network_logits(
    model: GFT, spec: ModelSpec, split: Split, workers: int = 0, progress: Progress = quiet
) -> npt.NDArray[np.float32]:
    """Evaluation logits of every image of a split, float32 (images, classes)."""
    device = next(model.parameters()).device
    model.eval()
    batches = []
    done = 0
    with torch.inference_mode():
        for images, _ in _named_failures(evaluation_loader(split, spec.preprocessing, 32, workers)):
            batches.append(model(images.to(device)).float().cpu().numpy())
            done += len(images)
            progress(f"evaluate on {split.name}", done, len(split.paths))
    return np.concatenate(batches)


def supports_bf16(device: str) -> bool:
    """Whether autocast to bfloat16 runs in hardware on this machine's `device`."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


class _Trainer:
    """One run's optimiser, schedule and files."""

    def __init__(
        self, out: Path, spec: ModelSpec, config: RunConfig, model: GFT, train_images: int
    ):
        self.out, self.spec, self.config, self.recipe = out, spec, config, config.recipe
        self.model = model.to(config.device)
        self.steps_per_epoch = max(1, train_images // self.recipe.batch_size)
        steps = self.recipe.epochs * self.steps_per_epoch
        self.optimizer = create_optimizer_v2(
            self.model,
            opt="adamw",
            lr=self.recipe.lr,
            weight_decay=self.recipe.weight_decay,
            layer_decay=self.recipe.layer_decay if self.recipe.layer_decay < 1 else None,
        )
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=steps,
            lr_min=self.recipe.lr * 1e-3,
            warmup_t=int(self.recipe.warmup * steps),
            warmup_lr_init=self.recipe.lr * 0.04,
            warmup_prefix=False,
            t_in_epochs=False,
        )
        self.loss = nn.CrossEntropyLoss(label_smoothing=self.recipe.label_smoothing)

    def run(self, state: _State, train: Split, val: Split, progress: Progress) -> Metrics:
        targets = targets_of(val)
        for epoch in range(state.epoch, self.recipe.epochs):
            started = time.perf_counter()
            loss = self._train_epoch(epoch, train, progress)
            seconds = time.perf_counter() - started
            logits = network_logits(self.model, self.spec, val, self.config.workers, progress)
            if not np.isfinite(logits).all():
                raise self._not_finite("the validation logits", epoch)
            metrics = classification_metrics(logits, targets)
            state.history.append(
                {
                    "epoch": epoch + 1,
                    "lr": max(group["lr"] for group in self.optimizer.param_groups),
                    "train_loss": loss,
                    "val_top1": metrics.top1,
                    "val_top5": metrics.top5,
                    "images_per_s": min(
                        self.steps_per_epoch * self.recipe.batch_size, len(train.paths)
                    )
                    / seconds,
                    "seconds": seconds,
                }
            )
            state.epoch = epoch + 1
            # A later epoch of equal accuracy has seen a lower learning rate.
            if metrics.top1 >= state.best_top1:
                state.best_top1 = metrics.top1
                self._save_best(metrics, val.name, epoch + 1)
            self.save_state(state)
        best: Metrics = from_json(
            Metrics,
            json.loads((self.out / METRICS_FILE).read_text())["metrics"],
            METRICS_FILE,
        )
        return best

    def _train_epoch(self, epoch: int, split: Split, progress: Progress) -> float:
        self.model.train()
        _seed(self.recipe.seed * 100_003 + epoch)
        loader = training_loader(
            split, self.spec.preprocessing, self.recipe, epoch, self.config.workers
        )
        device = self.config.device
        total = 0.0
        for step, (images, targets) in enumerate(_named_failures(loader)):
            self.schedule.step_update(epoch * self.steps_per_epoch + step)
            with torch.autocast(device, dtype=torch.bfloat16, enabled=self.config.amp):
                logits = self.model(images.to(device, non_blocking=True))
                loss = self.loss(logits.float(), targets.to(device, non_blocking=True))
            value = float(loss.detach())
            if not math.isfinite(value):
                raise self._not_finite(f"the loss at step {step + 1}", epoch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad)
            self.optimizer.step()
            total += value
            progress(
                f"epoch {epoch + 1}/{self.recipe.epochs}  loss {total / (step + 1):.3f}",
                step + 1,
                len(loader),
            )
        return total / len(loader)

    def _not_finite(self, what: str, epoch: int) -> TrainingError:
        return TrainingError(
            f"{what} of epoch {epoch + 1} became NaN or infinite: try a lower --lr (now "
            f"{self.recipe.lr:g}), a longer --warmup, or --no-amp"
        )

    def _save_best(self, metrics: Metrics, split: str, epoch: int) -> None:
        save_network(self.out, self.model, self.spec)
        content = {"split": split, "epoch": epoch, "metrics": to_json(metrics)}
        _replace_text(self.out / METRICS_FILE, json.dumps(content, indent=2) + "\n")

    def save_state(self, state: _State) -> None:
        rows = [",".join(HISTORY_FIELDS)]
        rows += [",".join(f"{row[name]:.6g}" for name in HISTORY_FIELDS) for row in state.history]
        _replace_text(self.out / HISTORY_FILE, "\n".join(rows) + "\n")
        replace_file(
            self.out / STATE_FILE,
            lambda partial: torch.save(
                {
                    "epoch": state.epoch,
                    "best_top1": state.best_top1,
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                },
                partial,
            ),
        )

    def load_state(self) -> _State:
        path = self.out / STATE_FILE
        try:
            saved: dict[str, Any] = torch.load(
                path, map_location=self.config.device, weights_only=True
            )
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
        except Exception as error:
            raise CheckpointError(
                f"{path} cannot be resumed ({type(error).__name__}): start again with another --out"
            ) from error
        if saved["epoch"] >= self.recipe.epochs:
            raise CheckpointError(
                f"{self.out} has all of its {self.recipe.epochs} epochs: there is nothing to resume"
            )
        with (self.out / HISTORY_FILE).open(newline="") as file:
            history = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        return _State(saved["epoch"], saved["best_top1"], history[: saved["epoch"]])


def _check_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no GPU here, use --device cpu")


def _splits(config: RunConfig, spec: ModelSpec, say: Say) -> tuple[Split, Split]:
    data = Path(config.data)
    train_split = read_split(data, "train", spec.labels)
    if (data / "val").is_dir():
        return train_split, read_split(data, "val", spec.labels)
    say(f"{data} has no val/ folder: the best epoch is chosen on train/")
    return train_split, train_split


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _named_failures(loader: Any) -> Any:
    """Iterate; a DataError from a worker arrives wrapped in a traceback and leaves as one line."""
    try:
        yield from loader
    except DataError as error:
        last = str(error).strip().splitlines()[-1]
        raise DataError(last.rpartition("DataError: ")[2]) from None


def _replace_text(path: Path, text: str) -> None:
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def logits_and_targets(
    model: GFT, spec: ModelSpec, data: Path, split: str, progress: Progress = quiet
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """A network's logits on DATA/SPLIT, and the classes they should have named."""
    images = read_split(data, split, spec.labels)
    return network_logits(model, spec, images, progress=progress), targets_of(images)
