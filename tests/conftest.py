"""Small real inputs that several rooms' tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).parent.parent.parent / "shared"

# A space and a letter outside ASCII: labels are text, not identifiers.
MICRO_LABELS = ("apple", "brown bread", "café", "dill")
MICRO_STAGES = "1:48,2:32,3:16"
MICRO_IMAGES_PER_CLASS = 3


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
def micro_run(tmp_path_factory: pytest.TempPathFactory, micro_data: Path) -> Path:
    """The run folder of a 4-block GFT at 64 px with three live stages and seeded random weights."""
    import torch

    from gft_edge.export.verify import torch_outputs
    from gft_edge.image_folder import read_split
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
                    parameter.add_(0.15 * torch.randn(parameter.shape))
    pixels = np.stack(
        [
            resize_and_crop(open_rgb(path), spec.preprocessing)
            for path in read_split(micro_data, "test").paths
        ]
    )
    # Random weights prefer one class on every image: centred logits make the decisions differ.
    logits = torch_outputs(model.eval(), pixels, spec.preprocessing).logits
    with torch.no_grad():
        model.backbone.head.bias.sub_(torch.from_numpy(logits.mean(axis=0)))
    folder = tmp_path_factory.mktemp("micro_run")
    save_network(folder, model, spec)
    return folder


@pytest.fixture(scope="session")
def micro_bundles(
    tmp_path_factory: pytest.TempPathFactory, micro_run: Path, micro_data: Path
) -> dict[str, Path]:
    """Target -> the bundle that the micro run exports to. Copy one before altering it."""
    from gft_edge.calibration.image_set import draw_image_set
    from gft_edge.export.recipe import ExportRequest, export
    from gft_edge.image_folder import read_split
    from gft_edge.model.checkpoint import load_run

    spec, model = load_run(micro_run)
    images = draw_image_set(read_split(micro_data, "test", spec.labels), count=12, seed=0)
    folder = tmp_path_factory.mktemp("micro_bundles")
    for target in ("onnx", "openvino"):
        export(model, spec, images, ExportRequest(target), folder / target)
    return {target: folder / target for target in ("onnx", "openvino")}
