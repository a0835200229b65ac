"""Which images a command reads: what --data, --dataset and --coco-category say, or the run remembers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gft_edge.bundle.images import CocoCategory, DataSource
from gft_edge.datasets import data_set
from gft_edge.errors import DataError, UsageError


@dataclass(frozen=True)
class GivenImages:
    """The three options as they were given, None for what was not."""

    data: Path | None
    dataset: str | None
    coco_category: CocoCategory | None

    def any(self) -> bool:
        """Whether any of the three was given."""
        return any(value is not None for value in (self.data, self.dataset, self.coco_category))

    def source(self) -> DataSource | None:
        """The source that the options alone name; None without --data. Raises UsageError."""
        name = self.dataset or "imagefolder"
        category = _category(name, self.coco_category)
        if self.data is not None:
            return DataSource(self.data, name, category)
        if self.dataset is not None:
            raise UsageError(f"--dataset {name} needs --data FOLDER, the folder it was unpacked in")
        return None

    def of_run(self, run: Path, any_folder: bool = False) -> DataSource:
        """The source that the options name, with the run's own for what is not given.

        With `any_folder` a --data that does not hold the run's own data set is a folder of images.
        Raises CheckpointError for a run without a finished epoch, DataError where the images that it
        was trained on are not here, and UsageError.
        """
        from gft_edge.model.checkpoint import IMPORT_FILE
        from gft_edge.training.run_folder import CONFIG_FILE, check_run, read_run_config

        check_run(run)
        trained = (run / CONFIG_FILE).is_file()
        if self.data is not None and not trained:
            own = DataSource(self.data)
        elif trained or (run / IMPORT_FILE).is_file():
            own = read_run_config(run)[1].source
        else:
            raise DataError(f"{run} does not say where its images are: give --data FOLDER")
        if self.data is None and not os.path.isdir(own.folder):
            raise DataError(
                f"{run} was trained on {own.folder}, which is not here: give --data FOLDER"
            )
        name, category = self.dataset or own.dataset, self.coco_category
        if any_folder and self.data is not None and self.dataset is None:
            name = name if data_set(name).locate(self.data) else "imagefolder"
        if name == own.dataset:
            category = category or own.coco_category
        return DataSource(self.data or own.folder, name, _category(name, category))


def _category(name: str, coco_category: CocoCategory | None) -> CocoCategory | None:
    data_set(name)
    if name == "coco":
        return coco_category or "largest"
    if coco_category is not None:
        raise UsageError(f"--coco-category is for --dataset coco, not {name}: leave it out")
    return None
