"""The processes that train or evaluate together, through Hugging Face accelerate; one is the usual case."""

from __future__ import annotations

import atexit
import copy
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, is_tensorboard_available
from torch import nn

from gft_edge.errors import MissingDependencyError, UsageError


def accelerator_on(device: str, log_folder: Path | None = None) -> Accelerator:
    """What `accelerate launch` set up, or this process alone, on `cpu` or `cuda`.

    A loader's batch is shared out among the processes, so the recipe's batch size, the number of
    steps and the learning rate mean the same whatever their number. Autocast is the network's own
    (see Objective), FSDP is accelerate's. With `log_folder` scalars go to TensorBoard there. Raises
    UsageError without a GPU, MissingDependencyError without TensorBoard.
    https://huggingface.co/docs/accelerate/package_reference/accelerator
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch sees no GPU here, use --device cpu")
    # accelerate keeps one state a process, and refuses a second device.
    if AcceleratorState._shared_state and AcceleratorState().device.type != device:
        AcceleratorState._reset_state(reset_partial_state=True)
    if log_folder is not None and not is_tensorboard_available():
        raise MissingDependencyError("tensorboard", "tensorboard")
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision="no",
        dataloader_config=DataLoaderConfiguration(split_batches=True, non_blocking=True),
        log_with=None if log_folder is None else "tensorboard",
        project_dir=None if log_folder is None else str(log_folder),
    )
    if accelerator.gradient_accumulation_steps != 1:
        raise UsageError(
            "gradients are not accumulated over steps: launch without --gradient_accumulation_steps "
            "and give a --batch-size that fits"
        )
    if accelerator.num_processes > 1:
        atexit.register(_leave)
    return accelerator


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def shared_batch_size(asked: int, images: int, accelerator: Accelerator) -> int:
    """Images a step of all processes together: `asked`, or all there are.

    Raises UsageError when the processes cannot take equal parts of it.
    """
    batch, processes = min(asked, images), accelerator.num_processes
    if batch % processes:
        lower = batch // processes * processes
        choices = [str(size) for size in (lower, lower + processes) if 0 < size <= images]
        choice = f"give --batch-size {' or '.join(choices)}, or " if choices else ""
        raise UsageError(
            f"a batch of {batch} images cannot be shared among {processes} processes: "
            f"{choice}start another number of processes"
        )
    return batch


def refuse_single_images(model: nn.Module, size_px: int) -> None:
    """Raise UsageError for a network that cannot be trained on one image at a time, as BatchNorm may not."""
    # A copy: the forward pass would move the running statistics, and draw from the run's randomness.
    trial = copy.deepcopy(model).train()
    device = next(trial.parameters()).device
    try:
        with torch.no_grad(), torch.random.fork_rng():
            trial(torch.zeros(1, 3, size_px, size_px, device=device))
    except ValueError as error:
        raise UsageError(
            "this network normalises over the images of a batch, and one image has nothing to "
            "normalise over: give a --batch-size of 2 or more for each process"
        ) from error
