"""The golden pack checks an engine where there is no Python: check.sh, run on a stand-in for trtexec."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from gft_edge.bundle.manifest import EngineSettings
from gft_edge.bundle.specs import InputSpec
from gft_edge.bundle.store import read_bundle, sha256_of
from gft_edge.errors import BundleError
from gft_edge.export.request import ExportRequest
from gft_edge.fidelity.compare import NO_BOUND, compare
from gft_edge.runtime.golden import read_golden
from gft_edge.runtime.outputs import Outputs
from gft_edge.runtime.preprocess import batch_from_pixels
from tests.fidelity.trtexec import TOOLS, Device, shell
from tests.support.bundles import Change, alter_head
from tests.support.networks import export_run
from tests.support.refusals import refusal_of

# Eight images do not fill three batches of three.
INPUTS = {"single": InputSpec("uint8", 1), "padded": InputSpec("float32", 3)}

JETSON_TRTEXEC = Path("/usr/src/tensorrt/bin/trtexec")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stand-in keeps of its inferences."""
    return tmp_path_factory.mktemp("answers")


@pytest.fixture
def device(tmp_path: Path, answers: Path) -> Device:
    """A machine without trtexec yet."""
    tools, temporary = tmp_path / "tools", tmp_path / "temporary"
    tools.mkdir()
    temporary.mkdir()
    for name in TOOLS:
        (tools / name).symlink_to(shell(name))
    return Device(tools, temporary, answers)


@pytest.fixture(scope="module")
def bundles(
    tmp_path_factory: pytest.TempPathFactory, micro_run: Path, micro_data: Path, trt_bundle: Path
) -> dict[str, Path]:
    """The micro run exported for TensorRT with each of INPUTS. Copy one before altering it."""
    request = ExportRequest("tensorrt", input=INPUTS["padded"])
    padded = tmp_path_factory.mktemp("golden") / "padded"
    return {"single": trt_bundle, "padded": export_run(micro_run, micro_data, padded, request)}


@pytest.fixture
def bundle(tmp_path: Path, bundles: dict[str, Path]) -> Path:
    """A copy of the padded bundle, under a name with a space, to damage."""
    return Path(shutil.copytree(bundles["padded"], tmp_path / "my bundle"))


def wrong_engine(bundle: Path, path: Path, change: Change) -> Path:
    """The bundle's graph with other weights in the classifier."""
    shutil.copy(bundle / "model.onnx", path)
    alter_head(path, change)
    return path


