"""Four bundles of a trained network and eight photographs, and what gft-edge says of them here and there."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gft_edge.datasets.drawings import draw
from gft_edge.studies.demo import RECIPE, micro_spec
from gft_edge.training.loop import train
from gft_edge.training.run_folder import RunConfig
from tests.support.cli import run_json
from tests.support.emulated import Answer, Userland, commands_here, made_userland

# QEMU's names: no 8-bit dot product (a Raspberry Pi 4's), dot products (a Pi 5's), and 8-bit matrix
# products too. SVE and SME are off as in no processor with them: emulated they take ten times as long.
PROCESSORS = ("cortex-a72", "cortex-a76", "max,sve=off,sme=off")
BUNDLES = ("onnx-fp32", "onnx-int8", "openvino-fp32", "openvino-int8")
IMAGES = 8

CLASSES = ("fourjet-low-tail", "twinprop-t-tail", "delta-canard")
PER_CLASS = {"train": 120, "val": 20, "test": 12}
# In smaller batches it learns three classes in a minute.
SHORT = dataclasses.replace(RECIPE, batch_size=12)


@dataclass(frozen=True)
class Told:
    """What gft-edge says on one machine: `doctor`, and of each bundle what three commands say."""

    doctor: dict[str, Any]
    verified: dict[str, dict[str, Any]]
    # Bundle -> an image each, as `predict` gives it.
    predicted: dict[str, list[dict[str, Any]]]
    explained: dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def userland(tmp_path_factory: pytest.TempPathFactory) -> Userland:
    """An arm64 Debian with this tree's wheel installed."""
    try:
        return made_userland(tmp_path_factory.mktemp("wheel"))
    except pytest.fail.Exception as lacking:
        # Every test here would say it again.
        pytest.exit(str(lacking), returncode=1)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory, userland: Userland) -> Path:
    """A folder with bundles/ and photographs/, eight of the test split; made where it can be used."""
    folder = tmp_path_factory.mktemp("work")
    data, run = folder / "data", folder / "run"
    _draw(data)
    learnt = train(
        run,
        micro_spec(CLASSES),
        RunConfig(str(data), SHORT, amp=False, workers=0, device="cpu"),
        None,
    )
    assert learnt.top1 > 0.9
    calibrated = ("--calibration-data", data, "--subset-size", 60)
    for bundle in BUNDLES:
        target, precision = bundle.split("-")
        run_json(
            "export", run, "--data", data, "--out", folder / "bundles" / bundle, "--target", target,
            "--precision", precision, *(calibrated if precision == "int8" else ()),
        )  # fmt: skip
    (folder / "photographs").mkdir()
    drawn = sorted((data / "test").rglob("*.png"))
    for number, path in enumerate(drawn[:: len(drawn) // IMAGES][:IMAGES]):
        shutil.copy(path, folder / "photographs" / f"{number}.png")
    return folder


def _draw(data: Path) -> None:
    for split, count in PER_CLASS.items():
        for name in CLASSES:
            (data / split / name).mkdir(parents=True)
            for number in range(count):
                drawn = draw(name, random.Random(f"{split}/{name}/{number}"), 96)
                drawn.save(data / split / name / f"{number:04d}.png", compress_level=1)


def commands(out: str) -> list[list[str]]:
    """The commands that are compared; pictures go into the folder `out`."""
    found = [["doctor", "--json"]]
    for bundle in BUNDLES:
        of = f"bundles/{bundle}"
        looks = ["--out", f"{out}/{bundle}", "--cover", "0"]
        found += [
            ["verify", of, "--json"],
            ["predict", of, "photographs", "--json"],
            ["explain", of, "photographs", *looks, "--json"],
        ]
    return found


def told(answers: Sequence[Answer]) -> Told:
    """What the answers to `commands` say."""
    failed = [answer.stderr for answer in answers if answer.exit_code]
    assert not failed, failed
    doctor, *rest = answers
    return Told(
        doctor.content(),
        {name: each.content() for name, each in zip(BUNDLES, rest[0::3], strict=True)},
        {name: each.lines() for name, each in zip(BUNDLES, rest[1::3], strict=True)},
        {name: each.content() for name, each in zip(BUNDLES, rest[2::3], strict=True)},
    )


@pytest.fixture(scope="session")
def here(work: Path) -> Told:
    """What this machine says."""
    return told(commands_here(work, commands("here")))


@pytest.fixture(scope="session", params=PROCESSORS)
def processor(request: pytest.FixtureRequest) -> str:
    """An Arm processor, by QEMU's name."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def there(userland: Userland, work: Path, processor: str) -> Told:
    """What an emulated processor says."""
    return told(userland.commands(processor, work, commands(processor.partition(",")[0])))
