"""A checkpoint of the published scripts becomes a run with its logits, and says what it is."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from gft_edge.cli import main
from gft_edge.datasets import read_split
from gft_edge.errors import CheckpointError
from gft_edge.fidelity.verify import split_outputs
from gft_edge.model.checkpoint import load_backbone, load_run
from gft_edge.model.gft import build_gft
from gft_edge.model.published import INERT_SELECTION, read_published
from gft_edge.model.variants import spec_from_name
from gft_edge.runtime.classifier import Classifier
from tests.support.paths import ROOT

LABELS = ("apple", "brown bread", "café", "dill")
WIDTH, HEADS, DEPTH, PATCH, SIZE = 48, 3, 10, 8, 48
KEEP = (27, 18, 9)  # 75, 50, 25 % of 36


class Stage(nn.Module):
    """One GALA layer as the published code computes it: patches in, kept patches in score order out."""

    ema_grad: Tensor | None

    def __init__(self, width: int, heads: int, keep: int):
        super().__init__()
        self.heads, self.keep, self.scale = heads, keep, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.smooth = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.register_buffer("ema_grad", None)

    def forward(self, x: Tensor, shuffle: bool) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attention = q @ k.transpose(-2, -1) * self.scale
        mean = attention.mean(dim=-1)
        slope = torch.zeros_like(mean)
        slope[..., 0] = mean[..., 1] - mean[..., 0]
        slope[..., -1] = mean[..., -1] - mean[..., -2]
        slope[..., 1:-1] = (mean[..., 2:] - mean[..., :-2]) / 2
        importance = self.smooth(slope.abs().mean(dim=1, keepdim=True)).squeeze(1)
        centred = importance - importance.mean(dim=1, keepdim=True)
        importance = centred / (importance.std(dim=1, keepdim=True) + 1e-6)
        if self.training:
            before = importance if self.ema_grad is None else self.ema_grad
            importance = 0.9 * before + 0.1 * importance
            self.ema_grad = importance.detach()
        scores = torch.softmax(importance / 0.1, dim=-1)
        out = self.proj((attention.softmax(dim=-1) @ v).transpose(1, 2).reshape(x.shape))
        chosen = scores.topk(self.keep, dim=1).indices
        if shuffle:
            chosen = torch.randperm(tokens)[: self.keep].expand(batch, -1)
        kept: Tensor = out.gather(1, chosen.unsqueeze(-1).expand(-1, -1, width))
        return kept


class PublishedGFT(nn.Module):
    """The published network, restated: its class token skips the stages."""

    def __init__(self, width: int, heads: int, depth: int, classes: int):
        super().__init__()
        self.base_model = timm.create_model(
            "vit_tiny_patch16_224", img_size=SIZE, patch_size=PATCH, embed_dim=width,
            num_heads=heads, depth=depth, num_classes=1000,
        )  # fmt: skip
        self.hierarchical_blocks = nn.ModuleList(Stage(width, heads, keep) for keep in KEEP)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor, shuffle: bool = False) -> Tensor:
        base = self.base_model
        x = base.patch_embed(images)
        x = torch.cat([base.cls_token.expand(len(x), -1, -1), x], dim=1) + base.pos_embed
        for block in base.blocks[:8]:
            x = block(x)
        class_token, patches = x[:, :1], x[:, 1:]
        for stage in self.hierarchical_blocks:
            patches = stage(patches, shuffle)
        logits: Tensor = self.classifier(torch.cat([class_token, patches], dim=1)[:, 0])
        return logits


def published(width: int = WIDTH, heads: int = HEADS, depth: int = DEPTH) -> PublishedGFT:
    """As after a training: seeded random weights, and an ema_grad of the last batch's shape."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = PublishedGFT(width, heads, depth, len(LABELS))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        model.train()(torch.randn(5, 3, SIZE, SIZE))
    return model.eval()


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "gft_final.pth"
    torch.save(published().state_dict(), path)
    return path


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("".join(f"{label}\n" for label in LABELS), encoding="utf-8")
    return path


