"""A training of seconds: a four-block GFT on the coloured pictures, and one that is interrupted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gft_edge.bundle.specs import ModelSpec
from gft_edge.datasets import read_split
from gft_edge.fidelity.metrics import Metrics, classification_metrics
from gft_edge.model.checkpoint import load_run
from gft_edge.training.data import targets_of
from gft_edge.training.logits import network_logits
from gft_edge.training.loop import train
from gft_edge.training.recipes import Recipe
from gft_edge.training.run_folder import RunConfig
from tests.support.networks import micro_spec

QUICK = Recipe(epochs=3, batch_size=8, lr=2e-3, layer_decay=1.0, augmentation="flip")
ONE_EPOCH = dataclasses.replace(QUICK, epochs=1)


def coloured_spec(stages: str = "1:20,2:15,3:10", **backbone_args: int) -> ModelSpec:
    """Return the spec of a GFT for the coloured pictures: 36 patches at 48 px."""
    return micro_spec(("b", "g", "r"), stages, 48, **backbone_args)


def config(data: Path, recipe: Recipe = QUICK, **changes: Any) -> RunConfig:
    """Return the settings of a training on the CPU, in FP32, without workers."""
    given = RunConfig(str(data), recipe, amp=False, workers=0, device="cpu")
    return dataclasses.replace(given, **changes)


def training(
    run: Path, data: Path, recipe: Recipe = QUICK, spec: ModelSpec | None = None, **changes: Any
) -> Callable[..., Metrics]:
    """Return a training of the coloured pictures' network into `run` that is yet to be called."""
    return partial(train, run, spec or coloured_spec(), config(data, recipe, **changes), None)


def interrupt(at: str, work: Callable[..., object]) -> None:
    """Call a training and interrupt it two steps into the epoch `at`."""

    def progress(text: str, done: int, total: int) -> None:
        if text.startswith(at) and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(progress=progress)


def metrics_on(run: Path, data: Path, split: str) -> Metrics:
    """Return what the network of a run gets right of a split."""
    spec, network = load_run(run)
    images = read_split(data, split, spec.labels)
    return classification_metrics(network_logits(network, spec, images), targets_of(images))
