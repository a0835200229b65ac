"""One run's optimiser, schedule and epochs, with the state that each whole epoch leaves."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
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

from gft_edge.bundle.json_form import from_json, to_json
from gft_edge.bundle.specs import ModelSpec, Progress, Say
from gft_edge.datasets import Split
from gft_edge.errors import CheckpointError, TrainingError, UsageError
from gft_edge.fidelity.metrics import Metrics, classification_metrics
from gft_edge.model.checkpoint import (
    replace_file,
    write_network,
)
from gft_edge.model.network import Network
from gft_edge.training.data import targets_of, training_loader
from gft_edge.training.gradients import GradientNorms, write_norms
from gft_edge.training.history import Row, read_rows, write_rows
from gft_edge.training.logits import named_failures, network_logits
from gft_edge.training.objective import Objective
from gft_edge.training.processes import refuse_single_images, shared_batch_size
from gft_edge.training.run_folder import (
    METRICS_FILE,
    STATE_FILE,
    RunConfig,
    replace_text,
)
from gft_edge.training.teacher import load_teacher
from gft_edge.training.temperature import fit_run_temperature

TENSORBOARD_FOLDER = "tensorboard"

# It warns that one step in all has no learning rate to lower, which is so.
logging.getLogger(CosineLRScheduler.__module__).setLevel(logging.ERROR)

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclasses.dataclass
class State:
    epoch: int
    best_top1: float
    history: list[Row]


class Trainer:
    """One run's optimiser, schedule and files, on all processes."""

    def __init__(
        self,
        out: Path,
        spec: ModelSpec,
        config: RunConfig,
        model: Network,
        train_images: int,
        accelerator: Accelerator,
        say: Say,
    ):
        self.out, self.spec, self.config, self.recipe = out, spec, config, config.recipe
        self.accelerator = accelerator
        self.batch_size = shared_batch_size(self.recipe.batch_size, train_images, accelerator)
        if self.batch_size == accelerator.num_processes:
            refuse_single_images(model, spec.preprocessing.image_size_px)
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
        if accelerator.distributed_type is DistributedType.FSDP:
            for option, asked in (
                ("--log-gradients", config.log_gradients),
                ("--ema", self.recipe.ema),
            ):
                if asked:
                    raise UsageError(
                        f"{option} needs whole weights on each process: leave it out under FSDP"
                    )
        teacher = None
        if config.teacher is not None:
            teacher = load_teacher(config.teacher, spec, model, self.recipe, say)
        objective = Objective(model, self.recipe, config.amp, teacher)
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        self.network: Network = accelerator.unwrap_model(self.objective).network
        self.average = None
        if self.recipe.ema:
            self.average = ModelEmaV3(
                self.network, decay=self.recipe.ema, use_warmup=True, exclude_buffers=True
            )

    def run(self, state: State, train: Split, val: Split, progress: Progress) -> Metrics:
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
                # On the images of the training every answer is too sure of itself.
                if val is not train and self.accelerator.is_main_process:
                    fit_run_temperature(self.out, logits, targets, val.name)
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
        seed_all(self.recipe.seed * 100_003 + epoch + 7_919 * self.accelerator.process_index)
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
        for step, (images, targets) in enumerate(named_failures(loader)):
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
        replace_text(self.out / METRICS_FILE, json.dumps(content, indent=2) + "\n")

    def _weights(self) -> dict[str, Any]:
        """The network's whole state, whoever holds which part; empty but on the first process."""
        state = get_model_state_dict(self.objective, options=_WHOLE)
        return {name.removeprefix("network."): value for name, value in state.items()}

    def save_state(self, state: State) -> None:
        weights = self._weights()
        optimizer = None
        # PyTorch gives an optimiser that has not stepped its state by a step of zero, which
        # counts in Adam's bias correction.
        if self.optimizer.optimizer.state:
            # Keyed by parameter name, so that any number of processes and FSDP can take it up.
            optimizer = get_optimizer_state_dict(
                self.objective, self.optimizer.optimizer, options=_WHOLE
            )
        if self.accelerator.is_main_process:
            write_rows(self.out, state.history)
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

    def load_state(self) -> State:
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
        history = read_rows(self.out)[: saved["epoch"]]
        return State(saved["epoch"], saved["best_top1"], history)


def _on_cpu(network: nn.Module) -> dict[str, Any]:
    return {name: tensor.cpu() for name, tensor in network.state_dict().items()}


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
