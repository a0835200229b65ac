"""A checkpoint of the published scripts becomes a run with its logits, and says what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image
from torch import Tensor
from torchvision import transforms

from gft_edge.datasets import read_split
from gft_edge.errors import CheckpointError
from gft_edge.fidelity.verify import split_outputs
from gft_edge.model.checkpoint import load_backbone, load_run
from gft_edge.model.gft import build_gft
from gft_edge.model.published import INERT_SELECTION, read_published
from gft_edge.runtime.classifier import Classifier
from tests.support.cli import refusal, refused, run, run_json
from tests.support.files import Trap
from tests.support.networks import micro_spec
from tests.support.pictures import MICRO_LABELS
from tests.support.published import (
    DEPTH,
    SIZE,
    WIDTH,
    PublishedGFT,
    images,
    published,
)
from tests.support.refusals import refusal_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "gft_final.pth"
    torch.save(published().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def said(checkpoint: Path) -> dict[str, Any]:
    """What the import of the checkpoint says to machines; its run lies beside it."""
    given = ("--classes", 4, "--heads", 3, "--out", checkpoint.parent / "run")
    return run_json("import", checkpoint, *given)


@pytest.fixture(scope="module")
def imported(said: dict[str, Any]) -> Path:
    return Path(said["run"])


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_text("".join(f"{label}\n" for label in MICRO_LABELS), encoding="utf-8")
    return path


def done(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def with_data(checkpoint: Path, labels: Path, micro_data: Path) -> Path:
    """The run of an import that names the data of its classes."""
    out = labels.parent / "run"
    done("import", checkpoint, "--labels", labels, "--heads", 3, "--data", micro_data, "--out", out)
    return out


def altered(source: Path, path: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of a checkpoint with `change` made to its state dict."""
    state = torch.load(source, weights_only=True)
    change(state)
    torch.save(state, path)
    return path


def test_an_imported_run_has_the_checkpoints_logits(imported: Path) -> None:
    spec, model = load_run(imported)
    assert spec.name == "published_gft_48_8_blocks"
    assert (len(model.backbone.blocks), spec.stages, len(model.layers)) == (8, (), 0)
    with torch.inference_mode():
        expected = published()(images())
        assert expected.std() > 0.1
        torch.testing.assert_close(model(images()), expected, rtol=0, atol=1e-5)


def test_heads_are_64_wide_unless_told_otherwise(tmp_path: Path) -> None:
    wide = published(width=128, heads=2, depth=8)
    torch.save(wide.state_dict(), tmp_path / "w.pth")
    done("import", tmp_path / "w.pth", "--classes", 4, "--out", tmp_path / "run")
    with torch.inference_mode():
        found = load_run(tmp_path / "run")[1](images())
        torch.testing.assert_close(found, wide(images()), rtol=0, atol=1e-5)


