"""Training on small real folders: it learns, resumes to the same weights, and stops with a reason."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gft_edge.bundle.locks import locked
from gft_edge.errors import (
    CheckpointError,
    DataError,
    LockedError,
    MissingDependencyError,
    TrainingError,
    UnwrittenError,
    UsageError,
)
from gft_edge.model.checkpoint import load_run
from gft_edge.model.named_networks import build_network, spec_from_name, squashed
from gft_edge.training import processes
from gft_edge.training.data import SplitDataset, training_transform
from gft_edge.training.gradients import read_norms
from gft_edge.training.loop import resume
from gft_edge.training.recipes import PAPER, check_recipe
from gft_edge.training.run_folder import STATE_FILE, read_run_config
from tests.support.refusals import refusal_of
from tests.support.training import (
    ONE_EPOCH,
    QUICK,
    coloured_spec,
    interrupt,
    metrics_on,
    training,
)

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def one_epoch(coloured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("one_epoch") / "run"
    training(run, coloured, ONE_EPOCH)()
    return run


def test_a_run_finds_its_images_from_any_folder(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(coloured.parent)
    training(tmp_path / "run", Path(coloured.name), ONE_EPOCH)()
    monkeypatch.chdir(tmp_path)
    assert read_run_config(tmp_path / "run")[1].source.folder == coloured.resolve()


def test_what_is_trained_on_is_counted_before_it_begins(coloured: Path, tmp_path: Path) -> None:
    said = list[str]()
    training(tmp_path / "run", coloured, ONE_EPOCH)(say=said.append)
    train, val, without = said
    assert train.startswith("train: 36 images of 3 classes: ")
    assert val.startswith("val: 8 images of 2 classes: ")
    assert without.startswith("val ")
    assert without.endswith("1 of 3 classes: b")


def test_a_run_of_one_step_warns_of_nothing(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = dataclasses.replace(ONE_EPOCH, batch_size=1000)
    training(tmp_path / "run", data, recipe)()
    assert not caplog.records


def test_a_command_that_is_advised_quotes_the_folder(one_epoch: Path, tmp_path: Path) -> None:
    shutil.copytree(one_epoch, tmp_path / "my run")
    work = training(tmp_path / "my run", tmp_path)
    refusal_of(UsageError, work, f"gft-edge train --resume '{tmp_path / 'my run'}'")


@pytest.fixture
def data(coloured: Path, tmp_path: Path) -> Path:
    """A copy of the coloured pictures to alter."""
    return Path(shutil.copytree(coloured, tmp_path / "data"))


def timeless(run: Path) -> list[str]:
    """The rows of a run's history without what the clock said."""
    return [row.rsplit(",", 2)[0] for row in (run / "history.csv").read_text().splitlines()]


