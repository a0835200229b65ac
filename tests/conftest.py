"""Small real inputs that several rooms' tests share."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.fake_cudart import FakeCudart
    from tests.fake_tensorrt import FakeTensorrt

SHARED = Path(__file__).parent.parent.parent / "shared"

# A space and a letter outside ASCII: labels are text, not identifiers.
MICRO_LABELS = ("apple", "brown bread", "café", "dill")
MICRO_STAGES = "1:48,2:32,3:16"
MICRO_IMAGES_PER_CLASS = 3


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled models are kept below a folder of the tests, not in the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def grocery() -> Path:
    """Real photographs, where the machine has them."""
    folder = SHARED / "data" / "grocery"
    if not folder.is_dir():
        pytest.skip("the grocery photographs are not on this machine")
    return folder


@pytest.fixture(scope="session")
def micro_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a test split: seeded blots and noise, three images a class, not square."""
    folder = tmp_path_factory.mktemp("micro_data")
    generator = np.random.default_rng(0)
    for label in MICRO_LABELS:
        (folder / "test" / label).mkdir(parents=True)
        for number in range(MICRO_IMAGES_PER_CLASS):
            size = (90 + 7 * number, 80)
            blots = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            smooth = np.asarray(blots.resize(size, Image.Resampling.BICUBIC))
            noisy = np.clip(smooth + generator.normal(0, 25, smooth.shape), 0, 255)
            path = folder / "test" / label / f"{number}.png"
            Image.fromarray(noisy.astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="session")
def micro_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth pictures in train/ to calibrate on, val/ to verify on and test/ to keep apart."""
    folder = tmp_path_factory.mktemp("micro_pictures")
    generator = np.random.default_rng(8)  # no image of val/ is a near tie for calm_run
    for split in ("train", "val", "test"):
        for label in MICRO_LABELS:
            (folder / split / label).mkdir(parents=True)
            for number in range(12):
                small = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
                picture = small.resize((80, 90), Image.Resampling.BICUBIC)
                picture.save(folder / split / label / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def micro_run(tmp_path_factory: pytest.TempPathFactory, micro_data: Path) -> Path:
    """The run folder of a 4-block GFT at 64 px with three live stages and seeded random weights."""
    folder = tmp_path_factory.mktemp("micro_run")
    _save_micro_network(folder, micro_data, "test", spread=0.15)
    return folder


@pytest.fixture(scope="session")
def calm_run(tmp_path_factory: pytest.TempPathFactory, micro_pictures: Path) -> Path:
    """Like micro_run, but rounding disturbs it no more than a trained network.

    Wide random weights are chaotic, and a random head looks where images hardly differ: FP16 alone
    would change decisions. This one reads the directions in which the images differ most.
    """
    import torch

    from gft_edge.model.checkpoint import load_run, save_network

    folder = tmp_path_factory.mktemp("calm_run")
    pixels = _save_micro_network(folder, micro_pictures, "val", spread=0.04)
    spec, model = load_run(folder)
    head = model.backbone.head
    with torch.no_grad():
        read: list[torch.Tensor] = []
        handle = head.register_forward_pre_hook(lambda _, given: read.append(given[0]))
        _logits(model, pixels, spec)
        handle.remove()
        features = torch.cat(read)
        centre = features.mean(dim=0)
        _, _, directions = torch.linalg.svd(features - centre, full_matrices=False)
        head.weight.copy_(directions[: len(MICRO_LABELS)])
        head.bias.copy_(-head.weight @ centre)
    save_network(folder, model, spec)
    return folder


def _logits(model: Any, pixels: npt.NDArray[np.uint8], spec: Any) -> npt.NDArray[np.float32]:
    from gft_edge.export.verify import torch_outputs

    return torch_outputs(model.eval(), pixels, spec.preprocessing).logits


def _save_micro_network(
    folder: Path, data: Path, split: str, spread: float
) -> npt.NDArray[np.uint8]:
    """Write the network and return the pixels its logits were centred on."""
    import torch

    from gft_edge.datasets import read_split
    from gft_edge.model.checkpoint import save_network
    from gft_edge.model.gft import build_gft
    from gft_edge.model.variants import spec_from_name
    from gft_edge.preprocess import open_rgb, resize_and_crop

    spec = spec_from_name(
        "vit_tiny_patch16_224",
        MICRO_LABELS,
        image_size_px=64,
        backbone_args={"patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3},
        stages=MICRO_STAGES,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_gft(spec)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.add_(spread * torch.randn(parameter.shape))
    pixels = np.stack(
        [
            resize_and_crop(open_rgb(path), spec.preprocessing)
            for path in read_split(data, split).paths
        ]
    )
    # Random weights prefer one class on every image: centred logits make the decisions differ.
    logits = _logits(model, pixels, spec)
    with torch.no_grad():
        model.backbone.head.bias.sub_(torch.from_numpy(logits.mean(axis=0)))
    save_network(folder, model, spec)
    return pixels


@pytest.fixture(scope="session")
def micro_bundles(
    tmp_path_factory: pytest.TempPathFactory, micro_run: Path, micro_data: Path
) -> dict[str, Path]:
    """Target -> the bundle that the micro run exports to. Copy one before altering it."""
    from gft_edge.calibration.image_set import draw_image_set
    from gft_edge.datasets import read_split
    from gft_edge.export.recipe import ExportRequest, export
    from gft_edge.model.checkpoint import load_run

    spec, model = load_run(micro_run)
    images = draw_image_set(read_split(micro_data, "test", spec.labels), count=12, seed=0)
    folder = tmp_path_factory.mktemp("micro_bundles")
    for target in ("onnx", "openvino"):
        export(model, spec, images, ExportRequest(target), folder / target)
    return {target: folder / target for target in ("onnx", "openvino")}


@pytest.fixture
def fake_cudart() -> FakeCudart:
    """A CUDA runtime over host memory, fresh; its file says what it can do."""
    fake: FakeCudart = _helper("fake_cudart").FakeCudart()
    return fake


@pytest.fixture
def fake_tensorrt(fake_cudart: FakeCudart) -> FakeTensorrt:
    """A TensorRT that computes in that runtime's memory; its file says what it can do."""
    fake: FakeTensorrt = _helper("fake_tensorrt").FakeTensorrt(fake_cudart)
    return fake


@pytest.fixture(scope="session")
def launched() -> Any:
    """What each process of a launch runs; its file says how."""
    return _helper("launched")


def _helper(name: str) -> Any:
    """A module of this folder that holds no tests: the folder is no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