@pytest.mark.parametrize("name", INPUTS)
def test_the_raw_files_hold_what_golden_npz_holds(name: str, bundles: dict[str, Path]) -> None:
    bundle, given = read_bundle(bundles[name]), INPUTS[name]
    pixels, expected = read_golden(bundle)
    golden = bundle.folder / "golden"
    inputs = batch_from_pixels(pixels, bundle.manifest.model.preprocessing, given.dtype)
    size = -(-len(pixels) // given.batch)
    batches = [
        np.fromfile(golden / f"images_{number}.bin", given.dtype).reshape(
            given.batch, *inputs.shape[1:]
        )
        for number in range(size)
    ]
    logits = [np.fromfile(golden / f"logits_{number}.bin", "<f4") for number in range(size)]
    flat = np.concatenate(batches)
    assert np.array_equal(flat[: len(pixels)], inputs)
    assert all(np.array_equal(image, inputs[-1]) for image in flat[len(pixels) :])
    assert np.array_equal(np.concatenate(logits), expected.logits.ravel())
    assert {path.name for path in golden.iterdir()} == {
        "check.sh", "golden.npz",
        *(f"{kind}_{number}.bin" for kind in ("images", "logits") for number in range(size)),
    }  # fmt: skip


def test_every_file_of_the_pack_is_in_the_manifest(bundle: Path) -> None:
    listed = read_bundle(bundle).manifest.files
    written = {f"golden/{path.name}" for path in (bundle / "golden").iterdir()}
    assert written < set(listed)
    assert len(written) == 8
    script = (bundle / "golden" / "check.sh").read_text()
    (bundle / "golden" / "check.sh").write_text("exit 0\n")
    refusal_of(BundleError, lambda: read_bundle(bundle), "golden/check.sh")
    assert not re.search(r"@[A-Z]+@", script), "nothing of the template is left"


def assert_lines_that_the_script_names(
    printed: str, major: int, bundle: Path, device: Device
) -> None:
    """What is run is what the comments of check.sh tell to run by hand."""
    script = (bundle / "golden" / "check.sh").read_text()
    named = script.split(f"\n# TensorRT {major}.x")[1].split("\n#\n")[0]
    build, load, *_ = [line.lstrip("# ") for line in named.splitlines() if "--" in line]
    work = rf"{device.temporary}/gft-edge-check\.\w+/"
    lines = [line.removeprefix("+ ") for line in printed.splitlines() if line.startswith("+ ")]
    run = [
        re.sub(work, "", line).replace(str(device.tools / "trtexec"), "trtexec") for line in lines
    ]
    batches = len(list((bundle / "golden").glob("images_*.bin")))
    loads = [load.replace("_N.", f"_{number}.") for number in range(batches)]
    assert run == ["trtexec --help", build, *loads]


@pytest.mark.parametrize("major", [10, 11])
@pytest.mark.parametrize("name", ["padded", pytest.param("single", marks=pytest.mark.slow)])
def test_an_engine_of_the_bundle_s_graph_passes(
    name: str, major: int, bundles: dict[str, Path], device: Device
) -> None:
    device.trtexec(major)
    done = device.check(bundles[name])
    assert (done.returncode, done.stderr) == (0, "")
    assert_lines_that_the_script_names(done.stdout, major, bundles[name], device)
    lines = done.stdout.splitlines()
    assert lines[-2].startswith(
        "PASS: 8 images, top-1 agreement 1.0000 (at least 1), logit cosine 1.000000 (at least 0.9999)"
    )
    assert "patches were kept is not checked here: gft-edge verify" in lines[-1]
    _, expected = read_golden(read_bundle(bundles[name]))
    images = [line for line in lines if line.startswith("image ")]
    assert [tuple(map(int, re.findall(r"\d+", line)[:3])) for line in images] == [
        (number, best, best) for number, best in enumerate(expected.logits.argmax(axis=1), start=1)
    ]


@pytest.mark.slow  # an export of its own
@pytest.mark.parametrize("major", [10, 11])
def test_version_compatible_engines_are_built_and_loaded_as_such(
    major: int, tmp_path: Path, micro_run: Path, micro_data: Path, device: Device
) -> None:
    request = ExportRequest("tensorrt", engine_settings=EngineSettings(version_compatible=True))
    bundle = export_run(micro_run, micro_data, tmp_path / "bundle", request)
    device.trtexec(major)
    done = device.check(bundle)
    assert done.returncode == 0, done.stderr
    (help_line, *lines) = [line for line in done.stdout.splitlines() if line.startswith("+ ")]
    assert help_line.endswith("--help")
    assert len(lines) == 9
    assert all(line.endswith(" --versionCompatible") for line in lines)


def test_a_given_engine_is_checked_and_none_is_built(bundle: Path, device: Device) -> None:
    device.trtexec(fault="build")
    engine = wrong_engine(bundle, device.tools / "my engine.plan", lambda weights: weights)
    # The graph is not needed where the engine is. A relative path starts where the user stands.
    (bundle / "model.onnx").unlink()
    done = device.check(bundle, engine.name)
    assert done.returncode == 0
    assert f"--loadEngine={engine}" in done.stdout
    assert "--onnx" not in done.stdout


def test_an_engine_of_other_weights_fails(bundle: Path, device: Device) -> None:
    device.trtexec()
    engine = wrong_engine(bundle, device.tools / "engine", lambda weights: weights[::-1])
    done = device.check(bundle, engine)
    assert done.returncode == 1
    assert "<- another class" in done.stdout
    assert re.search(
        r"^FAIL: top-1 agreement 0\.\d{4} is under 1; logit cosine -?0\.\d{6} is under 0\.9999$",
        done.stdout,
        flags=re.MULTILINE,
    )
    assert "PASS" not in done.stdout


def test_the_figures_are_those_of_verify(bundle: Path, device: Device) -> None:
    device.trtexec()
    noise = np.random.default_rng(0).normal(0, 0.02, (4, 48))
    engine = wrong_engine(bundle, device.tools / "engine", lambda weights: weights + noise)
    opened = read_bundle(bundle)
    pixels, expected = read_golden(opened)
    session = onnxruntime.InferenceSession(engine)
    padded = np.concatenate([pixels, pixels[-1:]])
    given = batch_from_pixels(padded, opened.manifest.model.preprocessing, "float32")
    answers = [session.run(["logits"], {"images": batch})[0] for batch in np.split(given, 3)]
    logits = np.concatenate(answers)[:8]
    report = compare("", Outputs(expected.logits, ()), Outputs(logits, ()), NO_BOUND)
    done = device.check(bundle, engine)
    assert 0 < report.top1_agreement < 1
    agreement, cosine = re.findall(r"(?:agreement|cosine) (\S+) is under", done.stdout)
    assert float(agreement) == report.top1_agreement
    assert float(cosine) == pytest.approx(report.cosine, abs=2e-6)
    worst = max(float(value) for value in re.findall(r"max abs (\S+)", done.stdout))
    assert worst == pytest.approx(report.max_abs, rel=0.05)


def test_an_engine_that_gives_no_numbers_or_takes_another_batch_fails(
    bundle: Path, bundles: dict[str, Path], device: Device
) -> None:
    device.trtexec()
    engine = wrong_engine(bundle, device.tools / "engine", lambda weights: weights * np.nan)
    done = device.check(bundle, engine)
    assert done.returncode == 1
    assert "FAIL: the logits hold NaN or infinity" in done.stdout
    done = device.check(bundle, bundles["single"] / "model.onnx")
    assert done.returncode == 1
    assert "Unexpected file size for input file: images_0.bin" in done.stderr


def test_a_script_that_is_started_otherwise_finds_its_files(
    bundle: Path, device: Device, tmp_path: Path
) -> None:
    device.trtexec()
    script = bundle / "golden" / "check.sh"
    (device.tools / "sh").symlink_to(shell("sh"))
    (tmp_path / "link").symlink_to(script)
    assert device.run(script, cwd=bundle / "golden").returncode == 0
    assert device.run(shell("sh"), "check.sh", cwd=bundle / "golden").returncode == 0
    assert device.run(shell("sh"), "golden/check.sh", cwd=bundle).returncode == 0
    assert device.run(tmp_path / "link", cwd=tmp_path).returncode == 0


def test_a_bundle_is_only_read_and_the_folder_to_write_is_named(
    bundle: Path, device: Device
) -> None:
    device.trtexec(11)
    before = {path: path.stat().st_mtime_ns for path in [bundle, *bundle.rglob("*")]}
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert device.check(bundle).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in [bundle, *bundle.rglob("*")]} == before
    done = device.run(shell("sh"), bundle / "golden" / "check.sh", TMPDIR="/nowhere")
    assert done.returncode == 1
    assert "no temporary folder in /nowhere: set TMPDIR" in done.stderr


