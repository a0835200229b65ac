"""What a machine with an NVIDIA GPU is given for its first minutes: bundles, wheels, tests, in one folder.

python benchmarks/first_gpu_prepare.py FOLDER [--limit 60] [--python 3.12] [--wheels base,model]

Needs no GPU. Weights are a short pattern of random numbers, repeated: the time of a network does not
depend on them, and a bundle of 350 MB packs into one. What does not fit is left out and said.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from first_gpu_steps import PRECISIONS, size_of
from gft_edge.bundle.images import ImageSet
from gft_edge.bundle.specs import InputSpec
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.datasets import read_split
from gft_edge.datasets.drawings import write_drawings
from gft_edge.export.pipeline import export
from gft_edge.export.request import CalibrationRequest, ExportRequest
from gft_edge.model.named_networks import build_network, spec_from_name
from gft_edge.model.network import Network

ROOT = Path(__file__).resolve().parent.parent
MB = 10**6
IMAGES = 8

# Most worth first.
NETWORKS = (
    "gft_tiny_edge",
    "deit_tiny_patch16_224",
    "gft_base_edge",
    "deit_base_patch16_224",
)

# By what they let the machine do. Those of `base` are needed; whatever the machine has already in a
# version that does, it keeps. Without their own requirements, so that none of them brings PyTorch along.
WHEELS = {
    "base": "numpy pillow click rich psutil pygments markdown-it-py mdurl pytest iniconfig pluggy "
    "packaging nvidia-ml-py pip",
    "model": "timm safetensors accelerate",
    "export": "onnx onnx-ir onnxscript onnxsim onnxruntime ml-dtypes protobuf flatbuffers",
    "tensorrt": "tensorrt-rtx tensorrt-rtx-cu13 tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs "
    "nvidia-cuda-runtime",
}
# A wheel says the oldest C library that it runs on, and pip matches each name exactly.
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")


def main() -> None:
    """Fill the folder, most worth first, up to the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=float, default=60, metavar="MB", help="size of the folder")
    parser.add_argument("--python", default="3.12", help="Python of the machine, such as 3.12")
    parser.add_argument("--wheels", default="base,model", help=f"of {','.join(WHEELS)}")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    given = parser.parse_args()
    groups = given.wheels.split(",")
    if unknown := set(groups) - {*WHEELS, ""}:
        parser.error(f"--wheels {', '.join(unknown)}: choose from {', '.join(WHEELS)}")
    folder: Path = given.folder
    # Bundles take minutes and are kept; wheels are of this tree and of the Python that is asked for.
    shutil.rmtree(folder / "wheels", ignore_errors=True)
    (folder / "wheels").mkdir(parents=True)
    (folder / "bundles").mkdir(exist_ok=True)
    left_out = [f"wheels of {name}: {WHEELS[name]}" for name in WHEELS if name not in groups]
    left_out.append("wheels of PyTorch: it is used where the machine has it")
    copy_source(folder / "source")
    build_wheel(folder / "wheels")
    for name in filter(None, groups):
        fits = fetch(WHEELS[name].split(), given.python, folder / "wheels", room(folder, given))
        if not fits:
            left_out.append(f"wheels of {name}: {WHEELS[name]}")
    with tempfile.TemporaryDirectory() as scratch:
        images = drawings(Path(scratch) / "images")
        for network, precision in in_order(
            [*filter(None, given.networks.split(","))], given.precisions.split(",")
        ):
            name = f"{network}-{precision}"
            packed = folder / "bundles" / f"{name}.tar.xz"
            if packed.exists():
                continue
            bundle = Path(scratch) / name
            export_random(network, precision, images, bundle)
            made = Path(shutil.make_archive(str(bundle), "xztar", scratch, name))
            shutil.rmtree(bundle)
            print(f"{name}: {made.stat().st_size / MB:.2f} MB", flush=True)
            if made.stat().st_size > room(folder, given):
                left_out.append(f"bundle {name}")
                continue
            shutil.move(made, packed.with_suffix(".partial"))
            packed.with_suffix(".partial").rename(packed)
    content = {"python": given.python, "wheels": groups, "left_out": left_out}
    (folder / "content.json").write_text(json.dumps(content, indent=1))
    for line in left_out:
        print(f"left out: {line}")
    print(f"{folder}: {size(folder) / MB:.1f} MB for Python {given.python}. There, in one command:")
    print(f"{folder}/source/benchmarks/first_gpu.sh run {folder}")


