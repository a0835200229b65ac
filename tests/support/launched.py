"""One of the processes that test_processes.py launches: trains a small run, logs who wrote what."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor

from gft_edge.bundle.specs import ModelSpec
from gft_edge.datasets import read_split
from gft_edge.model import checkpoint
from gft_edge.model.named_networks import spec_from_name
from gft_edge.training import data, loop, processes, run_folder, trainer
from gft_edge.training.recipes import Recipe
from gft_edge.training.run_folder import RunConfig

RECIPE = Recipe(epochs=2, batch_size=8)


def small_run(folder: Path) -> tuple[ModelSpec, RunConfig]:
    """A four-block GFT whose last stages choose among few patches, on the images of `folder`."""
    spec = spec_from_name(
        "vit_tiny_patch16_224",
        read_split(folder, "train").labels,
        image_size_px=32,
        stages="1:12,2:8,3:4",
        backbone_args={"embed_dim": 48, "depth": 4, "num_heads": 3, "patch_size": 8},
    )
    return spec, RunConfig(str(folder), RECIPE, amp=False, workers=0, device="cpu")


def main(folder: Path, out: Path, how: str) -> None:
    """Train into `out`. `how`: together; dies, the second process in the second epoch; fsdp."""
    rank = int(os.environ["RANK"])
    log_calls(run_folder, "replace_file", lambda path, _: log(out, rank, "wrote", path.name))
    log_calls(trainer, "replace_file", lambda path, _: log(out, rank, "wrote", path.name))
    log_calls(checkpoint, "replace_file", lambda path, _: log(out, rank, "wrote", path.name))
    log_calls(data, "open_rgb", lambda path, *_: log(out, rank, "read", f"{path.parts[-3:]}"))
    if how == "dies" and rank == 1:
        log_calls(trainer, "training_loader", die_in_the_second_epoch)
    if how == "fsdp":
        setattr(loop, "accelerator_on", sharding(processes.accelerator_on))  # noqa: B010
    spec, config = small_run(folder)
    loop.train(out, spec, config, None)


def die_in_the_second_epoch(*given: Any) -> None:
    """As a process does that is out of memory."""
    if given[4] == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def log_calls(module: Any, name: str, note: Callable[..., object]) -> None:
    """Let `note` see the arguments of each call before it is made."""
    real = getattr(module, name)

    def call(*given: Any, **named: Any) -> Any:
        note(*given)
        return real(*given, **named)

    setattr(module, name, call)


def log(out: Path, rank: int, what: str, name: str) -> None:
    """Append a line to a file beside the run."""
    with (out.parent / f"{out.name}.{what}.{rank}").open("a") as file:
        file.write(f"{name}\n")


def sharding(real: Callable[..., Any]) -> Callable[..., Any]:
    """accelerate offers FSDP to GPUs alone; its FSDP2 runs on the CPU all the same."""

    def accelerator_on(*given: Any) -> Any:
        accelerator = real(*given)
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["Block"],
        )
        accelerator.state.distributed_type = DistributedType.FSDP
        prepare = accelerator.prepare

        def checked(*objects: Any) -> Any:
            prepared = prepare(*objects)
            if len(objects) == 2:
                assert all(isinstance(p, DTensor) for p in prepared[0].parameters())
            return prepared

        accelerator.prepare = checked
        return accelerator

    return accelerator_on


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
