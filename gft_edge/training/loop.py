"""The training loop: a network and a data set in, a run folder out, resumable after each epoch."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from gft_edge.bundle.images import CocoCategory, DataSource, SplitRecord
from gft_edge.bundle.json_form import from_json, to_json
from gft_edge.bundle.locks import locked
from gft_edge.bundle.specs import ModelSpec, Progress, Say
from gft_edge.datasets import Split, read_split, split_digest, splits_of
from gft_edge.errors import CheckpointError, DataError, SpecError, TrainingError, UsageError
from gft_edge.fidelity.metrics import Metrics, classification_metrics
from gft_edge.model.checkpoint import (
    IMPORT_FILE,
    SPEC_FILE,
    load_backbone,
    replace_file,
    write_network,
)
from gft_edge.model.networks import Network, build_network
from gft_edge.training.data import evaluation_loader, targets_of, training_loader
from gft_edge.training.gradients import GradientNorms, write_norms
from gft_edge.training.objective import Objective
from gft_edge.training.processes import accelerator_on, gathered, shared_batch_size
from gft_edge.training.recipes import Recipe, check_recipe
from gft_edge.training.teacher import Teacher, load_teacher

STATE_FILE = "last.pt"
CONFIG_FILE = "train.json"
HISTORY_FILE = "history.csv"
METRICS_FILE = "metrics.json"
TENSORBOARD_FOLDER = "tensorboard"
EVALUATION_BATCH = 32
HISTORY_FIELDS = (
    "epoch",
    "lr",
    "train_loss",
    "val_top1",
    "val_top5",
    "val_loss",
    "images_per_s",
    "seconds",
)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What `--resume` needs beside the spec and the state: the images and the settings.

    `log_gradients` are epochs, counted from 1. `splits` are as the run began with them, by name; None
    until it has begun.
    """

    data: str
    recipe: Recipe
    amp: bool
    workers: int
    device: str
    tensorboard: bool = False
    log_gradients: tuple[int, ...] = ()
    teacher: Teacher | None = None
    dataset: str = "imagefolder"
    coco_category: CocoCategory | None = None
    splits: Mapping[str, SplitRecord] | None = None

    @property
    def source(self) -> DataSource:
        """The folder and the data set in it."""
        return DataSource(Path(self.data), self.dataset, self.coco_category)


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


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

    Started by `accelerate launch`, all processes call this and share each batch; the first one writes
    the files, which all of them must be able to read. The best epoch is chosen on val/ (on train/
    when there is no val/). Raises LockedError while another process trains into `out`, UsageError when it
    holds a run already or the recipe does not fit
    the network or its teacher, DataError, CheckpointError, and TrainingError when the loss is not
    finite.
    """
    accelerator = _accelerator(out, config)
    _refuse_a_run(out)
    check_recipe(config.recipe, config.teacher is not None)
    _seed(config.recipe.seed)
    model = build_network(spec)
    if weights is not None:
        fresh = load_backbone(model, spec, weights, say)
        if fresh:
            names = ", ".join(sorted(fresh))
            say(f"started from {weights}, except {names}: not in it, or of other classes")
    train_split, val_split = _splits(config, spec, say)
    config = dataclasses.replace(config, splits=_records(train_split, val_split))
    trainer = _Trainer(out, spec, config, model, len(train_split.paths), accelerator)
    accelerator.wait_for_everyone()
    with _held(out, accelerator):
        _refuse_a_run(out)  # Another training may have begun before the folder was had.
        if accelerator.is_main_process:
            _replace_text(out / SPEC_FILE, json.dumps(to_json(spec), indent=2) + "\n")
        start = _State(0, -1.0, [])
        # The first weights too: an interruption in the first epoch resumes from them.
        trainer.save_state(start)
        if accelerator.is_main_process:
            write_run_config(out, config)
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
            f"with gft-edge train --weights {out}"
        )
    spec, config = read_run_config(out)
    config = dataclasses.replace(config, **moved)
    if teacher is not None:
        if config.teacher is None:
            raise UsageError(f"{out} has no teacher: start a new run with --teacher and --out")
        moved_there = dataclasses.replace(config.teacher, run=teacher)
        config = dataclasses.replace(config, teacher=moved_there)
    accelerator = _accelerator(out, config)
    model = build_network(spec)
    train_split, val_split = _splits(config, spec, say)
    with _held(out, accelerator):
        trainer = _Trainer(out, spec, config, model, len(train_split.paths), accelerator)
        return trainer.run(trainer.load_state(), train_split, val_split, progress)


def _refuse_a_run(out: Path) -> None:
    if (out / IMPORT_FILE).exists():
        raise UsageError(f"{out} holds an imported run: choose another --out")
    if (out / CONFIG_FILE).exists():
        raise UsageError(
            f"{out} already holds a run: continue it with gft-edge train --resume {out}, "
            "or choose another --out"
        )


@contextmanager
def _held(run: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold a run's folder, made where it is absent, on the process that writes it."""
    if not accelerator.is_main_process:
        yield
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{run} cannot be written ({error.strerror}): choose another --out"
        ) from error
    with locked(run):
        yield


