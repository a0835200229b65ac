"""The device side runs where the host side's packages are absent, on Python 3.10 too."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

HOST_ROOMS = {"calibration", "export", "model", "studies", "training"}
# A run is explained in PyTorch, a bundle in its engine: the first has this file to itself.
HOST_FILES = {"torch_subject.py"}
SOURCES = sorted(
    path
    for path in (ROOT / "gft_edge").rglob("*.py")
    if path.relative_to(ROOT / "gft_edge").parts[0] not in HOST_ROOMS
    and path.name not in HOST_FILES
)

HOST_PACKAGES = (
    "torch", "torchvision", "timm", "onnx", "onnx_ir", "onnxscript", "onnxsim",
    "safetensors",
)  # fmt: skip
LEARNING = ("sklearn", "scipy", "matplotlib", "jinja2", "tabulate")
VIDEO = ("av", "cv2")
ENGINES = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run_without(packages: tuple[str, ...], code: str, *arguments: str) -> str:
    """stdout of `code` in a fresh Python in which importing any of `packages` fails."""
    block = f"import sys; sys.modules.update(dict.fromkeys({packages!r}))\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block + code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_device_side_file_is_python_3_10(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))


def test_every_device_side_module_imports_with_the_base_install_alone() -> None:
    modules = [module_of(path) for path in SOURCES if path.name != "__main__.py"]
    assert {"gft_edge", "gft_edge.cli.predict_command", "gft_edge.runtime.backends.ov"} <= set(
        modules
    )
    code = "import importlib, sys\nfor name in sys.argv[1:]: print(importlib.import_module(name))"
    out = run_without(HOST_PACKAGES + LEARNING + ENGINES + VIDEO, code, *modules)
    assert len(out.splitlines()) == len(modules)


def test_importing_the_package_loads_no_engine() -> None:
    code = (
        "import gft_edge, gft_edge.cli, json\n"
        "assert [*gft_edge.cli.main.commands.values()]\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    loaded = set(json.loads(run_without((), code)))
    assert not loaded & {*HOST_PACKAGES, *LEARNING, *ENGINES, *VIDEO}


def test_what_a_device_lacks_is_named_with_its_extra() -> None:
    code = """
import gft_edge
for name in ("train", "export", "benchmark"):
    try:
        getattr(gft_edge, name)()
    except gft_edge.GftEdgeError as error:
        print(type(error).__name__, str(error).rpartition("[")[2])
print(gft_edge.Classifier.__name__, gft_edge.profile.__name__)
"""
    out = run_without(HOST_PACKAGES + LEARNING + ENGINES, code)
    missing = [f"MissingDependencyError {extra}]'" for extra in ("train", "export", "export")]
    assert out.splitlines() == [*missing, "Classifier profile"]


def test_gft_edge_help_loads_no_command_and_no_array() -> None:
    code = """
from gft_edge.cli import main
main(['--help'], standalone_mode=False)
assert not {'numpy', 'PIL', 'rich', 'gft_edge.bundle.specs'} & {*sys.modules}
assert not [name for name in sys.modules if name.endswith('_command')]
"""
    assert "Classify images" in run_without((), code)


def test_the_help_of_every_command_needs_the_base_install_alone() -> None:
    code = """
from click.testing import CliRunner
from gft_edge.cli import main
for name in main.commands:
    result = CliRunner().invoke(main, [name, "--help"], prog_name="gft-edge")
    print(name, result.exit_code, result.stdout.splitlines()[0])