def in_order(networks: list[str], precisions: list[str]) -> list[tuple[str, str]]:
    """Networks of one size in pairs, a precision after the other: what is compared is there together."""
    sizes = dict.fromkeys(size_of(name) for name in networks)
    return [
        (network, precision)
        for size in sizes
        for precision in precisions
        for network in networks
        if size_of(network) == size
    ]


def export_random(network: str, precision: str, images: ImageSet, out: Path) -> None:
    """Export a network of a short pattern of weights for TensorRT; fp32 alone is judged."""
    spec = spec_from_name(network, tuple(f"class {number}" for number in range(100)))
    torch.manual_seed(0)
    model = build_network(spec).eval()
    fill(model)
    calibration = CalibrationRequest(images) if precision == "int8" else None
    request = ExportRequest(
        "trt", precision, InputSpec("uint8", 1), calibration=calibration, judged=False
    )
    export(model, spec, images, request, out)


def fill(model: Network) -> None:
    """Repeat a pattern in every weight; its length is prime, so that no two rows are alike."""
    pattern = torch.randn(4099, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                count = parameter.numel()
                values = pattern.repeat(count // len(pattern) + 1)[:count]
                spread = parameter[0].numel() ** -0.5
                parameter.copy_(values.reshape(parameter.shape) * spread)


def drawings(folder: Path) -> ImageSet:
    """A few drawn images, to calibrate and to verify on."""
    write_drawings(folder, {"val": IMAGES}, 256, 0)
    return draw_image_set(read_split(folder, "val"), count=IMAGES, seed=0)


def copy_source(out: Path) -> None:
    """Copy tests and benchmarks, and nothing that would be imported in place of the wheel."""
    shutil.rmtree(out, ignore_errors=True)
    for name in tracked("tests", "benchmarks", "pyproject.toml"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, out / name)


def build_wheel(out: Path) -> None:
    """Build the package's own wheel from a copy, as a build leaves files behind."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in tracked():
            place = Path(scratch) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place, follow_symlinks=False)
        pip("wheel", "--no-deps", "--wheel-dir", str(out), scratch)


def tracked(*paths: str) -> list[str]:
    """The files of the tree, without those that git ignores."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard", *paths]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [name for name in names.split("\0") if name and (ROOT / name).exists()]


def fetch(names: list[str], python: str, out: Path, room_bytes: float) -> bool:
    """Fetch wheels for that Python; False and nothing kept where they would not fit."""
    with tempfile.TemporaryDirectory() as scratch:
        target = ["--dest", scratch, "--no-deps", "--prefer-binary"]
        if any(name.startswith("tensorrt") for name in names):
            # NVIDIA's are fetched by a script of their own, for the Python that runs it.
            pip("wheel", "--no-deps", "--wheel-dir", scratch, *names)
        else:
            target += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
            target += [f"--platform={name}_x86_64" for name in PLATFORMS]
            pip("download", *target, *names)
        found = list(Path(scratch).iterdir())
        if sum(file.stat().st_size for file in found) > room_bytes:
            return False
        for file in found:
            shutil.move(file, out / file.name)
    return True


def pip(*words: str) -> None:
    """Call pip, quietly."""
    subprocess.run([sys.executable, "-m", "pip", *words, "--quiet"], check=True)


def room(folder: Path, given: argparse.Namespace) -> float:
    """Bytes that are left under the limit."""
    return float(given.limit) * MB - size(folder)


def size(folder: Path) -> int:
    """Bytes of all files that are carried; a run leaves others beside them."""
    carried = [folder / name for name in ("wheels", "bundles", "source")]
    files = [file for place in carried for file in place.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


if __name__ == "__main__":
    main()