def test_which_patches_the_checkpoint_keeps_changes_no_logit_of_it() -> None:
    model = published()
    with torch.inference_mode():
        assert torch.equal(model(images(), shuffle=True), model(images()))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_its_bundle_gives_the_published_logits_on_photographs(
    with_data: Path, micro_data: Path, tmp_path: Path, target: str
) -> None:
    bundle = tmp_path / "bundle"
    done("export", with_data, "--target", target, "--out", bundle)
    prepare = transforms.Compose(
        [
            transforms.Resize((SIZE, SIZE), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    split = read_split(micro_data, "test", MICRO_LABELS)
    batch = torch.stack([prepare(Image.open(path).convert("RGB")) for path in split.paths])
    with torch.inference_mode():
        expected = published()(batch)
    with Classifier.load(bundle) as classifier:
        outputs, _ = split_outputs(classifier, split)
    torch.testing.assert_close(torch.from_numpy(outputs.logits), expected, rtol=0, atol=1e-4)


def test_an_imported_run_is_evaluated_and_compared_like_any_other(
    with_data: Path, micro_data: Path
) -> None:
    metrics = run_json("evaluate", with_data)
    assert metrics["images"] == 12
    assert metrics == run_json("evaluate", with_data, "--data", micro_data)
    assert run_json("inspect", with_data)["dense_blocks"] == 8


def test_a_run_without_data_of_its_own_says_so(
    imported: Path, micro_data: Path, tmp_path: Path
) -> None:
    refused(run("evaluate", imported), str(imported), "--data FOLDER")
    export = run("export", imported, "--target", "onnx", "--out", tmp_path / "bundle")
    refused(export, str(imported), "--data FOLDER")
    assert "nothing to resume" in refusal("train", "--resume", imported, "--data", micro_data)


def test_a_run_whose_classes_have_no_names_is_exported_on_any_photographs(
    imported: Path, micro_data: Path, tmp_path: Path
) -> None:
    given = ("--data", micro_data, "--target", "onnx", "--out", tmp_path / "bundle")
    fidelity = run_json("export", imported, *given)["fidelity"]
    assert (fidelity["images"], fidelity["labelled"], fidelity["accuracy"]) == (12, 0, None)
    assert fidelity["verdict"] == "pass"
    assert fidelity["top1_agreement"] == 1


def test_import_says_plainly_what_the_checkpoint_is(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = done("import", checkpoint, "--classes", 4, "--heads", 3, "--out", out).stdout
    assert INERT_SELECTION in said.splitlines()
    assert "does not reach its logits" in INERT_SELECTION
    # Two blocks of 12, a norm and a head of 2, three stages of 4 and of 1.
    assert "Left out: 43 of 145 tensors" in said
    assert "random initialisation" in said
    assert said.splitlines()[-1].startswith(f"next: gft-edge export {out} --target openvino")


def test_import_says_the_same_to_machines(said: dict[str, Any], imported: Path) -> None:
    assert said["network"] == "published_gft_48_8_blocks"
    assert said["selection_reaches_logits"] is False
    assert (said["blocks"], said["heads"], said["classes"]) == (8, 3, 4)
    assert said["tensors"] == 102
    counts = {part["tensors"]: part["count"] for part in said["left_out"]}
    assert counts == {
        "base_model.blocks.8 to 9": 24,
        "base_model.norm": 2,
        "base_model.head": 2,
        "hierarchical_blocks": 12,
        "hierarchical_blocks ema_grad": 3,
    }
    assert json.loads((imported / "import.json").read_text())["left_out"] == said["left_out"]


def test_a_vit_tiny_is_named_after_its_size_and_starts_a_gft_tiny(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = PublishedGFT(192, 3, 12, 100, patch=16, size=224).state_dict()
    torch.save({n: torch.zeros(t.shape) for n, t in state.items()}, tmp_path / "w")
    found = read_published(tmp_path / "w")
    assert (found.size, found.heads, found.depth, found.image_size_px) == ("tiny", 3, 12, 224)
    assert found.train_as == "gft_tiny"


@pytest.mark.parametrize("source", ["run", "backbone", "checkpoint"])
def test_a_real_gft_starts_from_the_whole_base(
    checkpoint: Path, imported: Path, source: str
) -> None:
    backbone = imported / "backbone.safetensors"
    path = {"run": imported, "backbone": backbone, "checkpoint": checkpoint}[source]
    spec = micro_spec(stages="8:27,9:18,10:9", image_size_px=SIZE, depth=DEPTH)
    model = build_gft(spec)
    said: list[str] = []
    assert load_backbone(model, spec, path, said.append) == []
    assert "is of a published GFT checkpoint: its first 8 blocks" in "".join(said)
    assert "random initialisation" in "".join(said)
    state = torch.load(checkpoint, weights_only=True)
    own = model.backbone.state_dict()
    assert torch.equal(own["blocks.9.mlp.fc2.weight"], state["base_model.blocks.9.mlp.fc2.weight"])
    assert torch.equal(own["norm.weight"], state["base_model.norm.weight"])
    assert torch.equal(own["head.weight"], state["classifier.weight"])
    # From the blocks, not from the checkpoint's GALA layers.
    source_block = state["base_model.blocks.8.attn.qkv.weight"]
    assert torch.equal(model.layers[0].attn.qkv.weight, source_block)


def test_a_data_parallel_checkpoint_without_running_means_is_the_same_checkpoint(
    checkpoint: Path, imported: Path, tmp_path: Path
) -> None:
    def wrap(state: dict[str, Tensor]) -> None:
        for number in range(3):  # as before training
            del state[f"hierarchical_blocks.{number}.ema_grad"]
        for name in list(state):
            state[f"module.{name}"] = state.pop(name)

    wrapped, out = altered(checkpoint, tmp_path / "w.pth", wrap), tmp_path / "run"
    content = run_json("import", wrapped, "--classes", 4, "--heads", 3, "--out", out)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (out, imported)]
    assert weights[0] == weights[1]
    assert [part["count"] for part in content["left_out"]] == [24, 2, 2, 12]


# What is refused.


def test_a_checkpoint_of_another_kind_says_what_to_do_with_it(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    hugging_face = {"vit.embeddings.patch_embeddings.projection.weight": torch.ones(48, 3, 8, 8)}
    torch.save(hugging_face, tmp_path / "hf.bin")
    torch.save({"layer1.0.conv1.weight": torch.ones(3)}, tmp_path / "resnet.pth")
    torch.save(Trap(), tmp_path / "model.pth")
    torch.save(published(depth=7).state_dict(), tmp_path / "shallow.pth")
    for path, words in (
        (imported, ("is a run already",)),
        (imported / "model.safetensors", ("a run of gft-edge",)),
        (imported / "backbone.safetensors", ("base_model.cls_token", "timm", "train --weights")),
        (tmp_path / "hf.bin", ("Hugging Face", "train --weights")),
        (tmp_path / "resnet.pth", ("another architecture",)),
        (tmp_path / "model.pth", ("model.pth", "code")),
        (tmp_path / "shallow.pth", ("7 blocks", "first 8")),
    ):
        refused(run("import", path, "--classes", 4, "--heads", 3, "--out", out), *words)
    assert "must not run" not in capsys.readouterr().out
    assert not out.exists()
    refusal_of(CheckpointError, lambda: read_published(tmp_path / "absent.pth"), "absent.pth")


def spoil(state: dict[str, Tensor]) -> None:
    state["base_model.blocks.3.attn.qkv.weight"][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("classifier.weight"), ("classifier.weight", "cut short")),
        (lambda s: s.pop("classifier.bias"), ("1 tensors", "classifier.bias")),
        (lambda s: s.pop("base_model.blocks.9.norm2.bias"), ("base_model.blocks.9.norm2.bias",)),
        (lambda s: s.pop("hierarchical_blocks.2.smooth.weight"),
         ("hierarchical_blocks.2.smooth.weight",)),
        # It could change the logits.
        (lambda s: s.update({"fc_norm.weight": torch.ones(WIDTH)}), ("1 tensors", "fc_norm.weight")),
        # A second token before the patches: a distilled network.
        (lambda s: s.update({"base_model.pos_embed": torch.zeros(1, 38, WIDTH)}), ("(1, 38, 48)",)),
        (spoil, ("base_model.blocks.3.attn.qkv.weight", "NaN")),
    ],
)  # fmt: skip
def test_a_tensor_that_should_not_be_as_it_is_is_named(
    checkpoint: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], object],
    words: tuple[str, ...],
) -> None:
    path = altered(checkpoint, tmp_path / "w.pth", change)
    out = tmp_path / "out"
    refused(run("import", path, "--classes", 4, "--heads", 3, "--out", out), *words)


def test_what_weights_do_not_tell_is_asked_for_before_anything_is_written(
    checkpoint: Path, labels: Path, micro_data: Path, tmp_path: Path
) -> None:
    out, few, other = tmp_path / "out", tmp_path / "few.txt", tmp_path / "other.txt"
    few.write_text("apple\nbrown bread\n")
    other.write_text("w\nx\ny\nz\n")
    heads = ("--heads", 3)
    for options, words in (
        (("--classes", 4), ("48", "64", "--heads N")),
        (("--classes", 4, "--heads", 5), ("--heads 5",)),
        ((*heads, "--classes", 5), ("(4, 48)", "--classes is 5", "--classes 4")),
        ((*heads, "--labels", few), (str(few), "has 2", "--labels")),
        (heads, ("--labels FILE",)),
        ((*heads, "--classes", 4, "--labels", labels), ("--classes", "--labels")),
        ((*heads, "--labels", tmp_path / "absent.txt"), ("absent.txt",)),
        ((*heads, "--classes", 4, "--data", micro_data), ("--labels FILE",)),
        ((*heads, "--labels", other, "--data", micro_data), ("4 classes", "apple")),
        ((*heads, "--labels", labels, "--data", tmp_path), ("train/, val/ or test/",)),
    ):
        refused(run("import", checkpoint, "--out", out, *options), *words)
    assert not out.exists()


def test_labels_that_are_no_list_of_names_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    for content, words in (
        (b"a\nb\n\nd\n", ("line 3",)),
        (b"a\nb\nc\nd\n\n", ("line 5",)),
        (b"a\nb\nc\nb\n", ("'b'", "lines 2, 4")),
        (b"a\nb\nc\n\xff\n", ("UTF-8",)),
        (b"", ("has 0", "--labels")),
    ):
        file.write_bytes(content)
        given = ("import", checkpoint, "--heads", 3, "--out", tmp_path / "out")
        refused(run(*given, "--labels", file), *words)


def test_nothing_is_imported_or_trained_over_what_is_there(
    checkpoint: Path, imported: Path, micro_data: Path, tmp_path: Path
) -> None:
    before = sorted((path.name, path.stat().st_size) for path in imported.iterdir())
    given = ("import", checkpoint, "--classes", 4, "--heads", 3)
    refused(run(*given, "--out", imported), str(imported), "--out")
    (tmp_path / "train").symlink_to(micro_data / "test")
    refused(run("train", "--data", tmp_path, "--out", imported), str(imported), "--out")
    assert sorted((path.name, path.stat().st_size) for path in imported.iterdir()) == before
