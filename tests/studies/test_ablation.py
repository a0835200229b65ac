"""gft-edge ablate on a micro network: it trains what is missing, compares in pairs and refuses mixtures."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from timm.utils import ModelEmaV3
from torch import nn

from gft_edge.cli import main
from gft_edge.errors import TrainingError
from gft_edge.model import variants
from gft_edge.studies import ablation
from gft_edge.studies import ablation_table as table
from gft_edge.studies.ablation_plan import cell_name, read_plan
from gft_edge.studies.ablation_result import Ablation, ArmResult, Difference, counterparts
from gft_edge.studies.crossed import crossed_estimate
from gft_edge.studies.same_training import highest_decay, own_recipe
from gft_edge.training import loop
from gft_edge.training.recipes import Recipe

MICRO = {"depth": 4, "embed_dim": 24, "num_heads": 3, "patch_size": 8}
GRID = ("--scores", "none,class,random", "--stages", "0:12,2:50%", "--seeds", 2)
COLUMNS = ["score", "stages", "split", "images", "top1", "spread"]


@pytest.fixture(scope="module", autouse=True)
def micro_variant() -> Iterator[None]:
    """A network that --model micro names; it is too shallow for the stages of its own."""
    with pytest.MonkeyPatch.context() as patch:
        edge = variants.VARIANTS["gft_tiny_edge"]
        micro = dataclasses.replace(edge, backbone_args=MICRO)
        patch.setitem(variants.VARIANTS, "micro", micro)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that differ in hue, 32 px, with noise."""
    folder = tmp_path_factory.mktemp("ablation") / "data"
    write_images(folder)
    return folder


def write_images(folder: Path, test: int = 10) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4), ("test", test)):
        for index in range(3):
            (folder / split / "rgb"[index]).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 150, (32, 32, 3), dtype=np.uint8)
                pixels[..., index] += 30
                Image.fromarray(pixels).save(folder / split / "rgb"[index] / f"{number}.png")


def settings(data: Path) -> tuple[object, ...]:
    return ("--data", data, "--model", "micro", "--image-size", 32, "--epochs", 1,
            "--batch-size", 8, "--workers", 0, "--device", "cpu", "--no-amp")  # fmt: skip


def ablate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["ablate", *map(str, arguments)])


def ablate_json(*arguments: object) -> dict[str, Any]:
    result = ablate(*arguments, "--json")
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def assert_refused(result: Result, *words: str) -> None:
    """One line on stderr with `words`, nothing on stdout, exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    for word in words:
        assert word in line


@pytest.fixture(scope="module")
def grid(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished ablation. Copy it before going on in it."""
    out = tmp_path_factory.mktemp("grid") / "out"
    ablate_json(*settings(data), *GRID, "--out", out)
    return out


@pytest.fixture
def copy(grid: Path, tmp_path: Path) -> Path:
    """The finished ablation, to be altered."""
    shutil.copytree(grid, tmp_path / "copy")
    return tmp_path / "copy"