"""
    lines = run_without(HOST_PACKAGES + LEARNING + ENGINES, code).splitlines()
    names = [line.split()[0] for line in lines]
    assert {"train", "evaluate", "export", "predict", "verify", "inspect"} <= set(names)
    for name, line in zip(names, lines, strict=True):
        assert line.startswith(f"{name} 0 Usage: gft-edge {name} ")


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        # Which of an extra's packages is met first is no promise.
        (["train", "--data", "d", "--out", "o"], r"\w+", "train"),
        (["export", "RUN", "--target", "onnx", "--out", "o"], r"\w+", "export"),
        (["evaluate", "RUN"], r"\w+", "train"),
        (["inspect", "gft_tiny"], r"\w+", "train"),
        (["inspect", "BUNDLE/model.onnx"], "onnx", "export"),
        (["predict", "BUNDLE", "x.png"], "ONNX Runtime", "onnx"),
        (["verify", "BUNDLE"], "ONNX Runtime", "onnx"),
        (["verify", "BUNDLE", "--backend", "openvino"], "OpenVINO", "openvino"),
        (["evaluate", "BUNDLE", "--data", "DATA"], "ONNX Runtime", "onnx"),
        (["verify", "BUNDLE", "--reference", "RUN", "--data", "DATA"], r"\w+", "export"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_is_missing_is_named_with_the_line_that_installs_it(
    arguments: list[str],
    package: str,
    extra: str,
    micro_bundles: dict[str, Path],
    micro_data: Path,
    micro_run: Path,
) -> None:
    places = {"BUNDLE": micro_bundles["onnx"], "DATA": micro_data, "RUN": micro_run}
    filled = arguments
    for name, place in places.items():
        filled = [argument.replace(name, str(place)) for argument in filled]
    code = (
        "from click.testing import CliRunner; from gft_edge.cli import main\n"
        "result = CliRunner().invoke(main, sys.argv[1:], prog_name='gft-edge')\n"
        "print(result.exit_code, result.stderr.strip())"
    )
    out = run_without(HOST_PACKAGES + LEARNING + ENGINES, code, *filled)
    expected = rf"2 Error: {package} is not installed here: pip install 'gft-edge\[{extra}\]'"
    assert re.fullmatch(expected, out.strip())


def test_doctor_says_how_to_install_an_engine_that_is_not_there() -> None:
    code = "from gft_edge.cli import main; main(['doctor', '--json'])"
    report = json.loads(run_without(ENGINES, code))
    assert report["engines"]["onnx"]["version"] is None
    assert "pip install 'gft-edge[onnx]'" in report["engines"]["onnx"]["missing"]
    assert "pip install 'gft-edge[openvino]'" in report["engines"]["openvino"]["missing"]
    assert "pip install 'gft-edge[tensorrt]'" in report["engines"]["tensorrt"]["missing"]


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_bundle_predicts_and_verifies_with_its_engine_alone(
    target: str, micro_bundles: dict[str, Path], micro_data: Path
) -> None:
    other = {"onnx": "openvino", "openvino": "onnxruntime"}[target]
    image = next((micro_data / "test" / "apple").iterdir())
    code = """
import json
from gft_edge import Classifier
from gft_edge.datasets import read_split
from gft_edge.fidelity.verify import verify
with Classifier.load(sys.argv[1]) as classifier:
    best = classifier.predict(sys.argv[2])[0]
    split = read_split(__import__("pathlib").Path(sys.argv[3]), "test", classifier.labels)
report = verify(__import__("pathlib").Path(sys.argv[1]), split=split)
print(json.dumps([best.label, best.probability, report.verdict, report.top1, report.images]))
"""
    blocked = (*HOST_PACKAGES, *LEARNING, other)
    arguments = (str(micro_bundles[target]), str(image), str(micro_data))
    label, probability, verdict, top1, images = json.loads(run_without(blocked, code, *arguments))
    assert label in ("apple", "brown bread", "café", "dill")
    assert 0.25 < probability <= 1
    assert (verdict, images) == ("pass", 12)
    assert 0 <= top1 <= 1


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_the_commands_of_the_device_side_run_with_its_engine_alone(
    target: str, micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    code = "from gft_edge.cli import main; main(sys.argv[1:], prog_name='gft-edge')"
    bundle, image = str(micro_bundles[target]), str(micro_data / "test" / "dill" / "0.png")
    blocked = HOST_PACKAGES + LEARNING
    predicted = json.loads(run_without(blocked, code, "predict", bundle, image, "--json"))
    assert predicted["path"] == image
    assert len(predicted["predictions"]) == 4
    inspected = json.loads(run_without(blocked, code, "inspect", bundle, "--json"))
    assert (inspected["kind"], inspected["target"]) == ("bundle", target)
    given = (bundle, "--reference", bundle, "--data", str(micro_data), "--pictures", str(tmp_path))
    compared = json.loads(run_without(blocked, code, "verify", *given, "--json"))
    assert (compared["images"], compared["max_abs"]) == (12, 0)
    assert Path(compared["picture"]).is_file()
