"""A network learns what its teacher says, from a run or a timm model, and refuses one of another kind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from gft_edge.bundle.specs import ModelSpec
from gft_edge.datasets import read_split
from gft_edge.errors import CheckpointError, SpecError, UsageError
from gft_edge.model.checkpoint import load_run, save_network
from gft_edge.model.named_networks import build_network, spec_from_name
from gft_edge.model.network import Network
from gft_edge.training.logits import network_logits
from gft_edge.training.loop import resume
from gft_edge.training.objective import Objective, classification_loss, token_loss
from gft_edge.training.recipes import DEFAULT, Recipe
from gft_edge.training.run_folder import STATE_FILE
from gft_edge.training.teacher import Teacher, load_teacher, taught_recipe, teacher_of
from tests.support.networks import MICRO_BACKBONE
from tests.support.refusals import refusal_of
from tests.support.training import ONE_EPOCH, QUICK, coloured_spec, interrupt, training

SPEC = coloured_spec()
TOKENS = dataclasses.replace(QUICK, feature_distillation=1.0)


def save_random(folder: Path, spec: ModelSpec, bias: float = 0.0) -> Teacher:
    """A run of seeded random weights whose classifier favours the second class by `bias`."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(3)
    network = build_network(spec)
    with torch.no_grad():
        network.backbone.head.bias[1] += bias
    save_network(folder, network, spec)
    return teacher_of(folder)


def save_timm(folder: Path, name: str = "vit_tiny_patch16_224", **changes: Any) -> Any:
    """A timm model saved as timm saves one for the hub, and the model."""
    arguments = {**MICRO_BACKBONE, "img_size": 48, "num_classes": 3, **changes}
    if not name.startswith("vit"):
        arguments = {"num_classes": 3}
    torch.manual_seed(4)
    model = timm.create_model(name, **arguments)
    timm.models.save_for_hf(model, folder, safe_serialization=True, model_args=arguments)
    return model.eval()


def local(folder: Path) -> str:
    return f"timm:local-dir:{folder}"


