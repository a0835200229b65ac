"""What a training leaves in a run's folder: its settings, who holds it, which images it began with."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from gft_edge.bundle.images import CocoCategory, DataSource, SplitRecord
from gft_edge.bundle.json_form import from_json, to_json
from gft_edge.bundle.locks import locked
from gft_edge.bundle.specs import ModelSpec
from gft_edge.datasets import Split, split_digest
from gft_edge.errors import CheckpointError, DataError, SpecError, UsageError
from gft_edge.model.checkpoint import IMPORT_FILE, SPEC_FILE, WEIGHTS_FILE, replace_file
from gft_edge.training.recipes import Recipe
from gft_edge.training.teacher import Teacher

STATE_FILE = "last.pt"
CONFIG_FILE = "train.json"
METRICS_FILE = "metrics.json"


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


def check_run(run: Path) -> None:
    """Raise CheckpointError for a folder that is no run, or a run that has no finished epoch yet."""
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run, give a folder that gft-edge train wrote")
    if not (run / SPEC_FILE).is_file():
        raise CheckpointError(f"{run} is no run: it has no {SPEC_FILE} (gft-edge train writes one)")
    if not (run / WEIGHTS_FILE).is_file():
        raise CheckpointError(
            f"{run} has no finished epoch: continue it with gft-edge train --resume {shlex.quote(str(run))}"
        )


def refuse_a_run(out: Path) -> None:
    """Raise UsageError for a folder that holds a run already."""
    if (out / IMPORT_FILE).exists():
        raise UsageError(f"{out} holds an imported run: choose another --out")
    if (out / CONFIG_FILE).exists():
        raise UsageError(
            f"{out} already holds a run: continue it with gft-edge train --resume {shlex.quote(str(out))}, "
            "or choose another --out"
        )


@contextmanager
def held(run: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold a run's folder, made where it is absent, on the process that writes it."""
    if not accelerator.is_main_process:
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
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
    replace_text(run / CONFIG_FILE, json.dumps(to_json(config), indent=2) + "\n")


def split_records(*splits: Split) -> dict[str, SplitRecord]:
    """What a run remembers of its splits, by name."""
    return {
        split.name: SplitRecord(len(split.paths), len(split.labels), split_digest(split))
        for split in splits
    }


def refuse_other_images(
    data: str, began: Mapping[str, SplitRecord], found: Mapping[str, SplitRecord]
) -> None:
    """Raise DataError where a split is not what the run began with."""
    for name in (*began, *found):
        then, now = began.get(name), found.get(name)
        if then != now:
            raise DataError(
                f"{data}: its {name} split is not what this run began with ({now.images if now else 0} "
                f"images, {then.images if then else 0} then; names, labels or contents differ): restore "
                "it, or start a new run with another --out"
            )


def replace_text(path: Path, text: str) -> None:
    """Put a text file in place in one step. Raises CheckpointError when it cannot be written."""
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))
