"""Which images a command reads: what --data, --dataset and --coco-category say, or the run remembers."""

from __future__ import annotations

from pathlib import Path

from gft_edge.bundle.images import CocoCategory, DataSource
from gft_edge.datasets import data_set
from gft_edge.errors import DataError, MissingDependencyError, UsageError


def given_source(
    data: Path | None, dataset: str | None, coco_category: CocoCategory | None
) -> DataSource | None:
    """The options alone; None without --data. Raises UsageError for those that do not go together."""
    name = dataset or "imagefolder"
    category = _category(name, coco_category)
    if data is None:
        if dataset is not None:
            raise UsageError(f"--dataset {name} lies where? give --data FOLDER too")
        return None
    return DataSource(data, name, category)


def source_of_run(
    run: Path, data: Path | None, dataset: str | None, coco_category: CocoCategory | None
) -> DataSource:
    """The options, and for what is not given the run's own. Raises UsageError and CheckpointError."""
    try:
        from gft_edge.training.run_folder import CONFIG_FILE, read_run_config
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "train") from error
    if data is not None and not (run / CONFIG_FILE).exists():
        own = DataSource(data)
    else:
        own = read_run_config(run)[1].source
    name = dataset or own.dataset
    if name == own.dataset:
        coco_category = coco_category or own.coco_category
    return DataSource(data or own.folder, name, _category(name, coco_category))


def images_of_run(
    run: Path, data: Path | None, dataset: str | None, coco_category: CocoCategory | None
) -> DataSource:
    """The source of a run that has a finished epoch, its folder made sure of.

    Raises CheckpointError for any other run, DataError where the images are not here.
    """
    try:
        from gft_edge.model.checkpoint import IMPORT_FILE
        from gft_edge.training.run_folder import CONFIG_FILE, check_run
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "train") from error
    check_run(run)
    named = (run / CONFIG_FILE).is_file() or (run / IMPORT_FILE).is_file()
    if data is None and not named:
        raise DataError(f"{run} does not say where its images are: give --data FOLDER")
    source = source_of_run(run, data, dataset, coco_category)
    if data is None and not source.folder.is_dir():
        raise DataError(
            f"{run} was trained on {source.folder}, which is not here: give --data FOLDER"
        )
    return source


def _category(name: str, coco_category: CocoCategory | None) -> CocoCategory | None:
    data_set(name)
    if name == "coco":
        return coco_category or "largest"
    if coco_category is not None:
        raise UsageError(f"--coco-category is for --dataset coco, not {name}: leave it out")
    return None
