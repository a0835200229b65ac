"""A network's logits on every image of a split, shared by the processes there are."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import nn

from gft_edge.bundle.specs import ModelSpec, Progress
from gft_edge.datasets import Split
from gft_edge.errors import DataError, TrainingError
from gft_edge.training.data import evaluation_loader
from gft_edge.training.processes import accelerator_on

EVALUATION_BATCH = 32


def silent(text: str) -> None:
    """A Say that says nothing."""


def quiet(text: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


def network_logits(
    network: nn.Module,
    spec: ModelSpec,
    split: Split,
    workers: int = 0,
    progress: Progress = quiet,
    accelerator: Accelerator | None = None,
) -> npt.NDArray[np.float32]:
    """Evaluation logits of every image of a split, float32 (images, classes).

    With an `accelerator` its processes share the images, and each gets all logits, in the split's order.
    """
    accelerator = accelerator or accelerator_on(next(network.parameters()).device.type)
    network.eval()
    batch = EVALUATION_BATCH * accelerator.num_processes
    loader = accelerator.prepare(evaluation_loader(split, spec.preprocessing, batch, workers))
    rows = []
    done = 0
    with torch.inference_mode():
        for images, _ in named_failures(loader):
            # Without what accelerate repeats to give each process equally many images.
            logits = accelerator.gather_for_metrics(network(images)).float().cpu()
            rows.append(logits.numpy())
            done += len(logits)
            progress(f"evaluate on {split.name}", done, len(split.paths))
    return np.concatenate(rows)


def named_failures(loader: Any) -> Iterator[Any]:
    """Iterate; a worker's DataError, and its death, leave as one line in place of a traceback."""
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    try:
        for number, batch in enumerate(loader):
            # torch has set a handler that raises wherever the main thread is when a worker dies, in a
            # destructor too. Without it torch finds the dead one when it next waits for a batch.
            if not number and before is not None and _in_main_thread():
                signal.signal(signal.SIGCHLD, before)
            yield batch
    except DataError as error:
        last = str(error).strip().splitlines()[-1]
        raise DataError(last.rpartition("DataError: ")[2]) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        _hush_feeders()
        raise TrainingError(
            "a worker that decodes images died, as one does that is out of memory: go on with fewer "
            "--workers"
        ) from error


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _hush_feeders() -> None:
    """Keep the threads that feed a dead worker from printing how they end, a ValueError of a semaphore."""
    hook = threading.excepthook

    def said(failure: threading.ExceptHookArgs) -> None:
        if failure.thread is None or failure.thread.name != "QueueFeederThread":
            hook(failure)

    threading.excepthook = said