def read_run_config(run: Path) -> tuple[ModelSpec, RunConfig]:
    """model.json and train.json of a run folder. Raises CheckpointError."""
    try:
        spec = from_json(ModelSpec, json.loads((run / SPEC_FILE).read_text()), SPEC_FILE)
        config = from_json(RunConfig, json.loads((run / CONFIG_FILE).read_text()), CONFIG_FILE)
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        if missing == CONFIG_FILE and (run / IMPORT_FILE).exists():
            raise CheckpointError(
                f"{run} was imported and has no data of its own: give --data FOLDER"
            ) from None
        raise CheckpointError(f"{run} is no run: it has no {missing}") from None
    except (ValueError, SpecError) as error:
        raise CheckpointError(f"{run} cannot be used: {error}") from error
    return spec, config


def write_run_config(run: Path, config: RunConfig) -> None:
    """train.json of a run folder. Raises CheckpointError when it cannot be written."""
    _replace_text(run / CONFIG_FILE, json.dumps(to_json(config), indent=2) + "\n")


def network_logits(
    network: nn.Module,
    spec: ModelSpec,
    split: Split,
    workers: int = 0,
    progress: Progress = quiet,
    accelerator: Accelerator | None = None,
) -> npt.NDArray[np.float32]:
    """Evaluation logits of every image of a split, float32 (images, classes).

    With an `accelerator` its processes share the images, and each gets all logits.
    """
    accelerator = accelerator or accelerator_on(next(network.parameters()).device.type)
    network.eval()
    batch = EVALUATION_BATCH * accelerator.num_processes
    loader = accelerator.prepare(evaluation_loader(split, spec.preprocessing, batch, workers))
    rows = []
    done = 0
    with torch.inference_mode():
        images = (images for images, _ in _named_failures(loader))
        for logits in gathered(accelerator, images, network):
            rows.append(logits.numpy())
            done += len(logits)
            progress(f"evaluate on {split.name}", done, len(split.paths))
    return np.concatenate(rows)


