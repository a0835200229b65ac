"""The program in examples/cpp, built by the lines of its README, against predict and the golden images."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import ExifTags, Image

from gft_edge.bundle.manifest import Confidence, Manifest
from gft_edge.bundle.specs import CropMode, InputSpec, Preprocessing
from gft_edge.bundle.store import read_bundle, read_manifest, write_manifest
from gft_edge.runtime.classifier import load_pixels
from gft_edge.runtime.golden import read_golden
from gft_edge.runtime.processor import saturates_int8
from tests.support import networks
from tests.support.cli import run
from tests.support.paths import ROOT
from tests.support.pictures import MICRO_LABELS
from tests.support.tools import lacking

pytestmark = pytest.mark.slow

CPP = ROOT / "examples" / "cpp"
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
HEADERS = {"nlohmann/json.hpp": "nlohmann-json3-dev", "turbojpeg.h": "libturbojpeg0-dev"}

CROPS: tuple[CropMode, ...] = ("center", "squash")
FILTERS: tuple[Literal["bicubic", "bilinear", "lanczos"], ...] = ("bicubic", "bilinear", "lanczos")
# From version 13 on Pillow resizes the height first where it shrinks by much more than the width.
GREY_LEVELS = {"center": 0, "squash": 3}

Classify = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def compiler() -> str:
    for tool in ("g++", "cmake"):
        if shutil.which(tool) is None:
            lacking(f"{tool} is not on the PATH: apt install {tool}")
    asked = "".join(
        f"#if !__has_include(<{header}>)\n#error {package}\n#endif\n"
        for header, package in HEADERS.items()
    )
    found = subprocess.run(
        ["g++", "-E", "-x", "c++", "-"], input=asked, capture_output=True, text=True, check=False
    )
    packages = re.findall(r"#error (\S+)", found.stderr)
    if packages:
        lacking(f"the headers to compile with are not here: apt install {' '.join(packages)}")
    assert found.returncode == 0, found.stderr
    return "g++"


@pytest.fixture(scope="module")
def classify(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Classify:
    """Run the program that the README's lines build, warnings being errors."""
    (block,) = re.findall(r"```sh\n(.*?)```", (CPP / "README.md").read_text("utf-8"), re.DOTALL)
    lines = block.splitlines()
    build = [line for line in lines if line.startswith("cmake ")]
    assert len(build) == 2
    assert lines[-1].startswith("build/cpp/classify ")
    assert set(HEADERS.values()) < set(lines[0].split())
    folder = tmp_path_factory.mktemp("cpp")
    (folder / "examples").symlink_to(ROOT / "examples")
    # `python` is the one that OpenVINO is installed in, as in an environment that was entered.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for line in build:
        built = subprocess.run(
            ["bash", "-c", f"export CXXFLAGS='{' '.join(WARNINGS)}'; {line}"],
            cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert built.returncode == 0, built.stdout + built.stderr

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [folder / "build" / "cpp" / "classify", *map(str, words)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return call


@pytest.fixture(scope="module")
def jpegs(micro_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The test pictures as JPEGs, and one more that EXIF turns."""
    folder = tmp_path_factory.mktemp("jpegs")
    paths = []
    for number, picture in enumerate(sorted((micro_data / "test").rglob("*.png"))):
        paths.append(folder / f"{number}.jpg")
        Image.open(picture).save(paths[-1], quality=90)
    paths.append(turned(paths[0], folder / "turned.jpg", 6))
    return paths


def turned(jpeg: Path, out: Path, orientation: int) -> Path:
    """A copy of a JPEG that asks to be turned."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.open(jpeg).save(out, exif=exif, quality=90)
    return out


def probabilities(answered: subprocess.CompletedProcess[str] | Any) -> list[dict[str, float]]:
    """Label -> probability of each image, best first, from lines of JSON."""
    return [
        {each["label"]: each["probability"] for each in json.loads(line)["predictions"]}
        for line in answered.stdout.splitlines()
    ]


def assert_close(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """Check the likeliest label and every probability, and print the largest difference."""
    assert [next(iter(each)) for each in found] == [next(iter(each)) for each in expected]
    assert [sorted(each) for each in found] == [sorted(each) for each in expected]
    furthest = max(
        abs(one[label] - other[label])
        for one, other in zip(found, expected, strict=True)
        for label in one
    )
    assert furthest < 1e-3


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_golden_pixels_have_the_golden_probabilities(
    classify: Classify, micro_bundles: dict[str, Path], target: str, tmp_path: Path
) -> None:
    pixels, golden = read_golden(read_bundle(micro_bundles[target]))
    files = [tmp_path / f"{number}.rgb" for number in range(len(pixels))]
    for file, image in zip(files, pixels, strict=True):
        file.write_bytes(image.tobytes())
    shares = np.exp(golden.logits - golden.logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    expected = [
        {MICRO_LABELS[i]: float(row[i]) for i in np.argsort(-row, kind="stable")} for row in shares
    ]
    answered = classify(micro_bundles[target], "--pixels", *files, "--json", "--top-k", 4)
    assert answered.returncode == 0, answered.stderr
    assert_close(probabilities(answered), expected)


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_jpegs_have_the_labels_and_probabilities_of_predict(
    classify: Classify, micro_bundles: dict[str, Path], target: str, jpegs: list[Path]
) -> None:
    answered = classify(micro_bundles[target], *jpegs, "--json")
    assert answered.returncode == 0, answered.stderr
    expected = probabilities(run("predict", micro_bundles[target], *jpegs, "--json"))
    assert_close(probabilities(answered), expected)
    assert len({next(iter(each)) for each in expected}) > 1, "one label for all would prove little"


def test_the_temperature_and_the_least_probability_are_those_of_the_manifest(
    classify: Classify, micro_bundles: dict[str, Path], jpegs: list[Path], tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(micro_bundles["openvino"], bundle)
    whole = run("predict", bundle, *jpegs, "--top-k", 1, "--json").stdout.splitlines()
    shares = sorted(json.loads(line)["predictions"][0]["probability"] for line in whole)
    for temperature, least in ((3.0, 0.0), (1.0, shares[len(shares) // 2])):
        confidence = Confidence(temperature, least)
        write_manifest(bundle, dataclasses.replace(read_manifest(bundle), confidence=confidence))
        expected = run("predict", bundle, *jpegs, "--json").stdout
        found = classify(bundle, *jpegs, "--json").stdout
        for ours, theirs in zip(found.splitlines(), expected.splitlines(), strict=True):
            one, other = json.loads(ours), json.loads(theirs)
            assert one.keys() == other.keys()
            assert one["label"] == other["label"]
            for mine, his in zip(one["predictions"], other["predictions"], strict=True):
                assert (mine["label"], mine["index"]) == (his["label"], his["index"])
                assert mine["probability"] == pytest.approx(his["probability"], abs=1e-3)
        said = classify(bundle, *jpegs, "--top-k", 2).stdout
        assert said == run("predict", bundle, *jpegs, "--top-k", 2).stdout
    assert "none of these (" in said


def test_it_prints_the_text_of_predict(
    classify: Classify, micro_bundles: dict[str, Path], jpegs: list[Path]
) -> None:
    answered = classify(micro_bundles["openvino"], *jpegs, "--top-k", 2)
    expected = run("predict", micro_bundles["openvino"], *jpegs, "--top-k", 2)
    assert answered.stdout == expected.stdout


def test_an_image_fills_a_static_batch(
    classify: Classify, micro_run: Path, micro_data: Path, jpegs: list[Path], tmp_path: Path
) -> None:
    from gft_edge.export.request import ExportRequest

    request = ExportRequest("openvino", input=InputSpec("uint8", 3))
    bundle = networks.export_run(micro_run, micro_data, tmp_path / "three", request)
    answered = classify(bundle, *jpegs, "--json")
    assert_close(probabilities(answered), probabilities(run("predict", bundle, *jpegs, "--json")))


def test_pixels_are_the_bytes_of_the_runtime(compiler: str, tmp_path: Path) -> None:
    program = tmp_path / "pixels"
    source = Path(__file__).with_name("pixels.cpp")
    words = [compiler, "-std=c++17", *WARNINGS, "-O2", f"-I{CPP}", str(source), "-o", str(program)]
    subprocess.run([*words, "-lturbojpeg"], check=True)
    generator = np.random.default_rng(0)

    def picture(name: str, width: int, height: int, **options: Any) -> Path:
        blots = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        image = blots.resize((width, height), Image.Resampling.BICUBIC)
        image.convert(options.pop("mode", "RGB")).save(tmp_path / name, **options)
        return tmp_path / name

    wide = picture("wide.jpg", 641, 427)
    pictures = [
        wide,
        picture("tall.jpg", 90, 203, quality=40, progressive=True),
        picture("fine.jpg", 300, 299, quality=95, subsampling=0),
        picture("grey.jpg", 55, 71, mode="L"),
    ]
    turns = [turned(wide, tmp_path / f"turn{n}.jpg", n) for n in range(1, 9)]
    specs = [
        Preprocessing(97, crop_pct, mode, interpolation, (0.5,) * 3, (0.5,) * 3)
        for crop_pct in (0.875, 1.0)
        for mode in CROPS
        for interpolation in FILTERS
    ]
    cases = [(path, spec) for path in pictures for spec in specs]
    for path, spec in [*cases, *((path, specs[0]) for path in turns)]:
        out = tmp_path / "out.rgb"
        numbers = (spec.image_size_px, spec.crop_pct, spec.crop_mode, spec.interpolation)
        subprocess.run([program, path, out, *map(str, numbers)], check=True)
        expected = load_pixels(path, spec)
        found = np.fromfile(out, np.uint8).reshape(expected.shape)
        furthest = np.abs(found.astype(int) - expected).max()
        assert furthest <= GREY_LEVELS[spec.crop_mode], (path.name, spec)


def test_a_file_that_is_no_image_is_reported_and_the_rest_goes_on(
    classify: Classify, micro_bundles: dict[str, Path], jpegs: list[Path], tmp_path: Path
) -> None:
    cut, empty, png = tmp_path / "cut.jpg", tmp_path / "empty.jpg", tmp_path / "png.jpg"
    cut.write_bytes(jpegs[0].read_bytes()[:-900])
    empty.write_bytes(b"")
    Image.new("RGB", (9, 9)).save(png, "png")
    bad = [cut, empty, png, tmp_path / "absent.jpg", tmp_path]
    answered = classify(micro_bundles["openvino"], *bad, jpegs[0])
    assert answered.returncode == 1
    assert [line.split(": ")[:2] for line in answered.stderr.splitlines()] == [
        ["Error", str(path)] for path in bad
    ]
    assert answered.stdout.startswith(f"{jpegs[0]}\n")


def altered(bundle: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a bundle whose manifest says something else."""
    copy = Path(shutil.copytree(bundle, folder))
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    (copy / "manifest.json").write_text(json.dumps({**manifest, **changes}))
    return copy


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"schema_version": 99}, "99"),
        ({"target": "tensorrt"}, "--target"),
        ({"input": {"dtype": "float32", "batch": 1}}, "--input uint8"),
        ({"artifact": {"path": "gone.xml"}}, "gone.xml"),
        ({"model": {}}, "manifest.json"),
    ],
)
def test_a_bundle_that_it_cannot_run_is_one_line(
    classify: Classify,
    micro_bundles: dict[str, Path],
    jpegs: list[Path],
    tmp_path: Path,
    changes: dict[str, Any],
    named: str,
) -> None:
    assert changes.keys() <= Manifest.__dataclass_fields__.keys()
    bundle = altered(micro_bundles["openvino"], tmp_path / "bundle", **changes)
    refused(classify(bundle, jpegs[0]), named)


def test_int8_that_would_saturate_here_is_refused(
    classify: Classify, micro_bundles: dict[str, Path], jpegs: list[Path], tmp_path: Path
) -> None:
    full = altered(
        micro_bundles["openvino"], tmp_path / "full", quantization={"weights_range": "full"}
    )
    answered = classify(full, jpegs[0])
    if saturates_int8():
        refused(answered, "--weights-range half")
    else:
        assert answered.returncode == 0, answered.stderr


def test_wrong_use_is_one_line(classify: Classify, tmp_path: Path) -> None:
    refused(classify(), "classify BUNDLE FILE...")
    refused(classify(tmp_path), "classify BUNDLE FILE...")
    refused(classify(tmp_path, "photo.jpg"), "manifest.json")
    refused(classify(tmp_path, "photo.jpg", "--top-k", "0"), "--top-k")
    refused(classify(tmp_path, "photo.jpg", "--kept"), "--kept")
    (tmp_path / "manifest.json").write_text("{")
    refused(classify(tmp_path, "photo.jpg"), "manifest.json")


def test_pixels_of_another_size_are_refused(
    classify: Classify, micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "short.rgb").write_bytes(bytes(100))
    answered = classify(micro_bundles["openvino"], tmp_path / "short.rgb", "--pixels")
    assert answered.returncode == 1
    assert "100 bytes" in answered.stderr
    assert str(64 * 64 * 3) in answered.stderr


def refused(answered: subprocess.CompletedProcess[str], named: str) -> None:
    """Check that the program stopped with one line that names what is wrong."""
    assert (answered.returncode, answered.stdout) == (2, "")
    assert answered.stderr.startswith("Error: ")
    assert answered.stderr.count("\n") == 1
    assert named in answered.stderr