def test_truncated_and_missing_files_are_named(bundle: Path, device: Device) -> None:
    device.trtexec()
    golden, graph = bundle / "golden", bundle / "model.onnx"
    for path, shown in (
        (golden / "images_1.bin", "images_1.bin"),
        (golden / "logits_2.bin", "logits_2.bin"),
        (graph, "../model.onnx"),
    ):
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        done = device.check(bundle)
        assert done.returncode == 1
        assert done.stderr == (
            f"check.sh: not as exported (sha256 differs): {shown}; copy the bundle again\n"
        )
        path.write_bytes(content)
    (golden / "images_0.bin").unlink()
    (golden / "logits_1.bin").unlink()
    assert "differs): images_0.bin, logits_1.bin; copy" in device.check(bundle).stderr


def test_without_trtexec_it_says_where_it_looked_and_how_to_get_it(
    bundle: Path, device: Device
) -> None:
    if JETSON_TRTEXEC.exists():
        pytest.skip(f"{JETSON_TRTEXEC} is on this machine")
    done = device.check(bundle)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "check.sh: no trtexec on PATH and none at /usr/src/tensorrt/bin/trtexec: it comes with "
        "TensorRT (on Jetson: sudo apt install tensorrt, or libnvinfer-bin); if it lies elsewhere: "
        "export PATH=FOLDER:$PATH\n"
    )


def test_trtexec_may_be_named_and_is_tensorrt_10_or_newer(bundle: Path, device: Device) -> None:
    script = bundle / "golden" / "check.sh"
    trtexec = device.trtexec(name="my-trtexec")
    for name in (str(trtexec), "./my-trtexec", "my-trtexec"):
        assert device.run(shell("sh"), script, TRTEXEC=name).returncode == 0
    trtexec.chmod(0o644)
    for name in (str(trtexec), "/nowhere/trtexec", "nowhere", str(device.tools)):
        done = device.run(shell("sh"), script, TRTEXEC=name)
        assert done.returncode == 2
        assert f"TRTEXEC is {name}, which is no program" in done.stderr
    device.trtexec(major=8)
    done = device.check(bundle)
    assert done.returncode == 2
    assert "trtexec is older than TensorRT 10: take 10.3 or newer" in done.stderr


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        ("build", "[E] Failed to parse onnx file\ncheck.sh: trtexec failed with exit code 1;"),
        ("run", "line 18\nline 19\ncheck.sh: trtexec failed with exit code 139;"),
        ("no engine", "check.sh: trtexec wrote no engine: is there room in "),
        ("no outputs", "check.sh: trtexec wrote no outputs: is there room in "),
        ("no logits", "gives 0 logits for 3 images of 4 classes: build it from the graph of this"),
        ("short", "gives 11 logits for 3 images of 4 classes: build it from the graph of this"),
    ],
)
def test_a_failing_trtexec_is_reported(
    fault: str, shown: str, bundle: Path, device: Device
) -> None:
    device.trtexec(fault=fault)
    done = device.check(bundle)
    assert done.returncode == 1
    assert shown in done.stderr
    assert "long before the end" not in done.stderr
    assert "PASS" not in done.stdout