def supports_bf16(device: str) -> bool:
    """Whether autocast to bfloat16 runs in hardware on this machine's `device`."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


class _Trainer:
    """One run's optimiser, schedule and files, on all processes."""

    def __init__(
        self,
        out: Path,
        spec: ModelSpec,
        config: RunConfig,
        model: Network,
        train_images: int,
        accelerator: Accelerator,
    ):
        self.out, self.spec, self.config, self.recipe = out, spec, config, config.recipe
        self.accelerator = accelerator
        self.batch_size = shared_batch_size(self.recipe.batch_size, train_images, accelerator)
        self.steps_per_epoch = train_images // self.batch_size
        steps = self.recipe.epochs * self.steps_per_epoch
        optimizer = create_optimizer_v2(
            model,
            opt="adamw",
            lr=self.recipe.lr,
            weight_decay=self.recipe.weight_decay,
            layer_decay=self.recipe.layer_decay if self.recipe.layer_decay < 1 else None,
        )
        self.schedule = CosineLRScheduler(
            optimizer,
            t_initial=steps,
            lr_min=self.recipe.lr * 1e-3,
            warmup_t=int(self.recipe.warmup * steps),
            warmup_lr_init=self.recipe.lr * 0.04,
            warmup_prefix=False,
            t_in_epochs=False,
        )
        if config.log_gradients and accelerator.distributed_type is DistributedType.FSDP:
            raise UsageError(
                "--log-gradients needs whole gradients on each process: leave it out under FSDP"
            )
        if self.recipe.ema and accelerator.distributed_type is DistributedType.FSDP:
            raise UsageError(
                "--ema averages whole weights on each process: leave it out under FSDP"
            )
        teacher = None
        if config.teacher is not None:
            teacher = load_teacher(config.teacher, spec, model, self.recipe)
        objective = Objective(model, self.recipe, config.amp, teacher)
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        self.network: Network = accelerator.unwrap_model(self.objective).network
        self.average = None
        if self.recipe.ema:
            self.average = ModelEmaV3(
                self.network, decay=self.recipe.ema, use_warmup=True, exclude_buffers=True
            )

    def run(self, state: _State, train: Split, val: Split, progress: Progress) -> Metrics:
        targets = targets_of(val)
        if self.config.tensorboard:
            self.accelerator.init_trackers(TENSORBOARD_FOLDER)
        for epoch in range(state.epoch, self.recipe.epochs):
            started = time.perf_counter()
            loss = self._train_epoch(epoch, train, progress)
            seconds = time.perf_counter() - started
            logits = network_logits(
                self._evaluated(), self.spec, val, self.config.workers, progress, self.accelerator
            )
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
                    "val_loss": float(
                        nn.functional.cross_entropy(
                            torch.from_numpy(logits), torch.from_numpy(targets)
                        )
                    ),
                    "images_per_s": self.steps_per_epoch * self.batch_size / seconds,
                    "seconds": seconds,
                }
            )
            state.epoch = epoch + 1
            # Where TensorBoard is not asked for this does nothing.
            self.accelerator.log(state.history[-1], step=epoch + 1)
            # A later epoch of equal accuracy has seen a lower learning rate.
            if metrics.top1 >= state.best_top1:
                state.best_top1 = metrics.top1
                self._save_best(metrics, val.name, epoch + 1)
            self.save_state(state)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.wait_for_everyone()
        best: Metrics = from_json(
            Metrics,
            json.loads((self.out / METRICS_FILE).read_text())["metrics"],
            METRICS_FILE,
        )
        return best

    def _train_epoch(self, epoch: int, split: Split, progress: Progress) -> float:
        self.objective.train()
        # Dropout differs between processes, images do not: they have seeds of their own.
        _seed(self.recipe.seed * 100_003 + epoch + 7_919 * self.accelerator.process_index)
        loader = self.accelerator.prepare(
            training_loader(
                split,
                self.spec.preprocessing,
                self.recipe,
                self.batch_size,
                epoch,
                self.config.workers,
            )
        )
        norms = None
        if epoch + 1 in self.config.log_gradients:
            norms = GradientNorms(self.network)
        total = 0.0
        for step, (images, targets) in enumerate(_named_failures(loader)):
            done = epoch * self.steps_per_epoch + step
            self.schedule.step_update(done)
            loss = self.objective(images, targets)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise self._not_finite(f"the loss at step {step + 1}", epoch)
            self.optimizer.zero_grad(set_to_none=True)
            self.accelerator.backward(loss)
            if norms is not None:
                norms.add()
            self.accelerator.clip_grad_norm_(self.objective.parameters(), self.recipe.clip_grad)
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self.network, step=done + 1)
            total += value
            progress(
                f"epoch {epoch + 1}/{self.recipe.epochs}  loss {total / (step + 1):.3f}",
                step + 1,
                self.steps_per_epoch,
            )
        if norms is not None and self.accelerator.is_main_process:
            write_norms(self.out, epoch + 1, norms.means())
        mean = torch.tensor(total / self.steps_per_epoch, device=self.accelerator.device)
        return float(self.accelerator.reduce(mean, "mean"))

    def _evaluated(self) -> nn.Module:
        """What the run is judged by: the network, or where weights are averaged their average."""
        if self.average is None:
            network: nn.Module = self.objective
            return network
        # Each process has BatchNorm statistics of its own images; the first one's hold for all, as in
        # DDP's forward.
        broadcast(list(self.average.module.buffers()))
        averaged: nn.Module = self.average.module
        return averaged

    def _not_finite(self, what: str, epoch: int) -> TrainingError:
        return TrainingError(
            f"{what} of epoch {epoch + 1} became NaN or infinite: try a lower --lr (now "
            f"{self.recipe.lr:g}), a longer --warmup, or --no-amp"
        )

    def _save_best(self, metrics: Metrics, split: str, epoch: int) -> None:
        weights = self._weights() if self.average is None else _on_cpu(self.average.module)
        if not self.accelerator.is_main_process:
            return
        write_network(self.out, weights, self.spec)
        content = {"split": split, "epoch": epoch, "metrics": to_json(metrics)}
        _replace_text(self.out / METRICS_FILE, json.dumps(content, indent=2) + "\n")

    def _weights(self) -> dict[str, Any]:
        """The network's whole state, whoever holds which part; empty but on the first process."""
        state = get_model_state_dict(self.objective, options=_WHOLE)
        return {name.removeprefix("network."): value for name, value in state.items()}

    def save_state(self, state: _State) -> None:
        weights = self._weights()
        optimizer = None
        # Of an optimiser that has not stepped PyTorch would make a state by a step of zero, which
        # counts in Adam's bias correction.
        if self.optimizer.optimizer.state:
            # By parameter name, so that any number of processes and FSDP can take it up.
            optimizer = get_optimizer_state_dict(
                self.objective, self.optimizer.optimizer, options=_WHOLE
            )
        if self.accelerator.is_main_process:
            rows = [",".join(HISTORY_FIELDS)]
            rows += [
                ",".join(f"{row[name]:.6g}" for name in HISTORY_FIELDS) for row in state.history
            ]
            _replace_text(self.out / HISTORY_FILE, "\n".join(rows) + "\n")
            content = {
                "epoch": state.epoch,
                "best_top1": state.best_top1,
                "model": weights,
                "optimizer": optimizer,
                "average": None if self.average is None else _on_cpu(self.average.module),
            }
            replace_file(self.out / STATE_FILE, lambda partial: torch.save(content, partial))
        self.accelerator.wait_for_everyone()
        if not (self.out / STATE_FILE).exists():
            raise UsageError(
                f"{self.out} is not where all machines see it: give --out on a shared disk"
            )

    def load_state(self) -> _State:
        path = self.out / STATE_FILE
        try:
            saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            weights = {f"network.{name}": value for name, value in saved["model"].items()}
            whole = StateDictOptions(full_state_dict=True)
            set_model_state_dict(self.objective, weights, options=whole)
            if saved["optimizer"] is not None:
                set_optimizer_state_dict(
                    self.objective, self.optimizer.optimizer, saved["optimizer"], options=whole
                )
            if self.average is not None:
                self.average.module.load_state_dict(saved["average"])
        except Exception as error:
            raise CheckpointError(
                f"{path} is damaged or not this run's ({type(error).__name__}): start "
                "again with another --out"
            ) from error
        if saved["epoch"] >= self.recipe.epochs:
            raise CheckpointError(
                f"{self.out} has all of its {self.recipe.epochs} epochs: there is nothing to resume"
            )
        try:
            with (self.out / HISTORY_FILE).open(newline="") as file:
                history = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{self.out / HISTORY_FILE} cannot be read, and the epochs so far stand there: restore "
                "it, or start again with another --out"
            ) from error
        return _State(saved["epoch"], saved["best_top1"], history[: saved["epoch"]])