def name_classes(folder: Path, names: object, **config: object) -> None:
    """Write timm's label_names into the config.json that save_timm wrote."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "label_names": names, **config}))


# What a teacher changes.


def test_a_network_learns_what_its_teacher_says(
    trained_run: Path, coloured: Path, tmp_path: Path
) -> None:
    teacher = save_random(tmp_path / "teacher", SPEC, bias=10.0)
    recipe = dataclasses.replace(QUICK, distillation=1.0)
    taught = tmp_path / "taught"
    training(taught, coloured, recipe, teacher=teacher)()

    def says_so(run: Path) -> float:
        logits = network_logits(load_run(run)[1], SPEC, read_split(coloured, "test", SPEC.labels))
        return float((logits.argmax(axis=1) == 1).mean())

    assert says_so(taught) == 1.0
    assert says_so(trained_run) < 0.8
    saved, plain = (load_file(run / "model.safetensors") for run in (taught, trained_run))
    assert saved.keys() == plain.keys()


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


def test_tokens_are_compared_where_they_lie_in_the_image() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 48, 48)
    dense = build_network(coloured_spec("none")).eval()
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


def test_a_network_equal_to_its_teacher_has_nothing_to_learn_from_its_tokens() -> None:
    network = build_network(coloured_spec("none")).eval()
    given = torch.randn(2, 3, 48, 48), torch.tensor([0, 2])
    recipe = Recipe(distillation=0.0, feature_distillation=5.0)
    alone = Objective(network, recipe, amp=False)(*given)
    assert torch.equal(Objective(network, recipe, amp=False, teacher=network)(*given), alone)


def test_tokens_draw_a_network_to_a_teacher_of_other_classes(
    trained_run: Path, coloured: Path, tmp_path: Path
) -> None:
    folder, run = tmp_path / "timm", tmp_path / "run"
    source = save_timm(folder, num_classes=7)
    teacher = teacher_of(local(folder))
    network = build_network(SPEC)
    work = partial(load_teacher, teacher, SPEC, network, QUICK)
    refusal_of(UsageError, work, "7 classes", "--distillation 0")
    recipe = dataclasses.replace(QUICK, distillation=0.0, feature_distillation=20.0)
    training(run, coloured, recipe, teacher=teacher)()
    taught = load_teacher(teacher, SPEC, network, recipe)
    images = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(taught(images), source(images))
    with torch.no_grad():
        drawn, alone = (
            float(token_loss(load_run(one)[1].forward_with_tokens(images),
                             taught.forward_with_tokens(images)))
            for one in (run, trained_run)
        )  # fmt: skip
    assert drawn < 0.9 * alone


def test_a_run_that_averages_and_imitates_resumes_as_the_uninterrupted_one(
    coloured: Path, tmp_path: Path
) -> None:
    teacher = save_random(tmp_path / "teacher", coloured_spec("none"))
    recipe = dataclasses.replace(TOKENS, epochs=2, ema=0.9)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    training(whole, coloured, recipe, teacher=teacher)()
    interrupt("epoch 2/2", training(broken, coloured, recipe, teacher=teacher))
    resume(broken)
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    ends = [torch.load(run / STATE_FILE, weights_only=True) for run in (whole, broken)]
    for part in ("model", "average"):
        assert ends[0][part].keys() == ends[1][part].keys()
        assert all(torch.equal(ends[0][part][name], ends[1][part][name]) for name in ends[0][part])


def test_a_timm_model_that_is_no_vit_teaches_its_logits(tmp_path: Path) -> None:
    folder = tmp_path / "timm"
    source = save_timm(folder, "test_resnet")
    spec = spec_from_name("test_resnet", SPEC.labels)
    teacher, network = teacher_of(local(folder)), build_network(spec)
    images = torch.randn(1, 3, 160, 160)
    taught = load_teacher(teacher, spec, network, QUICK)
    assert torch.equal(taught(images), source(images))
    refusal_of(UsageError, partial(load_teacher, teacher, spec, network, TOKENS), "ViT")


@pytest.mark.parametrize(
    ("names", "labels", "order"),
    [
        (["1", "2", "10"], ("1", "10", "2"), [0, 2, 1]),
        # timm writes a dict where class indices have gaps, and JSON makes its keys strings.
        ({"2": "a", "0": "b"}, ("a", "b"), [2, 0]),
        ([1, 2, 10], ("1", "10", "2"), [0, 2, 1]),
        (["cafe\u0301", "a", "b"], ("a", "b", "caf\u00e9"), [1, 2, 0]),
        (["a", "b", "c"], ("a", "b", "c"), [0, 1, 2]),
    ],
)
def test_the_classes_of_a_timm_model_are_matched_by_name(
    names: object, labels: tuple[str, ...], order: list[int], tmp_path: Path
) -> None:
    source = save_timm(tmp_path)
    name_classes(tmp_path, names)
    said = list[str]()
    spec = dataclasses.replace(SPEC, labels=labels)
    network = build_network(dataclasses.replace(coloured_spec(), labels=labels))
    taught = load_teacher(teacher_of(local(tmp_path)), spec, network, QUICK, said.append)
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(taught(images), source(images)[:, order])
    assert torch.equal(taught.forward_with_tokens(images).logits, source(images)[:, order])
    assert [str(tmp_path) in line for line in said] == [True] * (order != sorted(order))


def test_classes_are_matched_by_their_descriptions_where_names_are_others(tmp_path: Path) -> None:
    source = save_timm(tmp_path)
    described = {"n03": "b", "n01": "g", "n02": "r"}
    name_classes(tmp_path, ["n01", "n02", "n03"], label_descriptions=described)
    taught = load_teacher(teacher_of(local(tmp_path)), SPEC, build_network(SPEC), QUICK)
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(taught(images), source(images)[:, [2, 0, 1]])


def test_a_run_of_the_same_classes_in_another_order_teaches_them_by_name(tmp_path: Path) -> None:
    turned = dataclasses.replace(SPEC, labels=("r", "b", "g"))
    teacher = save_random(tmp_path / "teacher", turned)
    images = torch.randn(2, 3, 48, 48)
    taught = load_teacher(teacher, SPEC, build_network(SPEC), QUICK)
    logits = load_run(tmp_path / "teacher")[1](images)
    assert torch.equal(taught(images), logits[:, [1, 2, 0]])


def test_it_is_said_where_a_teachers_order_of_classes_is_assumed(tmp_path: Path) -> None:
    save_timm(tmp_path)
    for labels, words in (
        (("b", "g", "r"), ("--teacher",)),
        # timm's own training would have made the second class 2.
        (("1", "10", "2"), ("'10'", "'2'", "label_names")),
    ):
        said = list[str]()
        spec = dataclasses.replace(SPEC, labels=labels)
        load_teacher(teacher_of(local(tmp_path)), spec, build_network(spec), QUICK, said.append)
        (line,) = said
        assert all(word in line for word in words)
        # Tokens alone do without the classes.
        alone = dataclasses.replace(QUICK, distillation=0.0)
        load_teacher(teacher_of(local(tmp_path)), spec, build_network(spec), alone, said.append)
        assert len(said) == 1


def test_label_names_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_timm(tmp_path)
    for names, words in (
        (["b", "g", "violet"], ("'r'", "'violet'")),
        (["b", "g"], ("3 classes", "2", "config.json")),
        (["b", "g", "r", "x"], ("3 classes", "4", "config.json")),
        (["b", "g", "g"], ("3 classes",)),
        ({"b": 0, "g": 1, "r": 2}, ("label_names", "config.json")),
        (3, ("label_names", "config.json")),
    ):
        name_classes(tmp_path, names)
        teacher = partial(teacher_of, local(tmp_path))
        work = lambda: load_teacher(teacher(), SPEC, build_network(SPEC), QUICK)  # noqa: E731, B023
        refusal_of(UsageError, work, *words)


def test_tokens_count_by_default_where_they_are_alike(tmp_path: Path) -> None:
    said = list[str]()
    alike = save_random(tmp_path / "alike", coloured_spec("none"))
    assert taught_recipe(DEFAULT, alike, SPEC, said.append) == DEFAULT
    assert DEFAULT.feature_distillation > 0
    assert not said
    wide = save_random(tmp_path / "wide", coloured_spec("none", embed_dim=96))
    without = dataclasses.replace(DEFAULT, feature_distillation=0.0)
    assert taught_recipe(DEFAULT, wide, SPEC, said.append) == without
    assert "width 96" in said.pop()
    assert taught_recipe(without, wide, SPEC, said.append) == without
    assert not said


# Teachers that are refused.


def test_a_teacher_of_other_classes_or_images_is_refused(tmp_path: Path) -> None:
    teacher = save_random(tmp_path / "teacher", SPEC)
    save_timm(tmp_path / "large", img_size=64)
    network = build_network(SPEC)
    other = dataclasses.replace(SPEC, labels=("b", "g", "violet"))
    preprocessing = dataclasses.replace(SPEC.preprocessing, image_size_px=56)
    larger = dataclasses.replace(SPEC, preprocessing=preprocessing)

    def refuses(one: Teacher, spec: ModelSpec, *words: str) -> None:
        refusal_of(UsageError, partial(load_teacher, one, spec, network, QUICK), *words)

    refuses(teacher, other, "'r'", "'violet'", "class 3")
    refuses(teacher, larger, "48 px", "56 px")
    refuses(teacher_of(local(tmp_path / "large")), SPEC, "large", "64 px", "48 px")
    refusal_of(CheckpointError, partial(teacher_of, tmp_path), "model.json")


def test_a_teacher_whose_tokens_are_of_another_kind_is_refused(tmp_path: Path) -> None:
    def made(name: str, stages: str = "none", **changes: int) -> Teacher:
        return save_random(tmp_path / name, coloured_spec(stages, **changes))

    network = build_network(SPEC)
    resnet = spec_from_name("test_resnet", SPEC.labels, image_size_px=48)
    resnet = dataclasses.replace(resnet, preprocessing=SPEC.preprocessing)
    wide = made("wide", embed_dim=96)
    for teacher, spec, words in (
        (made("staged", "1:20,2:15,3:10"), SPEC, ("staged", "3 stages", "--stages none")),
        (wide, SPEC, ("wide", "6 x 6", "96", "48")),
        (made("coarse", patch_size=16), SPEC, ("coarse", "3 x 3", "6 x 6")),
        (made("dense"), resnet, ("ResNet",)),
    ):
        pupil = network if spec is SPEC else build_network(spec)
        refusal_of(UsageError, partial(load_teacher, teacher, spec, pupil, TOKENS), *words)
    assert isinstance(load_teacher(wide, SPEC, network, QUICK), Network)


@pytest.mark.parametrize("kind", ["run", "timm"])
def test_a_resumed_run_has_the_teacher_it_began_with_wherever_that_lies(
    kind: str, coloured: Path, tmp_path: Path
) -> None:
    folder, run = tmp_path / "teacher", tmp_path / "run"
    save: Callable[..., Any] = partial(save_random, spec=SPEC) if kind == "run" else save_timm
    named = str if kind == "run" else local
    save(folder)
    teacher = teacher_of(named(folder))
    interrupt("epoch 1/1", training(run, coloured, ONE_EPOCH, teacher=teacher))
    written = json.loads((run / "train.json").read_text())["teacher"]
    assert written == {"run": named(folder), "sha256": teacher.sha256}

    folder.rename(tmp_path / "moved")
    refusal_of(CheckpointError, partial(resume, run), str(folder))
    changes: dict[str, Any] = {"bias": 1.0} if kind == "run" else {"init_values": 0.1}
    save(tmp_path / "other", **changes)
    refusal_of(UsageError, partial(resume, run, teacher=named(tmp_path / "other")), "--teacher")
    resume(run, teacher=named(tmp_path / "moved"))


def test_a_timm_model_without_weights_here_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for kind, name, word in (
        (CheckpointError, "deit_tiny_patch16_224", "local-dir:FOLDER"),
        (CheckpointError, "hf-hub:nobody/nothing", "hf-hub:nobody/nothing"),
        (SpecError, "deit_tinny_patch16_224", "deit_tiny"),
        (CheckpointError, f"local-dir:{tmp_path}", "config.json"),
        (CheckpointError, "hub:x", "hub:x"),
    ):
        refusal_of(kind, partial(teacher_of, f"timm:{name}"), word)
