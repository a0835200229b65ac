"""A run's logits and metrics on a split, kept in the run for as long as weights and images are the same."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gft_edge.bundle.images import DataSource
from gft_edge.bundle.specs import ModelSpec, Progress, Say
from gft_edge.bundle.store import sha256_of, write_whole
from gft_edge.datasets import Split, read_split, split_digest
from gft_edge.errors import BundleError, DataError
from gft_edge.fidelity.metrics import Metrics, classification_metrics
from gft_edge.model.checkpoint import WEIGHTS_FILE, load_run
from gft_edge.model.network import Network
from gft_edge.studies.drawn_images import limited
from gft_edge.studies.memory import Memory
from gft_edge.training.data import targets_of
from gft_edge.training.logits import EVALUATION_BATCH, network_logits, quiet, silent
from gft_edge.training.processes import accelerator_on
from gft_edge.training.run_folder import check_run

FOLDER = "evaluation"


@dataclass(frozen=True)
class Record:
    """What evaluation/SPLIT.json of a run remembers.

    `logits_sha256` is of the file beside it, SPLIT.npz with `logits` (images, classes) float32 and
    `targets` (images,) int64 in the split's order. `device` is where the logits were computed; what
    another device kept is used all the same.
    """

    metrics: Metrics
    logits_sha256: str
    device: str


@dataclass(frozen=True)
class Case:
    """A run and the split to evaluate it on, by sha256 of the weights and datasets.split_digest."""

    run: Path
    spec: ModelSpec
    split: Split
    weights_sha256: str
    split_digest: str

    def decides(self, spec: ModelSpec) -> dict[str, Any]:
        """All that decides an evaluation at `spec`: the same weights keep other patches under another."""
        return {"weights": self.weights_sha256, "model": spec, "images": self.split_digest}


@dataclass(frozen=True)
class Evaluation:
    """A case's metrics and logits (images,classes). `reused` where they were kept from an earlier time."""

    case: Case
    metrics: Metrics
    logits: npt.NDArray[np.float32]
    reused: bool

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """(images,) class indices."""
        return targets_of(self.case.split)


def run_split(source: DataSource, split: str, labels: tuple[str, ...]) -> Split:
    """A split as a run with these classes sees it. Raises DataError."""
    # It becomes the name of a file in the run.
    if Path(split).name != split:
        raise DataError(f"--split {split} is no name of a split: give train, val or test")
    return read_split(source, split, labels)


def open_case(
    run: Path,
    source: DataSource,
    split: str,
    limit: int | None = None,
    fresh: bool = False,
    progress: Progress = quiet,
    say: Say = silent,
) -> tuple[Case, Network]:
    """A run with its network, to be judged on all images of a split or on `limit` of them.

    What the data set's files list and the split lacks is said. With `fresh` every image is read.
    Raises CheckpointError for what is no finished run, DataError, UsageError for the limit.
    """
    check_run(run)
    spec, model = load_run(run)
    images = limited(run_split(source, split, spec.labels), limit)
    for remark in images.remarks:
        say(remark)
    weights = sha256_of(run / WEIGHTS_FILE)
    return Case(run, spec, images, weights, split_digest(images, progress, fresh)), model


def evaluate_run(
    run: Path,
    source: DataSource,
    split: str,
    fresh: bool = False,
    progress: Progress = quiet,
    say: Say = silent,
    device: str = "auto",
    workers: int = 2,
) -> Evaluation:
    """Evaluate a run on a split; raises as open_case and evaluate_case do, which take the same."""
    case, model = open_case(run, source, split, None, fresh, progress, say)
    return evaluate_case(case, fresh, progress, say, device, workers, model)


def evaluate_case(
    case: Case,
    fresh: bool = False,
    progress: Progress = quiet,
    say: Say = silent,
    device: str = "auto",
    workers: int = 2,
    model: Network | None = None,
) -> Evaluation:
    """Take what the run keeps of the split where weights and images still fit, else evaluate and keep it.

    Without `model` the network is loaded where it is needed. `fresh` evaluates in any case, as do
    processes that were launched together, whose first one keeps it. A run that cannot be written to is
    evaluated and nothing kept. `device` is cpu, cuda, or auto for a GPU where there is one; `workers`
    are processes that decode images.
    Raises CheckpointError, DataError, UsageError without the GPU that was asked for, and FailedError
    for logits that are not finite.
    """
    run, images, split = case.run, case.split, case.split.name
    memory, decides = Memory(run / FOLDER), case.decides(case.spec)
    # On several machines each has a disk of its own: who found nothing would wait for the others.
    if not fresh and not launched_together():
        record = memory.recall(split, Record, decides)
        logits = None if record is None else _kept_logits(case, record)
        if record is not None and logits is not None:
            say(f"{run} on {split}: as evaluated before, weights and images are the same")
            return Evaluation(case, record.metrics, logits, reused=True)
    if model is None:
        _, model = load_run(run)
    accelerator = accelerator_on(chosen_device(device))
    # A single batch is decoded before the processes have started.
    workers = workers if len(images.paths) > EVALUATION_BATCH else 0
    logits = network_logits(
        model.to(accelerator.device), case.spec, images, workers, progress, accelerator
    )
    found = Evaluation(
        case, classification_metrics(logits, targets_of(images)), logits, reused=False
    )
    if not accelerator.is_main_process:
        return found
    content = io.BytesIO()
    np.savez(content, logits=logits, targets=found.targets)
    sha256 = hashlib.sha256(content.getvalue()).hexdigest()
    try:
        memory.keep(split, Record(found.metrics, sha256, accelerator.device.type), decides)
        write_whole(_logits_file(case), content.getvalue())
    except (BundleError, OSError) as error:
        say(f"the evaluation of {run} is not kept: {error}")
    return found


def launched_together() -> bool:
    """Whether this is one of several processes that `accelerate launch` started."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def chosen_device(device: str) -> str:
    """cpu or cuda, of an option that may also be auto: a GPU where there is one."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _kept_logits(case: Case, record: Record) -> npt.NDArray[np.float32] | None:
    """The logits of a record; None where there are none, or others."""
    file = _logits_file(case)
    if not file.is_file() or sha256_of(file) != record.logits_sha256:
        return None
    with np.load(file, allow_pickle=False) as content:
        logits: npt.NDArray[np.float32] = content["logits"]
    return logits


def _logits_file(case: Case) -> Path:
    return case.run / FOLDER / f"{case.split.name}.npz"
