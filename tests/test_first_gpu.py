"""The script for the first minutes on an NVIDIA GPU, as far as a machine without one goes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import first_gpu
import first_gpu_torch
from first_gpu_install import bounded, installations
from first_gpu_steps import Step, steps
from first_gpu_table import markdown, profile_rows
from gft_edge.bundle.json_form import to_json
from tests.support.paths import ROOT
from tests.support.profiles import boundaries_of, breakdown, profile_of, report_of, turns_of

SCRIPT = ROOT / "benchmarks" / "first_gpu.sh"
BUNDLES = [
    f"{network}-{precision}"
    for network in ("deit_base_patch16_224", "deit_tiny_patch16_224", "gft_base_edge", "gft_tiny_edge")
    for precision in ("fp16", "fp32", "int8")
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A carried folder without wheels or bundles, whose tests and benchmarks are the tree's."""
    (tmp_path / "source").symlink_to(ROOT)
    (tmp_path / "content.json").write_text(json.dumps({"left_out": ["wheels of PyTorch"]}))
    return tmp_path


@pytest.fixture
def run_of(folder: Path) -> Callable[..., first_gpu.Run]:
    """Makes a run in that folder, whose Python is the tests' own."""

    def make(seconds: float = 60, rehearse: bool = False) -> first_gpu.Run:
        place = folder / "work" / "venv" / "bin"
        place.mkdir(parents=True, exist_ok=True)
        (place / "python").unlink(missing_ok=True)
        # A link to the file would find the libraries of another Python.
        (place / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (place / "python").chmod(0o755)
        out = folder / "results"
        out.mkdir(exist_ok=True)
        return first_gpu.Run(folder, out, seconds, rehearse)

    return make


def results(folder: Path) -> dict[str, Any]:
    """What lies in the results, of which the Markdown has to name every step."""
    found: dict[str, Any] = json.loads((folder / "results" / "first_gpu.json").read_text())
    text = (folder / "results" / "first_gpu.md").read_text()
    assert all(step["name"] in text for step in found["steps"])
    return found


def step(
    name: str, code: str, budget_s: float = 30, reads: str = "text", needs: str = "nothing"
) -> Any:
    return Step(name, budget_s, ("-c", code), needs, reads)  # type: ignore[arg-type]


def test_the_shell_parses_and_refuses_what_it_is_not_asked() -> None:
    subprocess.run(["sh", "-n", SCRIPT], check=True)
    refused = subprocess.run([SCRIPT, "deploy"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "prepare|run" in refused.stderr


def test_a_folder_that_was_not_prepared_is_refused(tmp_path: Path) -> None:
    refused = subprocess.run(
        [SCRIPT, "run", tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert refused.returncode == 2
    assert str(tmp_path) in refused.stderr


def test_steps_go_from_cheap_to_dear_and_an_engine_is_built_before_it_is_used() -> None:
    names = [one.name for one in steps(BUNDLES)]
    assert len(set(names)) == len(names)
    first = ["doctor", "tests of CUDA", "build gft_tiny_edge-fp16"]
    assert names[:3] == first
    assert names[-1] == "PyTorch"
    for bundle in BUNDLES:
        uses = [number for number, name in enumerate(names) if bundle in name.split()]
        assert names[uses[0]] == f"build {bundle}"
        assert f"verify {bundle}" in names
    order = [name for name in names if name.startswith("profile")]
    assert [re.findall("tiny|base", name)[0] for name in order] == 3 * ["tiny"] + 3 * ["base"]
    assert [re.findall("fp16|int8|fp32", name)[0] for name in order] == 2 * ["fp16", "int8", "fp32"]
    assert all(len(name.split()) == 3 for name in order)


def test_the_gpu_tests_that_the_steps_name_are_there(folder: Path) -> None:
    words = [one.words for one in steps(BUNDLES) if one.reads == "tests"]
    named = [word for line in words for word in line if word.startswith("tests/")]
    for word in named:
        file, _, test = word.partition("::")
        assert f"def {test}" in (ROOT / file).read_text()


REFUSES = "import sys; sys.stderr.write('Error: no library knows 9.0'); sys.exit({code})"
ROW = (
    '{"row": "latency", "network": "a", "precision": "fp16", "how": "eager", "batch": 1, '
    '"median_ms": 2.0, "dense_by_this": 1.5}'
)


def test_without_tensorrt_its_steps_are_named_and_pytorch_is_next(
    run_of: Callable[..., first_gpu.Run], folder: Path
) -> None:
    run = run_of()
    run.do(step("build one", REFUSES.format(code=1), reads="build", needs="builder"))
    run.do(step("build two", REFUSES.format(code=2), reads="build", needs="builder"))
    run.do(step("build three", "print('{}')", reads="build", needs="builder"))
    run.do(step("profile", "print('{}')", reads="profile", needs="engines"))
    run.do(step("PyTorch", f"print({ROW!r})", reads="rows"))
    found = results(folder)
    assert [one["outcome"] for one in found["steps"]] == [
        "exit code 1",
        "exit code 2",
        "not run",
        "not run",
        "done",
    ]
    assert found["notes"] == ["TensorRT was not run: no library knows 9.0"]
    assert [row["median_ms"] for row in found["latencies"]] == [2.0]
    table = (folder / "results" / "first_gpu.md").read_text()
    assert "| a | fp16 | eager | 1 | 2.000 | 500 | 1.50 |" in table
    assert "left out of what was carried: wheels of PyTorch" in table


def test_a_step_ends_with_its_budget_and_nothing_starts_once_the_time_is_up(
    run_of: Callable[..., first_gpu.Run], folder: Path
) -> None:
    run = run_of(seconds=20)
    started = time.monotonic()
    run.do(step("slow", "import time; time.sleep(60)", budget_s=1))
    run.end = time.monotonic()
    run.do(step("late", "print(1)"))
    assert time.monotonic() - started < 15
    assert [one["outcome"] for one in results(folder)["steps"]] == [
        "stopped, its time was up",
        "not run",
    ]


WHOLE_RUN = """
import sys
sys.path.insert(0, sys.argv[1])
import first_gpu
from first_gpu_steps import Step
row = sys.argv[3]
first_gpu.install = lambda run, index: None
first_gpu.steps = lambda bundles, on_gpu: [
    Step("first", 30, ("-c", "print('the first one')")),
    Step("second", 30, ("-c", f"import time; print({row!r}, flush=True); time.sleep(300)"),
         reads="rows"),
    Step("third", 30, ("-c", "")),
]
sys.argv[1:] = [sys.argv[2], "--rehearse"]
first_gpu.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_kill_in_the_middle_leaves_the_table_so_far(
    number: int, run_of: Callable[..., first_gpu.Run], folder: Path
) -> None:
    run_of()  # its Python
    file = folder / "results" / "first_gpu.json"
    running = subprocess.Popen(
        [sys.executable, "-c", WHOLE_RUN, ROOT / "benchmarks", folder, ROW], start_new_session=True
    )
    end = time.monotonic() + 60
    while not file.exists() or not results(folder)["latencies"]:
        assert time.monotonic() < end
        time.sleep(0.1)
    running.send_signal(number)
    assert running.wait(20) in (-number, 128 + number)
    found = results(folder)
    assert found["steps"][0]["said"] == "the first one"
    assert found["latencies"][0]["network"] == "a"
    if number == signal.SIGTERM:
        assert [one["outcome"] for one in found["steps"]] == ["done", "stopped by SIGTERM"]
    else:
        assert found["running"] == "second"


def test_a_profile_becomes_rows_and_its_layers_name_kernels() -> None:
    dense, edge = turns_of(2.0), turns_of(1.0)
    reports = (
        report_of("dense", boundaries_of(dense)),
        report_of("edge", boundaries_of(edge, dense), layers=breakdown()),
    )
    latencies, kernels = profile_rows(to_json(profile_of(*reports)))
    assert [row["dense_by_this"] for row in latencies] == pytest.approx([1, 2], rel=0.05)
    assert [row["median_ms"] for row in latencies] == pytest.approx([2, 1], rel=0.05)
    top = breakdown().top
    assert [row["kernel"] for row in kernels] == [layer.kernel or layer.name for layer in top]
    data = {
        "machine": {"gpu": None, "python": "3.12"}, "started": "", "seconds": 1.0, "notes": [],
        "latencies": latencies, "kernels": kernels, "steps": [], "left_out": [],
    }  # fmt: skip
    assert markdown(data).count("TensorRT, engine | 1 |") == 2
    assert f"| TensorRT | {kernels[0]['kernel']} |" in markdown(data)


def test_pip_is_asked_for_no_more_than_the_folder_has(tmp_path: Path) -> None:
    import zipfile

    ours = tmp_path / "gft_edge-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(ours, "w") as content:
        stated = "Requires-Dist: timm<2,>=1.0.27; extra == 'train'\nRequires-Dist: onnx-ir>=1; extra == 'a'"
        content.writestr("gft_edge-0.1.0.dist-info/METADATA", f"Name: gft-edge\n{stated}\n")
    (tmp_path / "pip-26.3-py3-none-any.whl").touch()
    assert list(installations("python", tmp_path, index=False)) == ["the base", "gft-edge"]
    (tmp_path / "timm-1.0.31-py3-none-any.whl").touch()
    commands = installations("python", tmp_path, index=False)
    assert commands["timm"][-1] == "timm<2,>=1.0.27"
    assert all("--no-index" in words for words in commands.values())
    assert bounded(ours, "onnx") == []


@pytest.mark.slow
def test_pytorch_prints_a_row_a_network_and_says_what_fails(
    capfd: pytest.CaptureFixture[str],
) -> None:
    script = ROOT / "benchmarks" / "first_gpu_torch.py"
    given = "--device cpu --sizes tiny --batches 1 --precisions fp32 --only latency,training"
    subprocess.run([sys.executable, script, *given.split()], check=True)
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    networks = ["deit_tiny_patch16_224", "gft_tiny_edge"]
    assert [row["network"] for row in rows] == 2 * networks
    assert [row["how"] for row in rows] == [
        *2 * ["PyTorch eager on a CPU"],
        *2 * ["PyTorch training step on a CPU"],
    ]
    assert rows[0]["dense_by_this"] == rows[2]["dense_by_this"] == 1

    def refuse() -> None:
        raise RuntimeError("out of memory\nand more")

    machine = first_gpu_torch.Machine(torch.device("cpu"), time.monotonic() + 10)
    assert first_gpu_torch.in_turn(machine, {"a": refuse}, "fp32", "eager", 64) == []
    assert "failed: eager, fp32, batch 64: out of memory" in capfd.readouterr().err
