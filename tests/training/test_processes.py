"""Several processes that train one run together give what one process gives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gft_edge.errors import UsageError
from gft_edge.training.loop import resume, train
from gft_edge.training.processes import shared_batch_size
from tests.support import launched
from tests.support.cli import refused, run
from tests.support.paths import ROOT
from tests.support.refusals import refusal_of


@pytest.fixture(scope="module")
def alone(coloured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    spec, config = launched.small_run(coloured)
    train(run, spec, config, None)
    return run


def launch(*words: object) -> subprocess.CompletedProcess[str]:
    """Two processes on the CPU, started as accelerate starts them."""
    return subprocess.run(
        [
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
            "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
            "--dynamo_backend", "no", "--main_process_port", "0", *map(str, words),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def together(data: Path, run: Path, how: str) -> subprocess.CompletedProcess[str]:
    return launch(ROOT / "tests" / "support" / "launched.py", data, run, how)


def assert_same_run(run: Path, other: Path) -> None:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run, other))
    assert ours.keys() == theirs.keys()
    # A step moves a weight by up to 1e-3; where a gradient is all rounding, Adam enlarges that.
    apart = torch.cat([(weight - theirs[name]).abs().flatten() for name, weight in ours.items()])
    assert apart.max() < 2e-4
    assert apart.mean() < 1e-6
    timeless = [
        [line.rsplit(",", 2)[0].split(",") for line in (r / "history.csv").read_text().split()[1:]]
        for r in (run, other)
    ]
    history, expected = (np.array(rows, dtype=float) for rows in timeless)
    np.testing.assert_allclose(history, expected, rtol=1e-4)
    ours, theirs = (json.loads((r / "metrics.json").read_text()) for r in (run, other))
    assert ours == theirs


def logged(run: Path, what: str, rank: int) -> list[str]:
    path = run.parent / f"{run.name}.{what}.{rank}"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
def test_two_processes_see_each_image_once_write_once_and_train_what_one_trains(
    coloured: Path, alone: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = together(coloured, run, "together")
    assert result.returncode == 0, result.stderr
    assert_same_run(run, alone)
    assert not logged(run, "wrote", 1)
    # The first weights, then each epoch.
    assert Counter(logged(run, "wrote", 0))["last.pt"] == 3
    seen = [
        Counter(line for line in logged(run, "read", rank) if "train" in line) for rank in (0, 1)
    ]
    # Four steps of four images, in two epochs; four of 36 images are left out.
    assert [sum(counter.values()) for counter in seen] == [32, 32]
    assert max((seen[0] + seen[1]).values()) == 2


@pytest.mark.slow
def test_a_run_whose_process_died_goes_on_with_another_number_of_processes(
    coloured: Path, alone: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = together(coloured, run, "dies")
    assert result.returncode != 0
    assert len((run / "history.csv").read_text().split()) == 2
    resume(run)
    assert_same_run(run, alone)


@pytest.mark.slow
def test_fsdp_trains_what_one_process_trains_and_its_checkpoint_is_whole(
    coloured: Path, alone: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = together(coloured, run, "fsdp")
    assert result.returncode == 0, result.stderr
    assert_same_run(run, alone)
    saved = torch.load(run / "last.pt", weights_only=True)
    reference = torch.load(alone / "last.pt", weights_only=True)
    assert saved["model"].keys() == reference["model"].keys()
    assert saved["optimizer"]["state"].keys() == reference["optimizer"]["state"].keys()


@pytest.mark.slow
def test_the_command_line_is_the_same_program_under_the_launcher(
    coloured: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trained = launch(
        "-m", "gft_edge", "train", "--data", coloured, "--out", run, "--model", "vit_tiny_patch16_224",
        "--image-size", 32, "--stages", "1:3,2:2", "--epochs", 1, "--batch-size", 4, "--no-amp",
        "--device", "cpu", "--workers", 1, "--tensorboard", "--json",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["run"] == str(run)
    assert trained.stderr.count("epoch 1/1") == 1
    evaluated = launch("-m", "gft_edge", "evaluate", run, "--split", "val", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    metrics = json.loads(evaluated.stdout)
    assert metrics["images"] == 8
    assert metrics.pop("split") == "val"
    assert json.loads((run / "metrics.json").read_text())["metrics"].items() <= metrics.items()
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    [logged_top1] = events.Scalars("val_top1")
    assert logged_top1.step == 1
    assert logged_top1.value == pytest.approx(metrics["top1"])

    table = tmp_path / "table.md"
    printed = launch("-m", "gft_edge", "evaluate", run, "--split", "val", "--format", "csv",
                     "--out", table)  # fmt: skip
    assert printed.returncode == 0, printed.stderr
    assert len(printed.stdout.splitlines()) == 2
    assert printed.stderr.count("written:") == 1


def test_of_several_processes_the_first_alone_writes(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, out = tmp_path / "run", tmp_path / "t.md"
    shutil.copytree(trained_run, copy)
    # The second of two, whose result is what the first one has too.
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(Accelerator, "is_main_process", property(lambda _: False))
    given = (copy, "--split", "val", "--device", "cpu")
    for result in (run("evaluate", *given, "--out", out), run("report", *given)):
        assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    assert not out.exists()
    assert not (copy / "evaluation").exists()
    assert not (copy / "report.html").exists()

    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(run("evaluate", *given, "--bundles", copy), "--bundles")


def test_a_batch_is_no_larger_than_the_data_and_refused_where_it_cannot_be_shared() -> None:
    for asked, images, processes, words in (
        (30, 500, 4, ("--batch-size 28 or 32",)),
        (3, 500, 4, ("--batch-size 4",)),
        (32, 7, 2, ("--batch-size 6",)),
        (32, 3, 4, ("4 processes",)),
    ):
        accelerator: Any = SimpleNamespace(num_processes=processes)
        refusal_of(UsageError, partial(shared_batch_size, asked, images, accelerator), *words)
    accelerator = SimpleNamespace(num_processes=2)
    assert shared_batch_size(32, 500, accelerator) == 32
    assert shared_batch_size(32, 8, accelerator) == 8
