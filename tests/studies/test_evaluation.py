"""A run's evaluation: what is kept of it, for how long, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gft_edge.model.checkpoint import load_run, save_network
from gft_edge.training.logits import network_logits
from tests.support.cli import refusal, run, run_json


def test_an_evaluation_is_kept_until_weights_network_or_images_change(
    gft: Path, micro_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return network_logits(*arguments, **options)

    monkeypatch.setattr("gft_edge.studies.evaluation.network_logits", counted)
    first = run("evaluate", gft)
    assert (calls, "as evaluated before" in first.stderr) == (1, False)
    second = run("evaluate", gft)
    assert (calls, "as evaluated before" in second.stderr) == (1, True)
    assert second.stdout == first.stdout
    with np.load(gft / "evaluation" / "test.npz") as kept:
        assert kept["logits"].shape == (12, 4)
        assert kept["targets"].tolist() == [n // 3 for n in range(12)]
    record = json.loads((gft / "evaluation" / "test.json").read_text())["result"]
    assert {"split": "test", **record["metrics"]}.items() <= run_json("evaluate", gft).items()
    run("evaluate", gft, "--fresh")
    assert calls == 2
    moved = Path(shutil.copytree(micro_data, tmp_path / "moved"))
    run("evaluate", gft, "--data", moved)
    assert calls == 2

    def altered_images() -> None:
        (moved / "test" / "dill" / "0.png").unlink()

    def damaged_logits() -> None:
        (gft / "evaluation" / "test.npz").write_bytes(b"no zip")

    def damaged_record() -> None:
        (gft / "evaluation" / "test.json").write_text("{}")

    def other_weights() -> None:
        spec, model = load_run(gft)
        with torch.no_grad():
            model.backbone.head.bias[0] += 1
        save_network(gft, model, spec)

    def other_network() -> None:
        text = (gft / "model.json").read_text()
        (gft / "model.json").write_text(text.replace('"keep": 48', '"keep": 47'))

    for count, change in enumerate(
        (altered_images, damaged_logits, damaged_record, other_weights, other_network), start=3
    ):
        change()
        assert run("evaluate", gft, "--data", moved).exit_code == 0
        assert calls == count


def test_an_evaluation_says_its_device_and_serves_another(
    gft: Path, micro_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, int]] = []

    def noted(network: Any, spec: Any, split: Any, workers: int, progress: Any, on: Any) -> Any:
        given.append((on.device.type, workers))
        return network_logits(network, spec, split, 0, progress, on)

    monkeypatch.setattr("gft_edge.studies.evaluation.network_logits", noted)
    here = "cuda" if torch.cuda.is_available() else "cpu"
    assert run("evaluate", gft).exit_code == 0
    # A batch is decoded sooner than a process starts.
    assert given == [(here, 0)]
    file = gft / "evaluation" / "test.json"
    text = file.read_text()
    assert f'"device": "{here}"' in text
    file.write_text(text.replace(f'"{here}"', '"cuda"'))
    assert "as evaluated before" in run("evaluate", gft, "--device", "cpu").stderr
    more = tmp_path / "more"
    for number in range(3):
        shutil.copytree(micro_data, more, dirs_exist_ok=True)
        for image in [*more.glob("test/*/[0-9].png")]:
            image.rename(image.with_name(f"copy {number} {image.name}"))
    result = run("evaluate", gft, "--data", more, "--device", "cpu", "--workers", "1")
    assert (result.exit_code, given[-1]) == (0, ("cpu", 1)), result.stderr


def test_options_that_mean_nothing_here_are_refused(
    gft: Path, micro_bundles: dict[str, Path], micro_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "GPU" in refusal("evaluate", gft, "--device", "cuda")
    bundle = ("evaluate", micro_bundles["onnx"], "--data", micro_data)
    for option, *value in (("--device", "cpu"), ("--workers", 1)):
        assert option in refusal(*bundle, option, *value)
    for option, *value in (("--threads", 1), ("--backend", "onnx")):
        assert option in refusal("evaluate", gft, option, *value)


def test_a_run_that_cannot_be_written_to_is_evaluated_all_the_same(gft: Path) -> None:
    (gft / "evaluation").touch()
    result = run("evaluate", gft)
    assert result.exit_code == 0
    assert f"the evaluation of {gft} is not kept" in result.stderr
