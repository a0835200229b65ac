"""OpenVINO's devices: which names mean what, in which precision each computes, and when it is trusted."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest

from gft_edge.bundle.store import read_bundle
from gft_edge.errors import UsageError
from gft_edge.runtime import device_verdicts
from gft_edge.runtime.classifier import Classifier
from gft_edge.runtime.golden import read_golden
from gft_edge.runtime.openvino_devices import placement
from tests.support.bundles import session_of
from tests.support.cli import refusal, run, run_json
from tests.support.openvino_devices import Devices


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Devices:
    """A machine with two GPUs and an NPU beside the CPU, on which nothing was verified yet."""
    found = Devices()
    monkeypatch.setattr(openvino, "Core", found.core)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return found


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged of a device that is not trusted, whatever other tests' libraries did to logging."""
    said: list[str] = []
    log = logging.getLogger(device_verdicts.__name__)
    monkeypatch.setattr(log, "warning", lambda text, *values: said.append(text % values))
    return said


@pytest.fixture
def bundle(micro_bundles: dict[str, Path]) -> Path:
    return micro_bundles["openvino"]


def photograph(data: Path) -> Path:
    return next(iter(sorted((data / "test").rglob("*.png"))))


def hints(properties: dict[str, Any]) -> dict[str, str]:
    """The precision that each processor is told to compute in; "" is the only one."""
    own = properties.get("DEVICE_PROPERTIES", {"": properties})
    return {name: each["INFERENCE_PRECISION_HINT"] for name, each in own.items()}


def held(operation: Any) -> bool:
    """Whether OpenVINO has read the mark that an operation stays in f32."""
    return any(name.startswith("Disable") for name in operation.get_rt_info())


# Names.


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("CPU", ["CPU"]),
        ("GPU", ["GPU.0"]),
        ("GPU.1", ["GPU.1"]),
        ("NPU", ["NPU"]),
        ("AUTO", ["CPU", "GPU.0", "GPU.1"]),
        ("AUTO:GPU,CPU", ["GPU.0", "GPU.1", "CPU"]),
        ("AUTO:NPU,CPU", ["NPU", "CPU"]),
        ("AUTO:-GPU", ["CPU"]),
        ("MULTI:GPU,CPU", ["GPU.0", "GPU.1", "CPU"]),
        ("AUTO:GPU.1,CPU", ["GPU.1", "CPU"]),
        ("AUTO:-NPU", ["CPU", "GPU.0", "GPU.1"]),
        ("AUTO:GPU.7,CPU", ["CPU"]),
        ("HETERO:GPU,CPU", ["GPU.0", "CPU"]),
        ("MULTI:GPU.0,GPU.1", ["GPU.0", "GPU.1"]),
    ],
)
def test_a_name_means_the_processors_that_openvino_would_take(
    devices: Devices, given: str, names: list[str]
) -> None:
    found = placement(devices.core(), given)
    assert [each.name for each in found.processors] == names
    assert found.device == given


def test_the_only_gpu_answers_to_its_number_as_well(devices: Devices) -> None:
    devices.here = {"GPU": ("FP16",)}
    for given in ("GPU", "GPU.0"):
        assert [each.name for each in placement(devices.core(), given).processors] == ["GPU"]
    with pytest.raises(UsageError, match=r"finds no GPU\.1 .*finds CPU, GPU"):
        placement(devices.core(), "GPU.1")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("XPU", "'XPU'"),
        ("", "''"),
        ("gpu", "'gpu'"),
        ("CPU.0", "'CPU.0'"),
        ("GPU.x", "'GPU.x'"),
        ("CPU:GPU", "'CPU:GPU'"),
        ("HETERO:GPU,", "''"),
        ("HETERO:AUTO", "'AUTO'"),
        ("AUTO:-XPU", "'XPU'"),
        ("cuda", "PyTorch's"),
        ("HETERO", "write HETERO:GPU,CPU"),
        ("HETERO:GPU.7,CPU", "no GPU.7"),
        ("AUTO:GPU.7", "no GPU.7"),
        ("AUTO:-CPU,-GPU", "leaves no device"),
    ],
)
def test_a_name_that_means_no_processor_is_refused_in_one_line(
    devices: Devices, given: str, named: str
) -> None:
    with pytest.raises(UsageError) as error:
        placement(devices.core(), given)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["GPU", "NPU", "HETERO:NPU,CPU"])