def gft_edge(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments: object) -> Result:
    result = gft_edge(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: object) -> str:
    """The one line of a request that was wrong."""
    result = gft_edge(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return line


def altered(source: Path, path: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of a checkpoint with `change` made to its state dict."""
    state = torch.load(source, weights_only=True)
    change(state)
    torch.save(state, path)
    return path


def test_the_checkpoint_is_as_the_published_scripts_leave_it(checkpoint: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    assert state["hierarchical_blocks.0.ema_grad"].shape == (5, 36)
    assert state["hierarchical_blocks.1.ema_grad"].shape == (5, 27)
    assert state["hierarchical_blocks.2.ema_grad"].shape == (5, 18)
    with pytest.raises(RuntimeError, match="ema_grad"):
        PublishedGFT(WIDTH, HEADS, DEPTH, len(LABELS)).load_state_dict(state)


def test_an_imported_run_has_the_checkpoints_logits(checkpoint: Path, tmp_path: Path) -> None:
    done("import", checkpoint, "--classes", 4, "--heads", 3, "--out", tmp_path / "run")
    spec, model = load_run(tmp_path / "run")
    assert spec.name == "published_gft_48_8_blocks"
    assert (len(model.backbone.blocks), spec.stages, len(model.layers)) == (8, (), 0)
    with torch.inference_mode():
        expected = published()(images())
        assert expected.std() > 0.1
        torch.testing.assert_close(model(images()), expected, rtol=0, atol=1e-5)


def test_heads_are_64_wide_unless_told_otherwise(tmp_path: Path) -> None:
    torch.save(published(width=128, heads=2, depth=8).state_dict(), tmp_path / "w.pth")
    done("import", tmp_path / "w.pth", "--classes", 4, "--out", tmp_path / "run")
    _, model = load_run(tmp_path / "run")
    with torch.inference_mode():
        expected = published(width=128, heads=2, depth=8)(images())
        torch.testing.assert_close(model(images()), expected, rtol=0, atol=1e-5)


def test_which_patches_the_checkpoint_keeps_changes_no_logit_of_it() -> None:
    model = published()
    with torch.inference_mode():
        assert torch.equal(model(images(), shuffle=True), model(images()))


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_its_bundle_gives_the_published_logits_on_photographs(
    checkpoint: Path, labels: Path, micro_data: Path, tmp_path: Path, target: str
) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    done("import", checkpoint, "--labels", labels, "--heads", 3, "--data", micro_data, "--out", run)
    done("export", run, "--target", target, "--out", bundle)
    prepare = transforms.Compose(
        [
            transforms.Resize((SIZE, SIZE), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    split = read_split(micro_data, "test", LABELS)
    batch = torch.stack([prepare(Image.open(path).convert("RGB")) for path in split.paths])
    with torch.inference_mode():
        expected = published()(batch)
    with Classifier.load(bundle) as classifier:
        outputs, _ = split_outputs(classifier, split)
    torch.testing.assert_close(torch.from_numpy(outputs.logits), expected, rtol=0, atol=1e-4)


def test_an_imported_run_is_evaluated_and_compared_like_any_other(
    checkpoint: Path, labels: Path, micro_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done("import", checkpoint, "--labels", labels, "--heads", 3, "--data", micro_data, "--out", run)
    metrics = json.loads(done("evaluate", run, "--json").stdout)
    assert metrics["images"] == 12
    assert metrics == json.loads(done("evaluate", run, "--data", micro_data, "--json").stdout)
    assert json.loads(done("inspect", run, "--json").stdout)["dense_blocks"] == 8


def test_a_run_without_data_of_its_own_says_so(
    checkpoint: Path, labels: Path, micro_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done("import", checkpoint, "--labels", labels, "--heads", 3, "--out", run)
    message = f"{run} was imported and has no data of its own: give --data FOLDER"
    assert message in refused("evaluate", run)
    assert message in refused("export", run, "--target", "onnx", "--out", tmp_path / "bundle")
    done("evaluate", run, "--data", micro_data)
    assert "nothing to resume" in refused("train", "--resume", run, "--data", micro_data)


def test_import_says_plainly_what_the_checkpoint_is(checkpoint: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = done("import", checkpoint, "--classes", 4, "--heads", 3, "--out", run).stdout
    assert INERT_SELECTION in said.splitlines()
    assert "does not reach its logits" in INERT_SELECTION
    # Two blocks of 12, a norm and a head of 2, three stages of 4 and of 1.
    assert "Left out: 43 of 145 tensors" in said
    assert "random initialisation" in said
    assert said.splitlines()[-1].startswith(f"next: gft-edge export {run} --target openvino")


def test_import_says_the_same_to_machines(checkpoint: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = done("import", checkpoint, "--classes", 4, "--heads", 3, "--out", run, "--json")
    content = json.loads(said.stdout)
    assert content["run"] == str(run)
    assert content["network"] == "published_gft_48_8_blocks"
    assert content["selection_reaches_logits"] is False
    assert (content["blocks"], content["heads"], content["classes"]) == (8, 3, 4)
    assert content["tensors"] == 102
    counts = {part["tensors"]: part["count"] for part in content["left_out"]}
    assert counts == {
        "base_model.blocks.8 to 9": 24,
        "base_model.norm": 2,
        "base_model.head": 2,
        "hierarchical_blocks": 12,
        "hierarchical_blocks ema_grad": 3,
    }
    assert json.loads((run / "import.json").read_text())["left_out"] == content["left_out"]


def test_a_vit_base_is_named_after_its_size_and_starts_a_gft_base(tmp_path: Path) -> None:
    state = {
        "base_model.cls_token": torch.zeros(1, 1, 768),
        "base_model.pos_embed": torch.zeros(1, 197, 768),
        "base_model.patch_embed.proj.weight": torch.zeros(768, 3, 16, 16),
        "base_model.patch_embed.proj.bias": torch.zeros(768),
        "classifier.weight": torch.zeros(100, 768),
        "classifier.bias": torch.zeros(100),
    }
    block = timm.create_model("vit_base_patch16_224", depth=1, num_classes=0).state_dict()
    for name, tensor in block.items():
        for number in range(12):
            if name.startswith("blocks.0."):
                state[f"base_model.{name.replace('.0.', f'.{number}.', 1)}"] = tensor
        if name.startswith("norm."):
            state[f"base_model.{name}"] = tensor
    for number in range(3):
        stage = Stage(768, 12, 147).state_dict()
        state |= {f"hierarchical_blocks.{number}.{n}": tensor for n, tensor in stage.items()}
    safetensors.torch.save_file({n: t.clone() for n, t in state.items()}, tmp_path / "w")
    found = read_published(tmp_path / "w")
    assert (found.size, found.heads, found.depth, found.image_size_px) == ("base", 12, 12, 224)
    assert found.variant == "gft_base"


@pytest.mark.parametrize("source", ["run", "backbone", "checkpoint"])
def test_a_real_gft_starts_from_the_whole_base(
    checkpoint: Path, tmp_path: Path, source: str
) -> None:
    run = tmp_path / "run"
    done("import", checkpoint, "--classes", 4, "--heads", 3, "--out", run)
    path = {"run": run, "backbone": run / "backbone.safetensors", "checkpoint": checkpoint}[source]
    arguments = {"embed_dim": WIDTH, "num_heads": HEADS, "depth": DEPTH, "patch_size": PATCH}
    spec = spec_from_name(
        "vit_tiny_patch16_224", LABELS, image_size_px=SIZE, stages="8:27,9:18,10:9",
        backbone_args=arguments,
    )  # fmt: skip
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


def test_a_data_parallel_checkpoint_is_the_same_checkpoint(
    checkpoint: Path, tmp_path: Path
) -> None:
    def wrap(state: dict[str, Tensor]) -> None:
        for name in list(state):
            state[f"module.{name}"] = state.pop(name)

    wrapped = altered(checkpoint, tmp_path / "w.pth", wrap)
    for name, path in (("a", checkpoint), ("b", wrapped)):
        done("import", path, "--classes", 4, "--heads", 3, "--out", tmp_path / name)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_a_checkpoint_from_before_training_has_no_running_means(
    checkpoint: Path, tmp_path: Path
) -> None:
    def fresh(state: dict[str, Tensor]) -> None:
        for number in range(3):
            del state[f"hierarchical_blocks.{number}.ema_grad"]

    path = altered(checkpoint, tmp_path / "w.pth", fresh)
    content = json.loads(
        done("import", path, "--classes", 4, "--heads", 3, "--out", tmp_path / "r", "--json").stdout
    )
    assert [part["count"] for part in content["left_out"]] == [24, 2, 2, 12]


def test_a_checkpoint_of_another_kind_says_what_to_do_with_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done("import", checkpoint, "--classes", 4, "--heads", 3, "--out", tmp_path / "run")
    again = refused("import", tmp_path / "run", "--classes", 4, "--out", out)
    assert "is a run already: evaluate or export it" in again
    within = tmp_path / "run" / "model.safetensors"
    assert "it looks like a run of gft-edge" in refused(
        "import", within, "--classes", 4, "--out", out
    )

    timm_vit = tmp_path / "run" / "backbone.safetensors"
    line = refused("import", timm_vit, "--classes", 4, "--out", out)
    assert "is no published GFT checkpoint: base_model.cls_token is missing" in line
    assert "looks like a network of timm's: give it to gft-edge train --weights" in line

    hugging_face = {"vit.embeddings.patch_embeddings.projection.weight": torch.ones(48, 3, 8, 8)}
    torch.save(hugging_face, tmp_path / "hf.bin")
    line = refused("import", tmp_path / "hf.bin", "--classes", 4, "--out", out)
    assert "looks like a ViT of Hugging Face's: give it to gft-edge train --weights" in line

    torch.save({"layer1.0.conv1.weight": torch.ones(3)}, tmp_path / "resnet.pth")
    line = refused("import", tmp_path / "resnet.pth", "--classes", 4, "--out", out)
    assert "its tensors are of another architecture" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("classifier.weight", "classifier.weight is missing; it looks like one that was cut short"),
        ("classifier.bias", "1 tensors are missing (classifier.bias, ...)"),
        ("base_model.blocks.9.norm2.bias", "1 tensors are missing (base_model.blocks.9.norm2.bias"),
        ("hierarchical_blocks.2.smooth.weight", "missing (hierarchical_blocks.2.smooth.weight"),
    ],
)
def test_a_missing_tensor_is_named(
    checkpoint: Path, tmp_path: Path, name: str, message: str
) -> None:
    path = altered(checkpoint, tmp_path / "w.pth", lambda state: state.pop(name))
    line = refused("import", path, "--classes", 4, "--heads", 3, "--out", tmp_path / "out")
    assert message in line


def test_a_tensor_more_could_change_the_logits_and_is_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    def add(state: dict[str, Tensor]) -> None:
        state["fc_norm.weight"] = torch.ones(WIDTH)

    path = altered(checkpoint, tmp_path / "w.pth", add)
    line = refused("import", path, "--classes", 4, "--heads", 3, "--out", tmp_path / "out")
    assert "is no checkpoint of a published GFT: it holds 1 tensors more (fc_norm.weight" in line


def test_fewer_blocks_than_the_published_eight_are_refused(tmp_path: Path) -> None:
    torch.save(published(depth=7).state_dict(), tmp_path / "w.pth")
    line = refused(
        "import", tmp_path / "w.pth", "--classes", 4, "--heads", 3, "--out", tmp_path / "o"
    )
    assert "has 7 blocks: the published network runs the first 8" in line


def test_a_base_that_is_no_plain_vit_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    def distilled(state: dict[str, Tensor]) -> None:
        state["base_model.pos_embed"] = torch.zeros(1, 38, WIDTH)

    path = altered(checkpoint, tmp_path / "w.pth", distilled)
    line = refused("import", path, "--classes", 4, "--heads", 3, "--out", tmp_path / "out")
    assert "position embedding (1, 38, 48)" in line


def test_heads_that_weights_do_not_tell_are_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    line = refused("import", checkpoint, "--classes", 4, "--out", tmp_path / "out")
    assert "is 48 wide, no multiple of 64" in line
    assert "--heads N" in line
    line = refused("import", checkpoint, "--classes", 4, "--heads", 5, "--out", tmp_path / "out")
    assert "--heads 5 does not divide the width" in line


def test_nan_is_refused_by_tensor(checkpoint: Path, tmp_path: Path) -> None:
    def spoil(state: dict[str, Tensor]) -> None:
        state["base_model.blocks.3.attn.qkv.weight"][0, 0] = float("nan")

    path = altered(checkpoint, tmp_path / "w.pth", spoil)
    line = refused("import", path, "--classes", 4, "--heads", 3, "--out", tmp_path / "out")
    assert "base_model.blocks.3.attn.qkv.weight holds NaN" in line


class Trap:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must not run",))


def test_a_whole_pickled_model_is_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(Trap(), tmp_path / "model.pth")
    line = refused("import", tmp_path / "model.pth", "--classes", 4, "--out", tmp_path / "out")
    assert "could run code on loading" in line
    assert "must not run" not in capsys.readouterr().out


def test_classes_that_disagree_with_the_classifier_are_refused(
    checkpoint: Path, labels: Path, tmp_path: Path
) -> None:
    given = ("import", checkpoint, "--heads", 3, "--out", tmp_path / "out")
    line = refused(*given, "--classes", 5)
    assert "has 4 classes (classifier.weight is (4, 48)), --classes is 5: pass --classes 4" in line
    labels.write_text("apple\nbrown bread\n")
    line = refused(*given, "--labels", labels)
    assert f"{labels} has 2: pass --labels with one line per class" in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\n\nd\n", "line 3 is empty"),
        (b"a\nb\nc\nd\n\n", "line 5 is empty"),
        (b"a\nb\nc\nb\n", "names 'b' in lines 2, 4"),
        (b"a\nb\nc\n\xff\n", "is no text in UTF-8"),
        (b"", "has 0: pass --labels with one line per class"),
    ],
)
def test_labels_that_are_no_list_of_names_are_refused(
    checkpoint: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    given = ("import", checkpoint, "--heads", 3, "--out", tmp_path / "out")
    assert message in refused(*given, "--labels", tmp_path / "labels.txt")


def test_labels_and_data_are_checked_before_anything_is_written(
    checkpoint: Path, labels: Path, micro_data: Path, tmp_path: Path
) -> None:
    given = ("import", checkpoint, "--heads", 3, "--out", tmp_path / "out")
    assert "give --labels FILE" in refused(*given)
    assert "and not both" in refused(*given, "--classes", 4, "--labels", labels)
    assert "no such file" in refused(*given, "--labels", tmp_path / "absent.txt")
    assert "give --labels FILE too" in refused(*given, "--classes", 4, "--data", micro_data)
    labels.write_text("w\nx\ny\nz\n")
    line = refused(*given, "--labels", labels, "--data", micro_data)
    assert "has 4 classes the model does not know (apple, ...)" in line
    assert "no train/, val/ or test/" in refused(*given, "--labels", labels, "--data", tmp_path)
    assert not (tmp_path / "out").exists()


def test_nothing_is_imported_or_trained_over_what_is_there(
    checkpoint: Path, labels: Path, micro_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done("import", checkpoint, "--classes", 4, "--heads", 3, "--out", run)
    before = sorted((path.name, path.stat().st_size) for path in run.iterdir())
    line = refused("import", checkpoint, "--classes", 4, "--heads", 3, "--out", run)
    assert "exists already: choose another --out" in line
    data = tmp_path / "data"
    data.mkdir()
    (data / "train").symlink_to(micro_data / "test")
    assert "holds an imported run" in refused("train", "--data", data, "--out", run)
    assert sorted((path.name, path.stat().st_size) for path in run.iterdir()) == before


def test_the_guides_commands_are_those_of_the_command_line() -> None:
    guide = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    (shell,) = re.findall(r"```sh\n(.*?)```", guide, flags=re.DOTALL)
    words = [shlex.split(line)[1:] for line in shell.splitlines()]
    assert [name for name, *_ in words] == ["import", "export", "train"]
    for name, *arguments in words:
        main.commands[name].make_context(name, arguments)


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such weights file"):
        read_published(tmp_path / "absent.pth")
