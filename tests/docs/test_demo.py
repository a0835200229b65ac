"""The demo: a small one each time, the real one among the slow tests."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from gft_edge.errors import GateError, UsageError
from gft_edge.runtime.backends import backends
from gft_edge.studies.demo import DEFAULTS, RECIPE, DemoReport, DemoSettings, run_demo

SMALL = DemoSettings(
    image_size_px=48,
    patch_px=8,
    width=48,
    depth=4,
    stages="0:75%,1:50%,2:25%",
    train_per_class=4,
    val_per_class=2,
    test_per_class=2,
    top1_gate=0.0,
    recipe=dataclasses.replace(RECIPE, epochs=1),
)


def demo(out: Path, settings: DemoSettings) -> DemoReport:
    return run_demo(out, lambda text, done, total: None, lambda text: None, settings)


def check(report: DemoReport, out: Path) -> None:
    running = [name for name, backend in backends().items() if backend.missing() is None]
    assert [row.target for row in report.rows] == ["PyTorch", *running]
    for row in report.rows:
        assert row.top1_agreement == 1.0
        assert row.median_ms > 0
        assert row.size_mib > 0
        assert len(row.kept_overlap) == 3
    assert json.loads((out / "demo.json").read_text())["rows"][0]["target"] == "PyTorch"


@pytest.mark.slow
def test_a_small_demo_leaves_a_run_a_bundle_a_target_and_two_pictures(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    report = demo(out, SMALL)
    check(report, out)
    assert report.test_images == 20
    with Image.open(out / "classes.png") as classes, Image.open(out / "kept_patches.png") as kept:
        assert classes.height > 10 * 48
        assert kept.width > 4 * 96
    again = demo(out, SMALL)
    assert [row.top1 for row in again.rows] == [row.top1 for row in report.rows]


@pytest.mark.slow
def test_a_network_that_does_not_learn_fails_its_gate(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"on unseen drawings, under 100%: see .*history.csv"):
        demo(tmp_path / "demo", dataclasses.replace(SMALL, top1_gate=1.0))


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is no demo"):
        demo(tmp_path, SMALL)
    assert (tmp_path / "precious.txt").exists()


@pytest.mark.slow
def test_the_demo_reaches_its_accuracy_on_unseen_drawings(tmp_path: Path) -> None:
    report = demo(tmp_path / "demo", DEFAULTS)
    check(report, tmp_path / "demo")
    assert report.rows[0].top1 >= 0.8