def test_a_device_that_is_not_here_is_one_line_with_its_driver(bundle: Path, name: str) -> None:
    line = refusal("verify", bundle, "--device", name)
    assert "driver (https://" in line
    assert "finds CPU" in line


# What they compute in.


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("CPU", {"": "f32"}),
        ("GPU.1", {"": "f16"}),
        ("NPU", {"": "f16"}),
        ("HETERO:NPU,CPU", {"NPU": "f16", "CPU": "f32"}),
        ("AUTO", {"CPU": "f32", "GPU": "f16"}),
    ],
)
def test_gpu_and_npu_compute_in_f16_and_the_cpu_beside_them_in_f32(
    devices: Devices, bundle: Path, name: str, told: dict[str, str]
) -> None:
    session = session_of(bundle, device=name)
    ((device, properties),) = devices.compiled
    assert device == name
    assert hints(properties) == told
    assert bool(session.half_on) == (name != "CPU")


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_what_ranks_patches_stays_in_f32_where_the_rest_is_computed_in_f16(
    devices: Devices, micro_bundles: dict[str, Path], target: str
) -> None:
    session_of(micro_bundles[target], backend="openvino", device="GPU")
    session_of(micro_bundles[target], backend="openvino")
    half, whole = ({op.get_type_name(): op for op in model.get_ops()} for model in devices.models)
    for kind in ("TopK", "MVN"):
        assert held(half[kind])
        assert not held(whole[kind])
    assert not held(half["MatMul"])


def test_threads_are_the_cpus(devices: Devices, bundle: Path) -> None:
    session_of(bundle, device="HETERO:GPU,CPU", threads=1)
    ((_, properties),) = devices.compiled
    own = properties["DEVICE_PROPERTIES"]
    assert own["CPU"]["INFERENCE_NUM_THREADS"] == 1
    assert "INFERENCE_NUM_THREADS" not in own["GPU"]
    with pytest.raises(UsageError, match=r"threads are a CPU's: .*GPU"):
        session_of(bundle, device="GPU", threads=1)