def test_it_learns_and_leaves_a_run_that_evaluates(trained_run: Path, coloured: Path) -> None:
    _, model = load_run(trained_run)
    result = metrics_on(trained_run, coloured, "test")
    assert result.top1 > 0.9
    assert result.images == 18
    assert not any(torch.equal(s.kernel, torch.tensor([0.25, 0.5, 0.25])) for s in model.selections)
    history = list(csv.DictReader((trained_run / "history.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in history] == [1, 2, 3]
    assert float(history[-1]["train_loss"]) < float(history[0]["train_loss"])
    written = json.loads((trained_run / "metrics.json").read_text())
    assert written["split"] == "val"
    assert set(written["metrics"]) == {f.name for f in dataclasses.fields(result)}
    assert written["metrics"]["top1"] == 1.0


@pytest.mark.parametrize("epoch", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_resumed_run_ends_as_the_uninterrupted_one(
    epoch: int, trained_run: Path, coloured: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    interrupt(f"epoch {epoch}/3", training(run, coloured, log_gradients=(1, 3)))
    if epoch > 1:
        assert len(timeless(run)) == epoch
    resume(run)
    assert (run / WEIGHTS).read_bytes() == (trained_run / WEIGHTS).read_bytes()
    assert timeless(run) == timeless(trained_run)
    logged = read_norms(run / "gradients.csv")
    assert logged == read_norms(trained_run / "gradients.csv")
    assert set(logged) == {1, 3}
    assert {"patch embedding", "block 0", "GALA layer 1", "head"} <= set(logged[1])
    assert all(norm > 0 for norms in logged.values() for norm in norms.values())


@pytest.mark.parametrize("model", [pytest.param("gft", marks=pytest.mark.slow), "test_resnet"])
def test_what_is_evaluated_and_kept_is_the_average_of_the_weights(
    coloured: Path, tmp_path: Path, model: str
) -> None:
    run = tmp_path / "run"
    ends: list[dict[str, dict[str, torch.Tensor]]] = []

    def note(text: str, done: int, total: int) -> None:
        if text.startswith(("epoch 2/", "epoch 3/", "epoch 4/")):
            ends.append(torch.load(run / STATE_FILE, weights_only=True))

    spec = coloured_spec()
    if model != "gft":
        spec = spec_from_name(model, spec.labels, image_size_px=48)
    recipe = dataclasses.replace(QUICK, epochs=4, batch_size=36, ema=0.5)  # one step an epoch
    metrics = training(run, coloured, recipe, spec)(note)
    ends.append(torch.load(run / STATE_FILE, weights_only=True))
    parameters = {name for name, _ in build_network(spec).named_parameters()}
    for name, average in ends[-1]["average"].items():
        expected = ends[0]["model"][name]
        for step, end in enumerate(ends[1:], start=1):
            # timm's warm-up of the decay; buffers are copied.
            decay = min(0.5, 1 - (1 + step) ** (-2 / 3)) if name in parameters else 0
            expected = decay * expected + (1 - decay) * end["model"][name]
        torch.testing.assert_close(average, expected, check_dtype=False)
        assert name not in parameters or not torch.equal(average, ends[-1]["model"][name])
    best = ends[json.loads((run / "metrics.json").read_text())["epoch"] - 1]
    saved = load_file(run / WEIGHTS)
    assert all(torch.equal(saved[name], tensor) for name, tensor in best["average"].items())
    assert metrics_on(run, coloured, "val") == metrics


def test_averaging_weights_does_not_change_how_they_are_trained(
    one_epoch: Path, coloured: Path, tmp_path: Path
) -> None:
    training(tmp_path / "averaged", coloured, dataclasses.replace(ONE_EPOCH, ema=0.9))()
    plain, averaged = (
        torch.load(run / STATE_FILE, weights_only=True)["model"]
        for run in (one_epoch, tmp_path / "averaged")
    )
    assert all(torch.equal(plain[name], averaged[name]) for name in plain)


def test_workers_do_not_change_the_run_and_another_seed_does(
    one_epoch: Path, coloured: Path, tmp_path: Path
) -> None:
    for seed, workers in ((0, 1), (1, 0)):
        recipe = dataclasses.replace(ONE_EPOCH, seed=seed)
        training(tmp_path / f"{seed}", coloured, recipe, workers=workers)()
    expected = (one_epoch / WEIGHTS).read_bytes()
    assert (tmp_path / "0" / WEIGHTS).read_bytes() == expected
    assert (tmp_path / "1" / WEIGHTS).read_bytes() != expected


def test_adam_has_made_as_many_steps_as_the_training(one_epoch: Path) -> None:
    state = torch.load(one_epoch / STATE_FILE, weights_only=True)["optimizer"]["state"]
    # 36 images in batches of 8.
    assert {float(moments["step"]) for moments in state.values()} == {4.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ema": 1.0}, ("--ema is 1:",)),
        ({"ema": -0.1}, ("--ema is -0.1:",)),
        ({"ema": float("nan")}, ("--ema is nan:",)),
        ({"feature_distillation": -1.0}, ("--feature-distillation is -1:",)),
        ({"distillation": 2.0}, ("--distillation is 2:",)),
        ({"distillation_temperature": 0.0}, ("--distillation-temperature is 0:",)),
        ({"feature_distillation": 1.0}, ("--feature-distillation", "--teacher")),
        ({"lr": float("nan")}, ("--lr is nan:",)),
        ({"weight_decay": float("inf")}, ("--weight-decay is inf:",)),
        ({"lr": 1e30, "warmup": 0.0}, ("epoch 1", "--lr (now 1e+30)")),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(
    coloured: Path, tmp_path: Path, changes: dict[str, float], words: tuple[str, ...]
) -> None:
    recipe = dataclasses.replace(QUICK, **changes)  # type: ignore[arg-type]
    # A rate this high overflows the logits within the first epoch: only the training shows it.
    kind = TrainingError if changes.get("lr") == 1e30 else UsageError
    run = tmp_path / "run"
    refusal_of(kind, training(run, coloured, recipe), *words)
    assert run.exists() == (kind is TrainingError)


def test_a_teacher_that_teaches_nothing_is_refused() -> None:
    deaf = dataclasses.replace(QUICK, distillation=0.0)
    refusal_of(UsageError, partial(check_recipe, deaf, True), "--distillation 0")


def test_tensorboard_is_asked_for_where_it_is_missing(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "is_tensorboard_available", lambda: False)
    work = training(tmp_path / "run", coloured, tensorboard=True)
    refusal_of(MissingDependencyError, work, "pip install 'gft-edge[tensorboard]'")
    assert not (tmp_path / "run").exists()


def test_a_launch_that_accumulates_gradients_is_refused(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    work = training(tmp_path / "run", coloured)
    refusal_of(UsageError, work, "--gradient_accumulation_steps")


def test_a_worker_that_dies_is_said_in_one_line(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: SplitDataset, index: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    # Workers are forks of this process and take the change with them.
    monkeypatch.setattr(SplitDataset, "__getitem__", killed)
    run = tmp_path / "run"
    refusal_of(TrainingError, training(run, coloured, ONE_EPOCH, workers=1), "--workers")
    monkeypatch.undo()
    assert resume(run, workers=0).images == 8


def test_a_worker_that_dies_while_the_network_computes_is_said_in_one_line(
    coloured: Path, tmp_path: Path
) -> None:
    def progress(text: str, done: int, total: int) -> None:
        if text.startswith("epoch 1/1"):
            for worker in psutil.Process().children():
                worker.kill()
            # torch's own handler of the signal would raise in here.
            time.sleep(0.5)
            reached.append(done)

    reached: list[int] = []
    recipe = dataclasses.replace(ONE_EPOCH, batch_size=2)
    work = training(tmp_path / "run", coloured, recipe, workers=1)
    refusal_of(TrainingError, partial(work, progress=progress), "--workers")
    assert reached


@pytest.mark.parametrize("size_px", [32, 64])
def test_one_image_at_a_time_is_refused_where_batchnorm_has_nothing_to_normalise_over(
    coloured: Path, tmp_path: Path, size_px: int
) -> None:
    recipe = dataclasses.replace(ONE_EPOCH, batch_size=1, layer_decay=1.0)
    spec = spec_from_name("resnet10t", ("b", "g", "r"), image_size_px=size_px)
    work = training(tmp_path / "run", coloured, recipe, spec)
    if size_px == 32:
        refusal_of(UsageError, work, "--batch-size")
        assert not (tmp_path / "run").exists()
    else:
        # Its last features are 2 x 2 px.
        assert work().images == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_in_one_line(data: Path, tmp_path: Path, workers: int) -> None:
    broken = data / "train" / "g" / "broken.jpg"
    broken.write_bytes(b"no image")
    work = training(tmp_path / "run", data, workers=workers)
    assert refusal_of(DataError, work).startswith(str(broken))


def test_other_classes_than_the_networks_are_refused(data: Path, tmp_path: Path) -> None:
    (data / "val" / "purple").mkdir()
    refusal_of(DataError, training(tmp_path / "run", data), "1 classes", "purple")


def test_a_folder_that_holds_a_run_is_not_trained_over(one_epoch: Path, coloured: Path) -> None:
    refusal_of(UsageError, training(one_epoch, coloured), "--resume", "--out")
    refusal_of(CheckpointError, partial(resume, one_epoch), str(one_epoch))


def test_a_folder_that_is_being_written_is_neither_trained_into_nor_resumed(
    one_epoch: Path, coloured: Path, tmp_path: Path
) -> None:
    with locked(one_epoch):
        refusal_of(LockedError, partial(resume, one_epoch), str(one_epoch))
    new = tmp_path / "new"
    new.mkdir()
    work = training(new, coloured)
    with locked(new):
        refusal_of(LockedError, work, str(new))
    assert [path.name for path in new.iterdir()] == [".lock"]

    def step(*_: object) -> None:
        with locked(new):
            pass

    # A training holds its own.
    refusal_of(LockedError, partial(work, step), str(new))


def test_resuming_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    refusal_of(CheckpointError, partial(resume, tmp_path), "model.json")


def test_a_run_with_a_damaged_file_is_not_resumed(coloured: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    interrupt("epoch 1/1", training(run, coloured, ONE_EPOCH))
    history = run / "history.csv"
    history.write_text("epoch,lr\n1,x\n")
    refusal_of(CheckpointError, partial(resume, run), "history.csv")
    history.unlink()
    refusal_of(CheckpointError, partial(resume, run), "history.csv")
    (run / STATE_FILE).write_bytes(b"cut off")
    refusal_of(CheckpointError, partial(resume, run), STATE_FILE)


def test_a_full_disk_keeps_the_last_whole_epoch(
    trained_run: Path, coloured: Path, tmp_path: Path
) -> None:
    run = tmp_path / "my run"

    def fill(text: str, done: int, total: int) -> None:
        if text.startswith("epoch 2/3") and done == total:
            # The device that answers every write as a full disk does.
            (run / ".last.pt.partial").symlink_to("/dev/full")

    refusal_of(
        CheckpointError, partial(training(run, coloured), fill), "last.pt", f"--resume '{run}'"
    )
    resume(run)
    assert timeless(run) == timeless(trained_run)
    assert (run / WEIGHTS).read_bytes() == (trained_run / WEIGHTS).read_bytes()


@pytest.mark.parametrize("name", ["last.pt", "train.json", "model.json"])
def test_a_disk_that_is_full_from_the_start_leaves_a_folder_to_train_into(
    coloured: Path, tmp_path: Path, name: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / f".{name}.partial").symlink_to("/dev/full")
    line = refusal_of(UnwrittenError, training(run, coloured, ONE_EPOCH), name)
    # There is no whole state to resume from.
    assert "resume" not in line
    training(run, coloured, ONE_EPOCH)()


def test_the_paper_recipe_squashes_the_whole_image() -> None:
    spec = squashed(coloured_spec()).preprocessing
    assert (spec.crop_mode, spec.crop_pct) == ("squash", 1.0)
    torch.manual_seed(0)
    image = Image.new("RGB", (100, 30), (200, 10, 10))
    assert training_transform(spec, PAPER)(image).shape == (3, 48, 48)