def _on_cpu(network: nn.Module) -> dict[str, Any]:
    return {name: tensor.cpu() for name, tensor in network.state_dict().items()}


def _accelerator(out: Path, config: RunConfig) -> Accelerator:
    return accelerator_on(config.device, out if config.tensorboard else None)


def _splits(config: RunConfig, spec: ModelSpec, say: Say) -> tuple[Split, Split]:
    """What is trained on and what chooses the best epoch, unchanged since the run began."""
    train_split = val_split = read_split(config.source, "train", spec.labels)
    if "val" in splits_of(config.source):
        val_split = read_split(config.source, "val", spec.labels)
    else:
        say(f"{config.data} has no val split: the best epoch is chosen on train")
    for remark in dict.fromkeys((*train_split.remarks, *val_split.remarks)):
        say(remark)
    if config.splits is not None:
        _refuse_other_images(config.data, config.splits, _records(train_split, val_split))
    return train_split, val_split


def _records(*splits: Split) -> dict[str, SplitRecord]:
    return {
        split.name: SplitRecord(len(split.paths), len(split.labels), split_digest(split))
        for split in splits
    }


def _refuse_other_images(
    data: str, began: Mapping[str, SplitRecord], found: Mapping[str, SplitRecord]
) -> None:
    for name in (*began, *found):
        then, now = began.get(name), found.get(name)
        if then != now:
            raise DataError(
                f"{data}: its {name} split is not what this run began with ({now.images if now else 0} "
                f"images, {then.images if then else 0} then; names, labels or contents differ): restore "
                "it, or start a new run with another --out"
            )


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _named_failures(loader: Any) -> Any:
    """Iterate; a worker's DataError, and its death, leave as one line in place of a traceback."""
    try:
        yield from loader
    except DataError as error:
        last = str(error).strip().splitlines()[-1]
        raise DataError(last.rpartition("DataError: ")[2]) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            "a worker that decodes images died, as one does that is out of memory: go on with fewer "
            "--workers"
        ) from error


def _replace_text(path: Path, text: str) -> None:
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def logits_and_targets(
    model: Network,
    spec: ModelSpec,
    data: DataSource | Path,
    split: str,
    progress: Progress = quiet,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """A network's logits on a split of `data`, and the classes they should have named."""
    images = read_split(data, split, spec.labels)
    return network_logits(model, spec, images, progress=progress), targets_of(images)