@pytest.mark.parametrize("name", ["AUTO", "HETERO:CPU", "MULTI:CPU"])
def test_what_combines_devices_gives_the_cpus_logits_and_says_where_it_ran(
    bundle: Path, name: str
) -> None:
    pixels, _ = read_golden(read_bundle(bundle))
    with Classifier.load(bundle, kept=True) as alone:
        expected = alone.outputs(pixels)
    with Classifier.load(bundle, kept=True, device=name) as combined:
        found = combined.outputs(pixels)
        flags = combined.session.flags()
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
    for ours, theirs in zip(found.kept, expected.kept, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert "DEVICE=CPU" in flags
    assert "INFERENCE_PRECISION_HINT=float32" in flags


# Trust.


def test_a_device_in_f16_is_trusted_once_its_verdict_is_remembered(
    devices: Devices, bundle: Path, micro_data: Path, warned: list[str]
) -> None:
    Classifier.load(bundle, device="GPU").close()
    assert "was not verified" in "\n".join(warned)
    warned.clear()
    assert run_json("verify", bundle, "--device", "GPU")["verdict"] == "pass"
    Classifier.load(bundle, device="GPU").close()
    assert warned == []
    # Another processor is another verdict.
    Classifier.load(bundle, device="GPU.1").close()
    assert "was not verified" in "\n".join(warned)


def test_what_was_verified_with_the_cpu_beside_it_says_nothing_of_the_gpu_alone(
    devices: Devices, bundle: Path, warned: list[str]
) -> None:
    for name in ("HETERO:CPU,GPU", "AUTO:GPU,CPU"):
        assert run_json("verify", bundle, "--device", name)["verdict"] == "pass"
    Classifier.load(bundle, device="GPU").close()
    assert "was not verified" in "\n".join(warned)


def test_golden_outputs_that_pass_take_back_no_photographs_that_failed(
    devices: Devices, bundle: Path, micro_data: Path, warned: list[str]
) -> None:
    devices.wrong = ("GPU",)
    given = ("--device", "GPU", "--data", micro_data, "--reference", bundle)
    assert run_json("verify", bundle, *given, exit_code=1)["verdict"] == "fail"
    devices.wrong = ()
    assert run_json("verify", bundle, "--device", "GPU")["verdict"] == "pass"
    Classifier.load(bundle, device="GPU").close()
    assert "against the reference" in "\n".join(warned)
    warned.clear()
    assert run_json("verify", bundle, *given)["verdict"] == "pass"
    Classifier.load(bundle, device="GPU").close()
    assert warned == []


@pytest.mark.slow
@pytest.mark.parametrize("command", ["predict", "explain", "profile", "evaluate"])
def test_a_command_verifies_first_and_warns_of_a_device_that_misses_the_bounds(
    devices: Devices,
    bundle: Path,
    micro_data: Path,
    tmp_path: Path,
    warned: list[str],
    command: str,
) -> None:
    devices.wrong = ("GPU.1",)
    more: dict[str, list[object]] = {
        "predict": [photograph(micro_data)],
        "explain": [photograph(micro_data), "--out", tmp_path / "looks"],
        "profile": ["--duration", 0.1, "--min-samples", 3, "--warmup-ms", 1],
        "evaluate": ["--data", micro_data],
    }
    # The process that profile measures in has no stand-in.
    if command == "profile":
        assert "finds no GPU.1" in refusal(command, bundle, *more[command], "--device", "GPU.1")
    else:
        assert run(command, bundle, *more[command], "--device", "GPU.1").exit_code == 0
        assert "GPU.1: golden outputs: top-1 agreement" in "\n".join(warned)
    assert not any(device == "CPU" for device, _ in devices.compiled)
    verified = len(devices.compiled)
    run(command, bundle, *more[command], "--device", "GPU.1")
    assert len(devices.compiled) - verified < verified


def test_the_bounds_of_an_fp32_bundle_are_those_of_fp16_where_it_is_computed_in_f16(
    devices: Devices, bundle: Path
) -> None:
    cpu, npu = (
        run_json("verify", bundle, "--device", name)["golden"]["tolerance"]
        for name in ("CPU", "NPU")
    )
    assert (cpu["top1_agreement"], npu["top1_agreement"]) == (1.0, 0.99)


# The cache, and refusals of the device.


@pytest.mark.slow
def test_what_was_compiled_for_one_device_is_not_loaded_on_another(
    devices: Devices, bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "blobs"
    for name in ("GPU.0", "GPU.1", "CPU"):
        Classifier.load(bundle, device=name, cache_dir=folder).close()
    assert [device for device, _ in devices.compiled] == ["GPU.0", "GPU.1", "CPU"]
    assert len(list(folder.iterdir())) == 3
    Classifier.load(bundle, device="GPU.1", cache_dir=folder).close()
    assert devices.imported == ["GPU.1"]
    # The same name is another processor after a change of the machine.
    devices.here["GPU.1"] = ("FP16", "INT8")
    Classifier.load(bundle, device="GPU.1", cache_dir=folder).close()
    assert len(devices.compiled) == 4


def test_a_graph_that_a_device_refuses_is_its_own_message_and_the_remedy(
    devices: Devices, bundle: Path, micro_data: Path
) -> None:
    devices.refuses["NPU"] = "[NPU] Unsupported operation: TopK"
    result = run("verify", bundle, "--device", "NPU")
    assert result.exit_code == 1
    assert "[NPU] Unsupported operation: TopK: --device HETERO:NPU,CPU" in result.stderr
    line = refusal("predict", bundle, photograph(micro_data), "--device", "NPU")
    assert "HETERO:NPU,CPU" in line


def test_a_device_that_compiles_and_refuses_to_run_is_told_alike(
    devices: Devices, bundle: Path, micro_data: Path
) -> None:
    devices.fails["NPU"] = "[NPU] ZE_RESULT_ERROR_UNKNOWN"
    line = refusal("predict", bundle, photograph(micro_data), "--device", "NPU", exit_code=1)
    assert "fails on NPU: [NPU] ZE_RESULT_ERROR_UNKNOWN" in line
    assert "--device HETERO:NPU,CPU" in line


# The commands.


def test_predict_on_auto_is_predict_on_the_cpu(bundle: Path, micro_data: Path) -> None:
    image = photograph(micro_data)
    told = [
        json.loads(run("predict", bundle, image, "--device", name, "--json").stdout)
        for name in ("CPU", "AUTO", "HETERO:CPU")
    ]
    assert told[0] == told[1] == told[2]


def test_build_compiles_for_a_device_into_the_cache_that_predict_reads(
    devices: Devices, bundle: Path, micro_data: Path, tmp_path: Path
) -> None:
    found = run_json("build", bundle, "--device", "GPU.1", "--cache-dir", tmp_path / "kept")
    assert found["processors"] == ["Stand-in GPU.1"]
    assert found["verdict"] == "pass"
    assert len(list((tmp_path / "kept").iterdir())) == 1
    run(
        "predict",
        bundle,
        photograph(micro_data),
        "--device",
        "GPU.1",
        "--cache-dir",
        tmp_path / "kept",
    )
    assert devices.imported == ["GPU.1"]


def test_doctor_lists_the_devices_with_what_each_can_and_cannot(devices: Devices) -> None:
    listed = run_json("doctor")["engines"]["openvino"]["devices"]
    assert [each["name"] for each in listed] == ["CPU", "GPU.0", "GPU.1", "NPU"]
    npu = listed[-1]
    assert npu["full_name"] == "Stand-in NPU"
    assert npu["precisions"]["fp16"] is None
    assert "NPU has no bf16" in npu["precisions"]["bf16"]
    table = run("doctor").stdout
    assert "Stand-in GPU.1" in table


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["predict", "{onnx}", "x.png", "--device", "GPU"], "--backend openvino"),
        (["predict", "{trt}", "x.png", "--device", "GPU"], "leave it out for tensorrt"),
        (["build", "{trt}", "--device", "GPU"], "leave it out"),
        (["build", "{ov}", "--device", "AUTO"], "cannot be kept"),
        (["build", "{ov}", "--device", "CPU", "--cache-dir", "none"], "--cache-dir"),
        (["build", "{ov}", "--device", "CPU", "--explain"], "--explain"),
        (["build", "{ov}"], "--device"),
        (["build", "{ov}", "--device", "CPU", "--cache-dir", "/proc/nope"], "/proc/nope"),
        (["predict", "{ov}", "x.png", "--device", "AUTO", "--cache-dir", "o"], "cannot be kept"),
        (["benchmark", "{run}", "--data", "{data}", "--targets", "onnx", "--device", "CPU"],
         "none of --targets"),
        (["profile", "{onnx}", "--device", "CPU"], "none of these bundles"),
        (["evaluate", "{run}", "--device", "GPU"], "auto, cpu, cuda"),
        (["evaluate", "{ov}", "--data", "{data}", "--device", "cuda"], "PyTorch's"),
        (["explain", "{run}", "x.png", "--out", "o", "--device", "GPU"], "--device"),
        (["export", "{run}", "--target", "openvino", "--out", "o", "--device", "GPU"], "auto"),
        (["export", "{run}", "--target", "onnx", "--precision", "auto", "--out", "o",
          "--device", "GPU"], "--target openvino"),
        (["benchmark", "{run}", "--data", "{data}", "--device", "cuda"], "PyTorch's"),
        (["benchmark", "{run}", "--data", "{data}", "--device", "GPU"], "finds no GPU"),
    ],
)  # fmt: skip
def test_a_device_where_it_means_nothing_is_one_line(
    micro_bundles: dict[str, Path],
    trt_bundle: Path,
    micro_run: Path,
    micro_data: Path,
    words: list[str],
    named: str,
) -> None:
    places = {
        "onnx": micro_bundles["onnx"], "ov": micro_bundles["openvino"], "trt": trt_bundle,
        "run": micro_run, "data": micro_data,
    }  # fmt: skip
    # What could not be kept is no wrong use.
    exit_code = 1 if "/proc/nope" in words else 2
    assert named in refusal(*(word.format(**places) for word in words), exit_code=exit_code)
