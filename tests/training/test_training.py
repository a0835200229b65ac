"""Training on small real folders: it learns, resumes to the same weights, and stops with a reason."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from gft_edge.bundle.specs import ModelSpec
from gft_edge.datasets import read_split
from gft_edge.errors import (
    CheckpointError,
    DataError,
    FailedError,
    MissingDependencyError,
    SpecError,
    TrainingError,
    UsageError,
)
from gft_edge.fidelity.metrics import classification_metrics
from gft_edge.model.checkpoint import load_run, save_network
from gft_edge.model.network import Network
from gft_edge.model.networks import build_network
from gft_edge.model.variants import spec_from_name, squashed
from gft_edge.training import loop, processes
from gft_edge.training.annealing import annealed_keep
from gft_edge.training.attention import ProductAttention
from gft_edge.training.data import SplitDataset, training_transform
from gft_edge.training.gradients import read_norms
from gft_edge.training.loop import RunConfig, logits_and_targets, resume, train
from gft_edge.training.objective import Objective, classification_loss, token_loss
from gft_edge.training.recipes import DEFAULT, PAPER, Recipe, check_recipe
from gft_edge.training.teacher import Teacher, load_teacher, taught_recipe, teacher_of

QUICK = Recipe(epochs=3, batch_size=8, lr=2e-3, layer_decay=1.0, augmentation="flip")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three classes that differ in hue, 48 px, with noise; val has only two of them."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "data"
    for split, count, classes in (("train", 12, 3), ("val", 4, 2), ("test", 6, 3)):
        for index in range(classes):
            (folder / split / "rgb"[index]).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 120, (48, 48, 3), dtype=np.uint8)
                pixels[..., index] += 100
                Image.fromarray(pixels).save(folder / split / "rgb"[index] / f"{number}.png")
    return folder


MICRO = {"embed_dim": 48, "depth": 4, "num_heads": 3, "patch_size": 8}


def spec_for(data: Path, stages: str = "1:20,2:15,3:10", **changes: int) -> ModelSpec:
    return spec_from_name(
        "vit_tiny_patch16_224",
        read_split(data, "train").labels,
        image_size_px=48,
        stages=stages,
        backbone_args={**MICRO, **changes},
    )


def config(data: Path, recipe: Recipe = QUICK, **changes: Any) -> RunConfig:
    given = RunConfig(str(data), recipe, amp=False, workers=0, device="cpu")
    return dataclasses.replace(given, **changes)


def test_it_learns_and_leaves_a_run_that_evaluates(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = dataclasses.replace(QUICK, epochs=6)
    metrics = train(run, spec_for(data), config(data, recipe), None)
    assert metrics.top1 == 1.0
    spec, model = load_run(run)
    logits, targets = logits_and_targets(model, spec, data, "test")
    result = classification_metrics(logits, targets)
    assert result.top1 > 0.9
    assert result.images == 18
    history = list(csv.DictReader((run / "history.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in history] == [1, 2, 3, 4, 5, 6]
    assert float(history[-1]["train_loss"]) < float(history[0]["train_loss"])
    written = json.loads((run / "metrics.json").read_text())
    assert written["split"] == "val"
    assert set(written["metrics"]) == {f.name for f in dataclasses.fields(metrics)}


class Interrupt:
    """Raises KeyboardInterrupt at one report of the progress."""

    def __init__(self, at: str):
        self.at = at

    def __call__(self, text: str, done: int, total: int) -> None:
        if text.startswith(self.at) and done == 2:
            raise KeyboardInterrupt


def test_a_resumed_run_ends_as_the_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole, spec_for(data), config(data), None)
    with pytest.raises(KeyboardInterrupt):
        train(broken, spec_for(data), config(data), None, Interrupt("epoch 2/3"))
    assert not (broken / "history.csv").read_text().count("\n2,")
    resume(broken)
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    timeless = [
        [row.rsplit(",", 2)[0] for row in (run / "history.csv").read_text().splitlines()]
        for run in (whole, broken)
    ]
    assert timeless[0] == timeless[1]


def test_an_interruption_in_the_first_epoch_resumes_too(data: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole, spec_for(data), config(data), None)
    with pytest.raises(KeyboardInterrupt):
        train(broken, spec_for(data), config(data), None, Interrupt("epoch 1/3"))
    resume(broken)
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_gradient_norms_of_the_chosen_epochs_are_in_the_run(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(run, spec_for(data), config(data, log_gradients=(1, 3)), None, Interrupt("epoch 3/3"))
    resume(run)
    logged = read_norms(run / "gradients.csv")
    assert set(logged) == {1, 3}
    assert {"patch embedding", "block 0", "GALA layer 1", "head"} <= set(logged[1])
    assert all(norm > 0 for norms in logged.values() for norm in norms.values())


def test_a_network_learns_what_its_teacher_says(data: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    spec = spec_for(data)
    obstinate = build_network(spec)
    with torch.no_grad():
        obstinate.backbone.head.bias[1] = 10.0
    save_network(teacher, obstinate, spec)
    says_so = {}
    for name, chosen in (("alone", None), ("taught", teacher_of(teacher))):
        recipe = dataclasses.replace(QUICK, distillation=1.0)
        run = tmp_path / name
        train(run, spec, config(data, recipe, teacher=chosen), None)
        logits, _ = logits_and_targets(load_run(run)[1], spec, data, "test")
        says_so[name] = (logits.argmax(axis=1) == 1).mean()
    assert says_so["taught"] == 1.0
    assert says_so["alone"] < 0.8
    saved = load_file(tmp_path / "taught" / "model.safetensors")
    assert saved.keys() == obstinate.state_dict().keys()


def test_the_loss_with_a_teacher_is_that_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, taught = torch.randn(2, 4, 3, generator=generator)
    targets = torch.tensor([0, 2, 1, 1])
    recipe = Recipe(label_smoothing=0.0, distillation=0.3, distillation_temperature=2.0)
    loss = 0.0
    for row, other, target in zip(logits, taught, targets, strict=True):
        p = torch.exp(other / 2) / torch.exp(other / 2).sum()
        q = torch.exp(row / 2) / torch.exp(row / 2).sum()
        hard = -torch.log(torch.exp(row[target]) / torch.exp(row).sum())
        loss += float(0.7 * hard + 0.3 * 4 * (p * torch.log(p / q)).sum()) / 4
    assert float(classification_loss(logits, targets, taught, recipe)) == pytest.approx(loss)
    alone = torch.nn.functional.cross_entropy(logits, targets)
    assert classification_loss(logits, targets, None, recipe) == alone


def test_a_teacher_of_other_classes_or_images_is_refused(data: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    spec = spec_for(data)
    save_network(teacher, build_network(spec), spec)
    other = dataclasses.replace(spec, labels=("b", "g", "violet"))
    words = "has 3 classes and the data 3, first difference 'r' and 'violet' .class 3.: take a run"
    network = build_network(spec)
    with pytest.raises(UsageError, match=words):
        load_teacher(teacher_of(teacher), other, network, QUICK)
    preprocessing = dataclasses.replace(spec.preprocessing, image_size_px=56)
    larger = dataclasses.replace(spec, preprocessing=preprocessing)
    with pytest.raises(UsageError, match=r"reads images of 48 px .* the network of 56 px"):
        load_teacher(teacher_of(teacher), larger, network, QUICK)
    with pytest.raises(CheckpointError, match="is no run"):
        teacher_of(tmp_path)


def test_a_resumed_run_has_the_teacher_it_began_with_wherever_that_lies(
    data: Path, tmp_path: Path
) -> None:
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    teacher.mkdir()
    spec = spec_for(data)
    save_network(teacher, build_network(spec), spec)
    with pytest.raises(KeyboardInterrupt):
        train(run, spec, config(data, teacher=teacher_of(teacher)), None, Interrupt("epoch 2/3"))
    teacher.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="is no run"):
        resume(run)
    save_network(tmp_path / "moved", build_network(spec), spec)
    with pytest.raises(UsageError, match="has other weights than when this training began"):
        resume(run, teacher=str(tmp_path / "moved"))


def dense_teacher(data: Path, folder: Path, **changes: int) -> Teacher:
    """A plain ViT without stages, with random weights."""
    folder.mkdir()
    spec = spec_for(data, "none", **changes)
    torch.manual_seed(3)
    save_network(folder, build_network(spec), spec)
    return teacher_of(folder)


def timm_teacher(folder: Path, name: str = "vit_tiny_patch16_224", **changes: Any) -> Any:
    """A timm model saved as timm saves one for the hub, and the model."""
    arguments = {**MICRO, "img_size": 48, "num_classes": 3, **changes}
    if not name.startswith("vit"):
        arguments = {"num_classes": 3}
    torch.manual_seed(4)
    model = timm.create_model(name, **arguments)
    timm.models.save_for_hf(model, folder, safe_serialization=True, model_args=arguments)
    return model.eval()


def test_a_run_that_averages_anneals_and_imitates_resumes_as_the_uninterrupted_one(
    data: Path, tmp_path: Path
) -> None:
    teacher = dense_teacher(data, tmp_path / "teacher")
    recipe = dataclasses.replace(QUICK, keep_warmup=0.7, ema=0.9, feature_distillation=1.0)
    chosen = config(data, recipe, teacher=teacher)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole, spec_for(data), chosen, None)
    with pytest.raises(KeyboardInterrupt):
        train(broken, spec_for(data), chosen, None, Interrupt("epoch 1/3"))
    with pytest.raises(KeyboardInterrupt):
        resume(broken, Interrupt("epoch 3/3"))
    resume(broken)
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    ends = [torch.load(run / loop.STATE_FILE, weights_only=True) for run in (whole, broken)]
    for part in ("model", "average"):
        assert ends[0][part].keys() == ends[1][part].keys()
        assert all(torch.equal(ends[0][part][name], ends[1][part][name]) for name in ends[0][part])


@pytest.mark.parametrize(
    ("gate", "score", "gated"),
    [
        ("kernel", "gala", True),
        ("kernel", "class", False),
        ("all", "class", True),
        ("all", "random", False),
        ("none", "gala", False),
    ],
)
def test_a_gate_trains_the_scores_it_is_asked_for(
    gate: Any, score: Any, gated: bool, data: Path, tmp_path: Path
) -> None:
    spec = dataclasses.replace(spec_for(data), score=score)
    run = tmp_path / "run"
    recipe = dataclasses.replace(QUICK, epochs=1, gate=gate)
    train(run, spec, config(data, recipe), None)
    kernels = [v for n, v in load_run(run)[1].named_parameters() if n.endswith(".kernel")]
    fresh = torch.tensor([0.25, 0.5, 0.25])
    assert len(kernels) == (3 if score == "gala" else 0)
    assert all(torch.equal(kernel, fresh) != gated for kernel in kernels)
    network = build_network(spec)
    loop._set_gates(network, gate)
    assert [selection.gated for selection in network.selections] == [gated] * 3


def test_keep_counts_fall_from_all_patches_to_the_schedule() -> None:
    schedule = (20, 15, 10)
    counts = [annealed_keep(schedule, 36, step, 8) for step in range(10)]
    assert counts[0] == (36, 36, 36)
    assert counts[4] == (28, 26, 23)
    assert counts[8] == counts[9] == schedule
    assert all(a >= b >= c for a, b, c in counts)
    assert all(np.less_equal(later, earlier).all() for earlier, later in itertools.pairwise(counts))
    assert annealed_keep(schedule, 36, 0, 0) == schedule


def test_a_training_anneals_and_evaluates_what_the_schedule_keeps(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[bool, list[tuple[int, ...]]] = {True: [], False: []}
    forward = Objective.forward

    def noting(self: Objective, *given: Any) -> Any:
        seen[self.training].append(tuple(s.keep for s in self.network.selections))
        return forward(self, *given)

    monkeypatch.setattr(Objective, "forward", noting)
    recipe = dataclasses.replace(QUICK, keep_warmup=0.5)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(run, spec_for(data), config(data, recipe), None, Interrupt("epoch 2/3"))
    del seen[True][4:]
    resume(run)
    # 36 images in batches of 8, three epochs: 12 steps, the first 6 of which fall.
    assert seen[True] == [annealed_keep((20, 15, 10), 36, step, 6) for step in range(12)]
    assert seen[True][0] == (36, 36, 36)
    assert set(seen[True][6:]) == set(seen[False]) == {(20, 15, 10)}
    assert [stage.keep for stage in load_run(run)[0].stages] == [20, 15, 10]


@pytest.mark.parametrize("model", ["gft", "test_resnet"])
def test_what_is_evaluated_and_kept_is_the_average_of_the_weights(
    data: Path, tmp_path: Path, model: str
) -> None:
    run = tmp_path / "run"
    ends: list[dict[str, dict[str, torch.Tensor]]] = []

    def note(text: str, done: int, total: int) -> None:
        if text.startswith(("epoch 2/", "epoch 3/", "epoch 4/")):
            ends.append(torch.load(run / loop.STATE_FILE, weights_only=True))

    spec = spec_for(data)
    if model != "gft":
        spec = spec_from_name(model, spec.labels, image_size_px=48)
    recipe = dataclasses.replace(QUICK, epochs=4, batch_size=36, ema=0.5)  # one step an epoch
    metrics = train(run, spec, config(data, recipe), None, note)
    ends.append(torch.load(run / loop.STATE_FILE, weights_only=True))
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
    saved = load_file(run / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in best["average"].items())
    logits, targets = logits_and_targets(load_run(run)[1], spec, data, "val")
    assert classification_metrics(logits, targets) == metrics


def test_averaging_weights_does_not_change_how_they_are_trained(data: Path, tmp_path: Path) -> None:
    ends = []
    for name, decay in (("plain", 0.0), ("averaged", 0.9)):
        recipe = dataclasses.replace(QUICK, epochs=1, ema=decay)
        train(tmp_path / name, spec_for(data), config(data, recipe), None)
        ends.append(torch.load(tmp_path / name / loop.STATE_FILE, weights_only=True)["model"])
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_tokens_are_compared_where_they_lie_in_the_image(data: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 48, 48)
    dense = build_network(spec_for(data, "none")).eval()
    whole = dense.forward_with_tokens(images)
    assert float(token_loss(whole, whole).detach()) == 0
    kept = torch.tensor([[3, 7, 30], [0, 1, 35]])
    patches = torch.stack([whole.patches[row, kept[row]] for row in range(2)])
    chosen = whole._replace(patches=patches, positions=kept)
    assert float(token_loss(chosen, whole).detach()) == 0
    assert float(token_loss(chosen._replace(positions=kept.flip(0)), whole).detach()) > 0.1
    # Twice one less the correlation, the class token as much as all patches.
    other = whole._replace(class_token=torch.randn(2, 48))
    correlation = [
        np.corrcoef(a.detach().numpy(), b.detach().numpy())[0, 1]
        for a, b in zip(whole.class_token, other.class_token, strict=True)
    ]
    loss = float(token_loss(other, whole).detach())
    assert loss == pytest.approx(1 - np.mean(correlation), rel=1e-3)


def test_a_network_equal_to_its_teacher_has_nothing_to_learn_from_its_tokens(data: Path) -> None:
    network = build_network(spec_for(data, "none")).eval()
    images, targets = torch.randn(2, 3, 48, 48), torch.tensor([0, 2])
    recipe = Recipe(distillation=0.0, feature_distillation=5.0)
    alone = Objective(network, recipe, amp=False)(images, targets)
    assert torch.equal(
        Objective(network, recipe, amp=False, teacher=network)(images, targets), alone
    )


def test_tokens_draw_a_network_to_a_teacher_of_other_classes(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "timm"
    source = timm_teacher(folder, num_classes=7)
    teacher = teacher_of(f"timm:local-dir:{folder}")
    spec = spec_for(data)
    network = build_network(spec)
    with pytest.raises(UsageError, match=r"7 classes and the data 3: .* --distillation 0"):
        load_teacher(teacher, spec, network, QUICK)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 48, 48, generator=generator)
    apart = {}
    for weight in (0.0, 20.0):
        recipe = dataclasses.replace(QUICK, distillation=0.0, feature_distillation=weight)
        chosen = teacher if weight else None
        run = tmp_path / f"{weight}"
        train(run, spec, config(data, recipe, teacher=chosen), None)
        taught = load_teacher(teacher, spec, network, dataclasses.replace(recipe, distillation=0.0))
        assert torch.equal(taught(images), source(images))
        with torch.no_grad():
            made = load_run(run)[1].forward_with_tokens(images)
            apart[weight] = float(token_loss(made, taught.forward_with_tokens(images)))
    assert apart[20.0] < 0.9 * apart[0.0]


def test_a_teacher_whose_tokens_are_of_another_kind_is_refused(data: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(QUICK, feature_distillation=1.0)
    spec = spec_for(data)
    network = build_network(spec)
    staged = tmp_path / "staged"
    staged.mkdir()
    save_network(staged, network, spec)
    with pytest.raises(
        UsageError, match=r"staged has 3 stages and does not keep all .* --stages none"
    ):
        load_teacher(teacher_of(staged), spec, network, recipe)
    wide = dense_teacher(data, tmp_path / "wide", embed_dim=96)
    words = r"wide has 6 x 6 patches of width 96, the network 6 x 6 of 48: take a teacher like"
    with pytest.raises(UsageError, match=words):
        load_teacher(wide, spec, network, recipe)
    coarse = dense_teacher(data, tmp_path / "coarse", patch_size=16)
    with pytest.raises(UsageError, match=r"coarse has 3 x 3 patches .* the network 6 x 6 of 48"):
        load_teacher(coarse, spec, network, recipe)
    assert isinstance(load_teacher(wide, spec, network, QUICK), Network)
    resnet = spec_from_name("test_resnet", spec.labels, image_size_px=48)
    resnet = dataclasses.replace(resnet, preprocessing=spec.preprocessing)
    dense = dense_teacher(data, tmp_path / "dense")
    with pytest.raises(
        UsageError, match=r"the network is no plain ViT \(ResNet\): .* or leave it out"
    ):
        load_teacher(dense, resnet, build_network(resnet), recipe)


def test_tokens_count_by_default_where_they_are_alike(data: Path, tmp_path: Path) -> None:
    spec, said = spec_for(data), list[str]()
    alike = dense_teacher(data, tmp_path / "alike")
    assert taught_recipe(DEFAULT, alike, spec, said.append) == DEFAULT
    assert DEFAULT.feature_distillation > 0
    assert not said
    wide = dense_teacher(data, tmp_path / "wide", embed_dim=96)
    without = dataclasses.replace(DEFAULT, feature_distillation=0.0)
    assert taught_recipe(DEFAULT, wide, spec, said.append) == without
    assert "of width 96, the network 6 x 6 of 48: its logits are imitated" in said.pop()
    assert taught_recipe(without, wide, spec, said.append) == without
    assert not said


def test_a_timm_model_of_other_images_or_weights_is_refused(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "timm"
    timm_teacher(folder)
    teacher = teacher_of(f"timm:local-dir:{folder}")
    run = tmp_path / "run"
    chosen = config(data, dataclasses.replace(QUICK, epochs=2), teacher=teacher)
    with pytest.raises(KeyboardInterrupt):
        train(run, spec_for(data), chosen, None, Interrupt("epoch 2/2"))
    written = json.loads((run / "train.json").read_text())["teacher"]
    assert written == {"run": f"timm:local-dir:{folder}", "sha256": teacher.sha256}
    timm_teacher(tmp_path / "other", init_values=0.1)
    with pytest.raises(UsageError, match="has other weights than when this training began"):
        resume(run, teacher=f"timm:local-dir:{tmp_path / 'other'}")
    folder.rename(tmp_path / "moved")
    resume(run, teacher=f"timm:local-dir:{tmp_path / 'moved'}")
    timm_teacher(tmp_path / "large", img_size=64)
    large = teacher_of(f"timm:local-dir:{tmp_path / 'large'}")
    spec = spec_for(data)
    with pytest.raises(UsageError, match=r"large reads images of 64 px .* the network of 48 px"):
        load_teacher(large, spec, build_network(spec), QUICK)


def test_a_timm_model_that_is_no_vit_teaches_its_logits(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "timm"
    source = timm_teacher(folder, "test_resnet")
    spec = spec_from_name("test_resnet", read_split(data, "train").labels)
    teacher, network = teacher_of(f"timm:local-dir:{folder}"), build_network(spec)
    images = torch.randn(1, 3, 160, 160)
    taught = load_teacher(teacher, spec, network, QUICK)
    assert torch.equal(taught(images), source(images))
    recipe = dataclasses.replace(QUICK, feature_distillation=1.0)
    with pytest.raises(UsageError, match=r"the network is no plain ViT"):
        load_teacher(teacher, spec, network, recipe)


def test_a_timm_model_without_weights_here_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("deit_tiny_patch16_224", "hf-hub:nobody/nothing"):
        with pytest.raises(CheckpointError, match=f"weights of {name} cannot be fetched") as caught:
            teacher_of(f"timm:{name}")
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith("save_for_hf elsewhere and give local-dir:FOLDER")
    with pytest.raises(
        SpecError, match="no model 'deit_tinny_patch16_224': did you mean deit_tiny"
    ):
        teacher_of("timm:deit_tinny_patch16_224")
    with pytest.raises(
        CheckpointError, match=r"is no folder of a timm model .*expected config.json"
    ):
        teacher_of(f"timm:local-dir:{tmp_path}")
    with pytest.raises(CheckpointError, match=r"no weights for hub:x \(Unknown model source 'hub'"):
        teacher_of("timm:hub:x")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ema": 1.0}, "--ema is 1: give a decay of 0 .off. to below 1"),
        ({"ema": -0.1}, "--ema is -0.1"),
        ({"keep_warmup": 1.5}, "--keep-warmup is 1.5: give a fraction of all steps"),
        ({"keep_warmup": float("nan")}, "--keep-warmup is nan"),
        ({"feature_distillation": -1.0}, "--feature-distillation is -1"),
        ({"distillation": 2.0}, "--distillation is 2: give a share of the loss, 0 to 1"),
        ({"distillation_temperature": 0.0}, "--distillation-temperature is 0"),
        ({"feature_distillation": 1.0}, "give --teacher, or leave it out"),
        ({"lr": float("nan")}, "--lr is nan: give a number"),
        ({"weight_decay": float("inf")}, "--weight-decay is inf: give a number"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(
    data: Path, tmp_path: Path, changes: dict[str, float], words: str
) -> None:
    recipe = dataclasses.replace(QUICK, **changes)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=words) as caught:
        train(tmp_path / "run", spec_for(data), config(data, recipe), None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_recipe_without_anything_to_act_on_is_refused(data: Path) -> None:
    dense = spec_for(data, "none")
    with pytest.raises(UsageError, match=r"--keep-warmup 0.5: .* has no stages whose counts"):
        check_recipe(dataclasses.replace(QUICK, keep_warmup=0.5), dense, has_teacher=False)
    with pytest.raises(UsageError, match="--distillation 0 leaves nothing to learn"):
        check_recipe(dataclasses.replace(QUICK, distillation=0.0), dense, has_teacher=True)


def test_attention_as_products_has_the_values_and_gradients_of_the_fused_kernel() -> None:
    def attend(dtype: torch.dtype, **settings: Any) -> list[Tensor]:
        drawn = torch.Generator().manual_seed(0)
        q, k, v = torch.randn(3, 2, 3, 9, 8, generator=drawn).to(dtype).requires_grad_().unbind()
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, **settings)
        assert out.dtype == dtype
        gradients = torch.autograd.grad(out.square().sum(), (q, k, v))
        return [part.detach().float() for part in (out, *gradients)]

    exact = attend(torch.float32)
    with ProductAttention(), torch.autocast("cpu", dtype=torch.bfloat16):
        products = attend(torch.bfloat16)
        causal = attend(torch.bfloat16, is_causal=True)
    with ProductAttention():
        unchanged = attend(torch.float32)
    for part, expected in zip(products, exact, strict=True):
        torch.testing.assert_close(part, expected, rtol=0.05, atol=0.1)
    for part, fused in zip(causal, attend(torch.bfloat16, is_causal=True), strict=True):
        torch.testing.assert_close(part, fused, rtol=0, atol=0)
    for part, fused in zip(unchanged, exact, strict=True):
        torch.testing.assert_close(part, fused, rtol=0, atol=0)


def test_a_training_in_bf16_on_a_cpu_leaves_the_fused_kernel(data: Path) -> None:
    split = read_split(data, "train")
    spec = spec_from_name("test_vit", split.labels)
    objective = Objective(build_network(spec), Recipe(), amp=True).train()
    size = spec.preprocessing.image_size_px
    with torch.profiler.profile() as profiled:
        objective(torch.randn(2, 3, size, size), torch.tensor([0, 1])).backward()
    called = {event.key for event in profiled.key_averages()}
    assert "aten::_softmax" in called
    assert not any("flash_attention" in name for name in called)


def test_adam_has_made_as_many_steps_as_the_training(data: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(QUICK, epochs=1)
    train(tmp_path / "run", spec_for(data), config(data, recipe), None)
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["optimizer"]["state"]
    # 36 images in batches of 8.
    assert {float(moments["step"]) for moments in state.values()} == {4.0}


def test_tensorboard_is_asked_for_where_it_is_missing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "is_tensorboard_available", lambda: False)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gft-edge\[tensorboard\]'"):
        train(tmp_path / "run", spec_for(data), config(data, tensorboard=True), None)
    assert not (tmp_path / "run").exists()


def test_a_launch_that_accumulates_gradients_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    with pytest.raises(UsageError, match="launch without --gradient_accumulation_steps"):
        train(tmp_path / "run", spec_for(data), config(data), None)


def test_the_same_seed_gives_the_same_run_and_another_does_not(data: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(QUICK, epochs=1)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        chosen = dataclasses.replace(recipe, seed=seed)
        train(tmp_path / name, spec_for(data), config(data, chosen), None)
    first, second, third = ((tmp_path / n / "model.safetensors").read_bytes() for n in "abc")
    assert first == second
    assert first != third


def test_workers_do_not_change_the_images(data: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(QUICK, epochs=1)
    train(tmp_path / "a", spec_for(data), config(data, recipe, workers=0), None)
    train(tmp_path / "b", spec_for(data), config(data, recipe, workers=1), None)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (
        tmp_path / "b/model.safetensors"
    ).read_bytes()


def test_a_loss_that_is_not_finite_stops_with_advice(data: Path, tmp_path: Path) -> None:
    # A rate this high overflows the logits within the first epoch.
    recipe = dataclasses.replace(QUICK, lr=1e30, warmup=0.0)
    with pytest.raises(
        TrainingError, match=r"of epoch 1 became NaN or infinite: try a lower --lr \(now 1e\+30\)"
    ):
        train(tmp_path / "run", spec_for(data), config(data, recipe), None)


def test_a_worker_that_dies_is_said_in_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: SplitDataset, index: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    # Workers are forks of this process and take the change with them.
    monkeypatch.setattr(SplitDataset, "__getitem__", killed)
    with pytest.raises(TrainingError, match=r"decodes images died.* fewer --workers"):
        train(tmp_path / "run", spec_for(data), config(data, workers=1), None)
    monkeypatch.undo()
    assert resume(tmp_path / "run", workers=0).images == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_in_one_line(data: Path, tmp_path: Path, workers: int) -> None:
    (data / "train" / "g" / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        train(tmp_path / "run", spec_for(data), config(data, workers=workers), None)
    message = str(caught.value)
    assert message.startswith(str(data / "train" / "g" / "broken.jpg"))
    assert message.endswith("remove or replace the image")
    assert "\n" not in message


def test_a_folder_that_holds_a_run_is_not_trained_over(data: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(QUICK, epochs=1)
    train(tmp_path / "run", spec_for(data), config(data, recipe), None)
    with pytest.raises(UsageError, match=r"already holds a run.*--resume"):
        train(tmp_path / "run", spec_for(data), config(data, recipe), None)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        resume(tmp_path / "run")


def test_resuming_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no run"):
        resume(tmp_path)


@pytest.mark.parametrize("damage", [None, "epoch,lr\n1,x\n"])
def test_a_resumed_run_without_its_history_is_refused(
    damage: str | None, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(run, spec_for(data), config(data), None, Interrupt("epoch 2/3"))
    (run / "history.csv").unlink()
    if damage is not None:
        (run / "history.csv").write_text(damage)
    with pytest.raises(CheckpointError, match=r"history\.csv cannot be read"):
        resume(run)


def test_a_damaged_state_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", spec_for(data), config(data), None, Interrupt("epoch 2/3"))
    (tmp_path / "run" / loop.STATE_FILE).write_bytes(b"cut off")
    with pytest.raises(
        CheckpointError, match=r"last.pt is not this run.s, or of an older gft-edge"
    ):
        resume(tmp_path / "run")


def test_other_classes_than_the_networks_are_refused(data: Path, tmp_path: Path) -> None:
    spec = spec_for(data)
    (data / "val" / "purple").mkdir()
    with pytest.raises(DataError, match=r"1 classes the model does not know \(purple"):
        train(tmp_path / "run", spec, config(data), None)


def test_the_paper_recipe_squashes_the_whole_image(data: Path) -> None:
    spec = squashed(spec_for(data)).preprocessing
    assert (spec.crop_mode, spec.crop_pct) == ("squash", 1.0)
    torch.manual_seed(0)
    image = Image.new("RGB", (100, 30), (200, 10, 10))
    assert training_transform(spec, PAPER)(image).shape == (3, 48, 48)


def test_metrics_are_those_of_a_confusion_matrix_worked_by_hand() -> None:
    targets = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 1, 0])
    logits = np.eye(7, dtype=np.float32)[predicted]
    metrics = classification_metrics(logits, targets)
    assert metrics.top1 == pytest.approx(4 / 6)
    assert metrics.precision_macro == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert metrics.recall_macro == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert metrics.f1_macro == pytest.approx((2 / 3 + 0.8 + 0) / 3)
    assert metrics.recall_weighted == pytest.approx(4 / 6)
    assert metrics.f1_weighted == pytest.approx((3 * 2 / 3 + 2 * 0.8) / 6)
    assert metrics.top5 == 1.0


def test_logits_that_are_not_finite_have_no_accuracy() -> None:
    logits = np.full((2, 3), np.nan, dtype=np.float32)
    with pytest.raises(FailedError, match="NaN or infinity: no accuracy"):
        classification_metrics(logits, np.array([0, 1]))


def test_a_full_disk_keeps_the_last_whole_epoch(data: Path, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(whole, spec_for(data), config(data), None)

    def fill(text: str, done: int, total: int) -> None:
        if text.startswith("epoch 2/3") and done == total:
            # The device that answers every write as a full disk does.
            (run / ".last.pt.partial").symlink_to("/dev/full")

    with pytest.raises(CheckpointError, match=r"cannot write .*last.pt .*make room"):
        train(run, spec_for(data), config(data), None, fill)
    resume(run)
    history = (run / "history.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in history[1:]] == ["1", "2", "3"]
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