def trained(out: Path) -> dict[str, int]:
    """When the weights of each cell were written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/model.safetensors")}


def test_each_cell_is_a_run_and_dense_is_trained_once_a_seed(grid: Path) -> None:
    assert sorted(trained(grid)) == [
        "class_0-12_2-8_seed0", "class_0-12_2-8_seed1", "none_seed0", "none_seed1",
        "random_0-12_2-8_seed0", "random_0-12_2-8_seed1",
    ]  # fmt: skip
    assert not list(grid.glob("*/last.pt"))
    run = grid / "class_0-12_2-8_seed1"
    spec, config = loop.read_run_config(run)
    assert (spec.score, config.recipe.seed) == ("class", 1)
    result = CliRunner().invoke(main, ["evaluate", str(run), "--workers", "0", "--json"])
    assert json.loads(result.stdout)["images"] == 30


def test_differences_are_paired_over_images_and_seeds(grid: Path) -> None:
    content = ablate_json("--out", grid, "--report")
    assert (content["cells"], content["finished"], content["intervals"]) == (6, 6, True)
    assert content["columns"] == ["random", "dense"]
    correct = {}
    for arm in content["arms"]:
        rows = []
        for run in arm["runs"]:
            with np.load(grid / run / "evaluation" / "test.npz") as file:
                rows.append(file["logits"].argmax(axis=1) == file["targets"])
        correct[arm["score"]] = np.stack(rows).astype(int)
        assert arm["top1"] == pytest.approx(correct[arm["score"]].mean(axis=1))
        assert arm["spread"] == pytest.approx(np.std(arm["top1"], ddof=1))
    differences = {arm["score"]: arm["differences"] for arm in content["arms"]}
    assert [d["to"] for d in differences["class"]] == ["random", "dense"]
    assert [d["to"] for d in differences["random"]] == ["dense"]
    assert differences["none"] == []
    to_random, to_dense = differences["class"]
    for found, other in ((to_random, "random"), (to_dense, "none")):
        values = correct["class"] - correct[other]
        assert found["mean"] == pytest.approx(values.mean())
        assert found["estimate"] == dataclasses.asdict(crossed_estimate(values))


def test_table_and_picture_say_the_same_on_a_terminal_and_in_files(grid: Path) -> None:
    printed = ablate("--out", grid, "--report")
    assert printed.exit_code == 0, printed.output
    lines = [*csv.DictReader((grid / "ablation.csv").read_text().splitlines())]
    assert [line["score"] for line in lines] == ["none", "class", "random"]
    assert [*lines[0]][:6] == COLUMNS
    markdown = (grid / "ablation.md").read_text()
    assert markdown.startswith(
        "| score | stages | top-1 % | spread | each seed | vs random | vs dense"
    )
    for line in lines:
        top1 = f"{100 * float(line['top1']):.2f}"
        assert f"| {top1} |" in markdown
        assert top1 in printed.stdout
    assert "two seeds" in markdown
    with Image.open(grid / "ablation.png") as picture:
        assert picture.size[0] > 500


def test_standard_errors_stand_beside_p_and_what_rests_on_images_is_marked() -> None:
    # Three seeds: alike, and unlike.
    alike = crossed_estimate(np.tile([1, 0, 0, 0, 1, 0], (3, 1)))
    unlike = crossed_estimate(np.repeat([[1], [1], [0]], 6, axis=1))
    arms = [
        ArmResult(name, "1:8", {}, ("run",), (0, 1, 2), (0.5, 0.5, 0.5), 0.5, 0.0, None,
                  (Difference("random", "other", (0, 1, 2), known.mean, known),))
        for name, known in (("class", alike), ("gala", unlike))
    ]  # fmt: skip
    shown = Ablation(
        "out", "micro", "data", "test", 6, 3, None, 3, 6, 6, True, (), ("random",), tuple(arms)
    )
    first, second = (row[-1] for row in table.cells(shown))
    assert first.endswith("], +1.6 SE, p = 0.175 *")
    assert second.endswith("], +2.0 SE, p = 0.184")
    notes = "\n".join(table.notes(shown))
    assert "read standard errors with p" in notes
    assert "* rests on the images alone" in notes
    lines = [*csv.DictReader(table.to_csv(shown).splitlines())]
    assert [line["vs_random_rests_on"] for line in lines] == ["images", "seeds"]
    assert [float(line["vs_random_p_value"]) for line in lines] == [alike.p_value, unlike.p_value]
    without = dataclasses.replace(shown, arms=(arms[1],))
    assert "images alone" not in "\n".join(table.notes(without))


def test_the_same_command_trains_nothing_again(data: Path, copy: Path) -> None:
    before = trained(copy)
    shown = ablate_json("--out", copy, "--report")
    again = ablate(*settings(data), *GRID, "--out", copy, "--json")
    assert json.loads(again.stdout) == shown
    assert "6 of 6 cells are finished already" in again.stderr
    assert "epoch" not in again.stderr
    assert trained(copy) == before


def test_a_larger_grid_trains_the_new_cells_alone(data: Path, copy: Path) -> None:
    before = trained(copy)
    larger = ("--scores", "class,random,gala", "--stages", "0:12,2:8", "--seeds", 3)
    result = ablate(*settings(data), *larger, "--vary", "layer_decay=0.75,0.9", "--out", copy)
    assert result.exit_code == 0, result.output
    assert "4 of 18 cells are finished already" in result.stderr
    assert "cell 1/18" not in result.stderr
    assert "cell 6/18 gala_0-12_2-8_layer_decay=0.9_seed0: epoch 1/1" in result.stderr
    after = trained(copy)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 14
    content = ablate_json("--out", copy, "--report")
    assert content["columns"] == ["random", "layer_decay=0.75"]
    assert [arm["settings"]["layer_decay"] for arm in content["arms"]] == [0.75, 0.9] * 3
    (_, gala) = [arm for arm in content["arms"] if arm["score"] == "gala"]
    assert [d["run"] for d in gala["differences"]] == [
        "random_0-12_2-8_layer_decay=0.9", "gala_0-12_2-8",
    ]  # fmt: skip
    _, config = loop.read_run_config(copy / gala["runs"][0])
    assert config.recipe.layer_decay == 0.9


def test_an_interrupted_ablation_goes_on_to_the_same_weights(
    data: Path, grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    save_state = loop._Trainer.save_state

    def interrupted(self: Any, state: Any) -> None:
        save_state(self, state)
        # Of the second cell, before its first epoch.
        if self.out.name == "class_0-12_2-8_seed0":
            raise KeyboardInterrupt

    def half(self: Any, *arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Trainer, "save_state", interrupted)
        stopped = ablate(*settings(data), *GRID, "--out", out)
    assert stopped.exit_code == 130
    assert f"every whole epoch is kept in {out}, the same command goes on" in stopped.stderr
    with monkeypatch.context() as patch:
        # Again in the middle of it, its settings now written.
        patch.setattr(loop._Trainer, "_train_epoch", half)
        assert ablate(*settings(data), *GRID, "--out", out).exit_code == 130
    assert (out / "class_0-12_2-8_seed0" / "train.json").is_file()
    partial = ablate_json("--out", out, "--report")
    assert (partial["finished"], [arm["score"] for arm in partial["arms"]]) == (1, ["none"])
    assert ablate(*settings(data), *GRID, "--out", out).exit_code == 0
    for run in trained(grid):
        weights = (out / run / "model.safetensors").read_bytes()
        assert weights == (grid / run / "model.safetensors").read_bytes()


def test_a_cell_whose_logits_are_not_finite_does_not_stop_the_others(
    data: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copy / "class_0-12_2-8_seed0" / "evaluation")

    def failing(*arguments: Any) -> Any:
        return np.nan * loop.network_logits(*arguments)

    monkeypatch.setattr("gft_edge.studies.evaluation.network_logits", failing)
    for command in ("--report",), (*settings(data), *GRID):
        result = ablate(*command, "--out", copy)
        assert result.exit_code == (0 if "--report" in command else 1), result.output
        assert result.stderr.count("class_0-12_2-8_seed0 failed: the logits hold NaN") == 1
        assert "UNFINISHED: 1 of 6 cells" in result.stdout


def test_a_teacher_is_compared_with_none_by_a_distillation_of_0(
    data: Path, grid: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    alone = (*settings(data), "--scores", "class", "--stages", "1:8", "--seeds", 1, "--out", out)
    same = (*alone, "--teacher", grid / "none_seed0", "--feature-distillation", 0)
    assert_refused(ablate(*same, "--distillation", 0), "leaves nothing to learn from the teacher")
    result = ablate(*same, "--vary", "distillation=0,0.5", "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("0, cells are trained without the teacher") == 1
    content = json.loads(result.stdout)
    assert content["columns"] == ["distillation=0.0"]
    runs = [out / run for arm in content["arms"] for run in arm["runs"]]
    assert [run.name for run in runs] == ["class_1-8_distillation=0.0_seed0", "class_1-8_seed0"]
    assert [loop.read_run_config(run)[1].teacher is None for run in runs] == [True, False]
    before = trained(out)
    again = ablate_json(*same, "--vary", "distillation=0.5,0", "--vary", "ema=0")
    assert (again["finished"], trained(out)) == (2, before)
    assert_refused(ablate(*alone), "teacher_sha256")
    without = ablate_json(*alone[:-1], tmp_path / "without", "--vary", "lr=1e-3")
    weights = (
        tmp_path / "without" / without["arms"][0]["runs"][0] / "model.safetensors"
    ).read_bytes()
    assert (runs[0] / "model.safetensors").read_bytes() == weights
    # Unless told otherwise the teacher's tokens count too, where there is one.
    taught = tmp_path / "taught"
    (arm,) = ablate_json(*alone[:-1], taught, "--teacher", grid / "none_seed0")["arms"]
    recipes = [loop.read_run_config(run)[1].recipe for run in (taught / arm["runs"][0], *runs[:1])]
    assert [recipe.feature_distillation for recipe in recipes] == [1.0, 0.0]


def test_weights_and_a_teacher_that_do_not_fit_are_refused_before_any_training(
    data: Path, grid: Path, tmp_path: Path
) -> None:
    out, teacher = tmp_path / "out", grid / "none_seed0"
    base = (*settings(data), "--scores", "class", "--stages", "1:50%", "--out", out)
    for change, words in (
        (("--weights", teacher, "--model", "gft_tiny"), "is no checkpoint of deit_tiny"),
        (("--teacher", teacher, "--image-size", 64), "reads images of 32 px"),
        (("--teacher", grid / "class_0-12_2-8_seed0", "--vary", "feature_distillation=0,1"),
         "does not keep all patches: take a teacher like the network"),
    ):  # fmt: skip
        assert_refused(ablate(*base, *change), words)
        assert not out.exists()


def test_a_stop_between_the_first_epochs_weights_and_its_line_is_gone_on_from(
    data: Path, grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    same = (*settings(data), "--scores", "none", "--seeds", 1, "--out", out)
    save_state = loop._Trainer.save_state

    def interrupted(self: Any, state: Any) -> None:
        if state.epoch:
            raise KeyboardInterrupt
        save_state(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Trainer, "save_state", interrupted)
        assert ablate(*same).exit_code == 130
    run = out / "none_seed0"
    assert (run / "model.safetensors").is_file()
    assert_refused(ablate("--out", out, "--report"), "no finished cell yet")
    history = (run / "history.csv").read_text()
    (run / "history.csv").unlink()
    assert_refused(ablate("--out", out, "--report"), "no finished cell yet")
    assert_refused(ablate(*same), "has no history.csv to go on from: remove it")
    (run / "history.csv").write_text(history)
    assert ablate(*same).exit_code == 0
    weights = (grid / "none_seed0" / "model.safetensors").read_bytes()
    assert (run / "model.safetensors").read_bytes() == weights


def test_a_cell_that_cannot_go_on_does_not_stop_the_others(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(run: Path, *arguments: Any) -> Any:
        if run.name.startswith("class"):
            raise TrainingError("the loss became NaN")
        return loop.train(run, *arguments)

    monkeypatch.setattr(ablation, "train", failing)
    result = ablate(
        *settings(data), "--scores", "class,random", "--stages", "1:8", "--seeds", 1,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "class_1-8_seed0 failed: the loss became NaN" in result.stderr
    assert "UNFINISHED: 1 of 2 cells" in result.stdout
    assert "one seed gives no interval" in result.stdout
    assert "no --weights: every cell is trained from scratch" in result.stderr


def planned(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *grid: object) -> str:
    """What is said of a grid in which nothing can be trained."""

    def failing(*arguments: Any) -> None:
        raise TrainingError("not here")

    monkeypatch.setattr(ablation, "train", failing)
    result = ablate(*settings(data), *grid, "--seeds", 1, "--out", out)
    assert (result.exit_code, "cells failed" in result.stderr) == (1, True), result.output
    return result.stderr


def test_what_means_nothing_without_stages_does_not_vary_the_dense_network(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vary = ("--vary", "keep_warmup=0.5,1", "--vary", "lr=1e-3,2e-3")
    grid = ("--scores", "none,class", "--stages", "1:8", *vary)
    assert "all of its 6 cells failed" in planned(data, tmp_path, monkeypatch, *grid)
    plan = read_plan(tmp_path)
    dense = [arm for arm in plan.arms if arm.score == "none"]
    assert [(arm.recipe.keep_warmup, arm.recipe.lr) for arm in dense] == [(0, 1e-3), (0, 2e-3)]
    assert len(plan.arms) == 6
    pairs = counterparts(plan, None)
    assert [*pairs] == ["keep_warmup=0.5, lr=0.001", "dense"]
    assert pairs["keep_warmup=0.5, lr=0.001"][dense[1]] == dense[0]
    assert all(pairs["dense"][arm].recipe.lr == arm.recipe.lr for arm in plan.arms[2:])


def test_settings_that_are_the_same_training_are_one_arm(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = ("--scores", "none,gala,class,random", "--stages", "1:8")
    said = planned(data, tmp_path, monkeypatch, *grid, "--vary", "gate=none,kernel,all")
    plan = read_plan(tmp_path)
    assert [(arm.score, arm.recipe.gate) for arm in plan.arms] == [
        ("none", "kernel"), ("gala", "none"), ("gala", "kernel"), ("class", "kernel"),
        ("class", "all"), ("random", "kernel"),
    ]  # fmt: skip
    for line in (
        "gala: gate=all is the same training as gate=kernel",
        "class: gate=none is the same training as gate=kernel",
        "random: gate=all is the same training as gate=kernel",
    ):
        assert line in said
    pairs = counterparts(plan, None)
    assert [*pairs] == ["random", "gate=none", "dense"]
    gala, trained_gala, untrained, trained_class, random = plan.arms[1:]
    assert {pairs["random"][arm] for arm in (gala, trained_gala, trained_class)} == {random}
    assert pairs["gate=none"] == {trained_gala: gala, trained_class: untrained}
    assert len(pairs["dense"]) == 5


def test_what_another_setting_turns_off_is_as_in_the_base() -> None:
    base, replace = Recipe(), dataclasses.replace
    untaught, flipped = replace(base, distillation=0.0), replace(base, augmentation="flip")
    assert own_recipe("gala", replace(untaught, distillation_temperature=4.0), base) == untaught
    assert own_recipe("gala", replace(flipped, crop_scale=0.9), base) == flipped
    other = replace(base, distillation_temperature=4.0, crop_scale=0.9, gate="none")
    assert own_recipe("gala", other, base) == other
    assert own_recipe("none", other, other) == replace(other, gate="kernel")


def test_settings_that_the_steps_are_too_few_for_are_said_or_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = ("--scores", "random", "--stages", "1:8", "--vary")
    for values, words in (
        ("ema=0.9,0.99", "ema=0.9 and ema=0.99 are the same training here, 3 steps of 8 images, in "
         "which the decay never rises above 0.5193: leave one out"),
        ("warmup=0.1,0.2", "warmup=0.1 and warmup=0.2 are the same"),
        ("batch_size=24,50", "1 steps of 24 images: leave one out"),
    ):  # fmt: skip
        assert_refused(ablate(*settings(data), *grid, values, "--out", tmp_path / "out"), words)
    assert not (tmp_path / "out").exists()
    said = planned(data, tmp_path, monkeypatch, *grid, "ema=0.5,0.99")
    assert said.count("ema 0.99 never rises above 0.5193 in 3 steps") == 1
    assert "ema 0.5 " not in said


def test_the_highest_decay_is_timms() -> None:
    average = ModelEmaV3(nn.Linear(1, 1), decay=1.0, use_warmup=True)
    for steps in (1, 2, 492):
        assert highest_decay(steps) == pytest.approx(average.get_decay(steps))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--scores", "gala,best"), ("--scores best: no such score", "choose from none, gala")),
        (("--scores", "gala,gala"), ("names gala twice",)),
        (("--scores", ","), ("--scores is empty",)),
        (("--scores", "gala", "--stages", "2"), ("is not POSITION:",)),
        (("--scores", "gala", "--stages", "9:4"), ("stage 1 (9:4) is out of range",)),
        (("--scores", "gala", "--stages", "0:8", "--stages", "0:50%"), ("0:8 is given twice",)),
        (("--scores", "gala", "--stages", "none"), ("give --scores none",)),
        (("--scores", "none,gala", "--model", "vit_tiny_patch16_224"),
         ("vit_tiny_patch16_224 selects no patches by itself, give --stages",)),
        (("--scores", "gala", "--model", "resnet18", "--stages", "2:50%"), ("--stages 2:50%",)),
        (("--scores", "gala", "--vary", "depth=3"), ("--vary depth: the recipe has epochs",)),
        (("--scores", "gala", "--vary", "seed=3"), ("those of --seeds",)),
        (("--scores", "gala", "--vary", "lr"), ("is not NAME=VALUE,VALUE",)),
        (("--scores", "gala", "--vary", "lr=1e-3,x"), ("--vary lr", "'x' is not a valid float")),
        (("--scores", "gala", "--vary", "lr=0"), ("--vary lr", "0")),
        (("--scores", "gala", "--vary", "lr=nan"), ("--vary lr is nan",)),
        (("--scores", "gala", "--vary", "augmentation=crop,mix"), ("expected one of crop, flip",)),
        (("--scores", "gala", "--vary", "crop_scale=big"), ("expected float",)),
        (("--scores", "gala", "--vary", "lr=1,1.0"), ("has the value 1.0 twice",)),
        (("--scores", "gala", "--vary", "lr=1", "--vary", "lr=2"), ("--vary lr is given twice",)),
        (("--scores", "gala", "--vary", "distillation=0.3"), ("without a teacher",)),
        (("--scores", "gala", "--against", "random"), ("--against random is not among",)),
        (("--scores", "gala", "--seeds", "0"), ("0 is not in the range",)),
        (("--scores", "gala", "--seeds", "1", "--intervals"),
         ("one seed gives no interval", "overstate", "--seeds 3")),
        (("--scores", "gala", "--weights", "nowhere"), ("nowhere: no such weights file",)),
        (("--scores", "gala", "--split", "holiday"), ("holiday",)),
        ((), ("give --scores",)),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_one_line_and_leaves_nothing(
    data: Path, tmp_path: Path, arguments: tuple[object, ...], words: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    stages = () if {"--stages", "--model"} & {*arguments} else ("--stages", "1:8")
    assert_refused(ablate(*settings(data), *arguments, *stages, "--out", out), *words)
    assert not out.exists()


def test_a_folder_of_anything_else_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out, words in ((tmp_path / "file", "is a file"), (tmp_path, "is no ablation")):
        grid = ("--scores", "gala", "--stages", "1:8", "--out", out)
        assert_refused(ablate(*settings(data), *grid), words)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert_refused(ablate("--out", tmp_path, "--report"), "is no ablation")
    assert_refused(ablate(*settings(data), "--scores", "gala"), "give --out DIR")


def test_a_split_may_lack_a_class_of_train(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "val" / "g")
    content = ablate_json(
        *settings(tmp_path / "data"), "--scores", "random", "--stages", "1:8", "--seeds", 1,
        "--split", "val", "--out", tmp_path / "out",
    )  # fmt: skip
    assert (content["images"], content["classes"]) == (8, 3)
    run = tmp_path / "out" / content["arms"][0]["runs"][0]
    kept = json.loads((run / "metrics.json").read_text())
    assert content["arms"][0]["top1"] == [kept["metrics"]["top1"]]
    assert ablate_json("--out", tmp_path / "out", "--report") == content


def test_other_settings_and_other_images_are_refused_and_nothing_is_lost(
    data: Path, copy: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*.*") if path.is_file()}
    write_images(tmp_path / "other", test=5)
    same = (*settings(data), *GRID, "--out", copy)
    for change, words in (
        (("--epochs", 2), ("other settings, recipe.epochs 1 there and 2 here",)),
        (("--temperature", 0.5), ("temperature 1.0 there and 0.5 here",)),
        (("--gala", "layer"), ('gala "block" there and "layer" here',)),
        (("--data", tmp_path / "other"), ("other images", "test split had 30", "here has 15")),
    ):
        assert_refused(ablate(*same, *change), *words)
    moved = ablate("--out", copy, "--report", "--data", tmp_path / "other")
    assert_refused(moved, "its test split is not what this ablation was begun on")
    assert {path: path.read_bytes() for path in before} == before


def test_where_the_scores_come_from_is_free_while_all_arms_are_dense(
    data: Path, copy: Path, tmp_path: Path
) -> None:
    for run in (*copy.glob("class_*"), *copy.glob("random_*")):
        run.rename(tmp_path / run.name)
    same = (*settings(data), "--seeds", 2, "--out", copy, "--scores")
    ablate_json(*same, "none")
    selecting = (*same, "none,random", "--stages", "1:8", "--temperature", 0.5)
    before = trained(copy)
    ablate_json(*selecting, "--gala", "layer")
    assert before.items() < trained(copy).items()
    assert_refused(ablate(*selecting), 'gala "layer" there and "block" here')
    ablate_json(*same, "none")
    assert_refused(ablate(*selecting), 'a run of something else, gala "layer" there')


def test_a_run_of_something_else_in_a_cells_folder_is_refused(data: Path, copy: Path) -> None:
    cell = copy / "class_0-12_2-8_seed0"
    shutil.rmtree(cell)
    shutil.copytree(copy / "random_0-12_2-8_seed0", cell)
    for command in ((*settings(data), *GRID), ("--report",)):
        result = ablate(*command, "--out", copy)
        assert_refused(result, f'{cell} is a run of something else, score "random" there')


def test_a_report_takes_no_grid(grid: Path) -> None:
    result = ablate("--out", grid, "--report", "--scores", "gala", "--lr", 1)
    assert_refused(result, "leave --lr, --scores out")
    content = ablate_json("--out", grid, "--report", "--no-intervals", "--against", "class")
    assert content["columns"] == ["class", "dense"]
    assert all(d["estimate"] is None for arm in content["arms"] for d in arm["differences"])


def test_a_setting_at_its_usual_value_has_no_place_in_a_name(grid: Path) -> None:
    plan = read_plan(grid)
    arm = plan.arms[1]
    other = dataclasses.replace(arm, recipe=dataclasses.replace(arm.recipe, lr=2e-3))
    assert cell_name(other, 4, plan.fixed.recipe) == "class_0-12_2-8_lr=0.002_seed4"