def test_outputs_are_read_wherever_their_lines_break(bundle: Path, device: Device) -> None:
    for layout in ("one line", "many lines"):
        device.trtexec(fault=layout)
        assert device.check(bundle).returncode == 0


def test_wrong_use_is_told_apart_and_help_needs_no_trtexec(bundle: Path, device: Device) -> None:
    done = device.check(bundle, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: golden/check.sh [ENGINE]\n")
    device.trtexec()
    for arguments, message in (
        (["nowhere.engine"], "no such engine: nowhere.engine; without an argument one is built"),
        ([""], "no such engine: ; without an argument one is built"),
        (["a", "b"], "2 arguments: give one engine, or none"),
        (["--fast"], "no such option: --fast"),
    ):
        done = device.check(bundle, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.endswith(f"check.sh: {message}\n")


@pytest.mark.parametrize("name", ["dash", "bash", "ksh", "busybox"])
def test_every_shell_reads_the_script(name: str, bundle: Path, device: Device) -> None:
    device.trtexec()
    command = [shell(name), "sh"] if name == "busybox" else [shell(name)]
    script = bundle / "golden" / "check.sh"
    assert device.run(*command, "-n", script).returncode == 0
    done = device.run(*command, script)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["mawk", "gawk", "original-awk", "busybox"])
def test_every_awk_reads_the_outputs(name: str, bundle: Path, device: Device) -> None:
    device.trtexec()
    replaced = TOOLS if name == "busybox" else ("awk",)
    for tool in replaced:
        (device.tools / tool).unlink()
        applet = tool if name == "busybox" else ""
        (device.tools / tool).write_text(f'#!{shell("sh")}\nexec {shell(name)} {applet} "$@"\n')
        (device.tools / tool).chmod(0o755)
    assert device.check(bundle).returncode == 0
    engine = wrong_engine(bundle, device.tools / "engine", lambda weights: weights[::-1])
    assert device.check(bundle, engine).returncode == 1
    (bundle / "golden" / "images_1.bin").write_bytes(b"")
    assert "differs): images_1.bin; copy" in device.check(bundle).stderr


def test_logits_of_many_classes_and_ties_are_compared(bundle: Path, device: Device) -> None:
    """Six printed digits can make two classes equal: the first of them is no other decision."""
    generator = np.random.default_rng(0)
    scale = 10.0 ** generator.integers(-9, 9, (3, 1))
    logits = (generator.normal(0, 1, (3, 1000)) * scale).astype(np.float32)
    best = np.maximum(logits.argmax(axis=1), 1)
    # The class before the best is less by one part in ten million.
    logits[range(3), best] = 2 * np.abs(logits).max(axis=1)
    logits[range(3), best - 1] = np.nextafter(logits[range(3), best], np.float32(0))
    golden = bundle / "golden"
    for number in range(3):
        (golden / f"images_{number}.bin").unlink()
        (golden / f"logits_{number}.bin").unlink()
    logits.tofile(golden / "logits_0.bin")
    (golden / "images_0.bin").write_bytes(bytes(3))
    script = (golden / "check.sh").read_text()
    sums = "\n".join(f"{sha256_of(golden / n)}  {n}" for n in ("images_0.bin", "logits_0.bin"))
    script = re.sub(r"\nsums='[^']*'", f"\nsums='{sums}'", script)
    script = script.replace("\nimages=8\n", "\nimages=3\n").replace(
        "\nclasses=4\n", "\nclasses=1000\n"
    )
    (golden / "check.sh").write_text(script)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node(
                "Constant", [], ["logits"], value=onnx.numpy_helper.from_array(logits)
            )
        ],
        "constant",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, [3])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [3, 1000])],
    )
    model = onnx.helper.make_model(
        graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)]
    )
    onnx.save(model, device.tools / "engine")
    device.trtexec()
    done = device.check(bundle, device.tools / "engine")
    assert (done.returncode, done.stderr) == (0, "")
    assert "PASS: 3 images, top-1 agreement 1.0000" in done.stdout
