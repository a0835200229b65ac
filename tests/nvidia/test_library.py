"""The table of TensorRT's versions says what is in the bindings of each."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from onnx import TensorProto, helper

from gft_edge.errors import UsageError
from gft_edge.nvidia.library import (
    SINCE,
    Library,
    builder_library,
    installed,
    parse,
    version_of,
)
from gft_edge.nvidia.log import KEPT_LINES
from tests.support.fake_tensorrt import ILogger, Severity
from tests.support.paths import ROOT
from tests.support.refusals import refusal_of

PACKAGE = ROOT / "gft_edge"
SOURCES = (
    *sorted((PACKAGE / "nvidia").glob("*.py")),
    PACKAGE / "runtime" / "backends" / "trt.py",
    PACKAGE / "runtime" / "trt_session.py",
)

# JetPack 6 and 7, the first and last of 11; 10.8 and 10.9 stand around the one name that came later.
VERSIONS = (
    "10.3.0", "10.8.0.43", "10.9.0.34", "10.13.3.9", "10.16.1.11", "11.0.0.114", "11.4.0.106",
)  # fmt: skip


@dataclass(frozen=True)
class Bindings:
    """The two files of TensorRT's Python package that define names."""

    library: bytes
    module: bytes


@pytest.fixture(scope="session")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bindings]:
    """Version -> its Python bindings, 1.2 MB each to fetch.

    They cannot be imported without TensorRT's libraries, which are not in the package index. But
    pybind keeps every name as a string that ends in NUL.
    """
    folder = tmp_path_factory.mktemp("bindings")
    with ThreadPoolExecutor(4) as pool:
        contents = pool.map(lambda version: bindings_of(version, folder / version), VERSIONS)
    return dict(zip(VERSIONS, contents, strict=True))


def bindings_of(version: str, folder: Path) -> Bindings:
    platforms = [f"--platform=manylinux_2_{glibc}_x86_64" for glibc in (17, 28)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", f"tensorrt-cu12-bindings=={version}", "--no-deps",
         "--dest", str(folder), "--only-binary=:all:", "--python-version=3.11", *platforms,
         "--quiet", "--disable-pip-version-check", "--retries=0", "--timeout=20"],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["pip says nothing"]
        pytest.skip(f"no package index gives the bindings of TensorRT {version}: {reason[0]}")
    (wheel,) = folder.iterdir()
    with zipfile.ZipFile(wheel) as file:
        names = ("tensorrt_bindings/tensorrt.so", "tensorrt_bindings/__init__.py")
        return Bindings(*map(file.read, names))


def bound(name: str, bindings: Bindings) -> bool:
    """Whether bindings have a name: at the end of a stored string, or in their Python part."""
    # A compiler stores a string that ends a longer one within it: no NUL need stand in front.
    if name.encode() + b"\0" in bindings.library:
        return True
    defined = rb"^(def |\w+\.)?%s(\(| = )" % name.encode()
    return re.search(defined, bindings.module, re.MULTILINE) is not None


def members(module: Any) -> set[str]:
    """Every name in a module, its classes and its enums."""
    names, classes = set(dir(module)), list(vars(module).values())
    seen: set[int] = set()
    while classes:
        value = classes.pop()
        if inspect.isclass(value) and id(value) not in seen:
            seen.add(id(value))
            names |= set(dir(value))
            classes += [getattr(value, name, None) for name in dir(value) if name != "__class__"]
    return names


def used_names() -> set[str]:
    """What stands behind a dot in the sources, and the methods that their classes define."""
    nodes = [node for path in SOURCES for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    methods = [
        method.name
        for node in nodes
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, ast.FunctionDef)
    ]
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)} | set(methods)


@pytest.mark.slow  # seven wheels to fetch
@pytest.mark.parametrize("name", SINCE)
def test_a_name_of_the_table_is_in_the_versions_that_it_gives(
    name: str, bindings: dict[str, Bindings]
) -> None:
    libraries = {version: Library(fake_module(version), "tensorrt") for version in VERSIONS}
    assert [version for version in VERSIONS if libraries[version].has(name)] == [
        version for version in VERSIONS if bound(name, bindings[version])
    ]


def test_the_table_says_which_names_tensorrt_rtx_has(rtx: Any) -> None:
    library = Library(rtx, "tensorrt-rtx")
    here = members(rtx)
    assert {name for name in SINCE if library.has(name)} == {"REQUIRE_USER_ALLOCATION"}
    # The others are there too, and do nothing: see below.
    assert set(SINCE) <= here


@pytest.mark.slow
def test_every_other_name_of_tensorrt_is_in_all_versions(
    rtx: Any, bindings: dict[str, Bindings]
) -> None:
    names = (used_names() & members(rtx)) - set(SINCE)
    # Dunders and the methods of containers are Python's.
    names -= {*dir(dict), *dir(list), *dir(set)}
    names = {name for name in names if not name.startswith("__")} | {"__version__"}
    assert {"STRONGLY_TYPED", "execute_async_v3", "nptype", "step_complete", "TF32"} <= names
    lacking = {
        version: sorted(name for name in names if not bound(name, content))
        for version, content in bindings.items()
    }
    assert lacking == {version: [] for version in VERSIONS}


@pytest.mark.slow
def test_a_name_that_no_version_has_is_not_found(bindings: dict[str, Bindings]) -> None:
    """The search itself: it would be worthless if it found everything."""
    for content in bindings.values():
        assert not bound("execute_async_v4", content)
        assert not bound("deserialize_cuda_engin", content)


# Relu, the least that builds.
def relu() -> bytes:
    images, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4])
        for name in ("images", "logits")
    )
    graph = helper.make_graph(
        [helper.make_node("Relu", ["images"], ["logits"], name="relu")], "g", [images], [logits]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    return bytes(model.SerializeToString())


def test_what_the_table_denies_tensorrt_rtx_does_nothing_or_fails_there(rtx: Any) -> None:
    network, builder, log = parse(Library(rtx, "tensorrt-rtx"), relu(), Path("relu.onnx"))
    # Strongly typed, whatever number the flag has in a version.
    assert network.get_flag(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    config = builder.create_builder_config()
    with pytest.warns(DeprecationWarning, match="Timing cache operations are no-ops"):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    assert builder.build_serialized_network(network, config) is not None
    for level in ("AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"):
        log.clear()
        config.hardware_compatibility_level = getattr(rtx.HardwareCompatibilityLevel, level)
        assert any("unsupported in TensorRT-RTX" in message for _, message in log.lines)
    config.hardware_compatibility_level = rtx.HardwareCompatibilityLevel.NONE
    config.set_flag(rtx.BuilderFlag.VERSION_COMPATIBLE)
    log.clear()
    assert builder.build_serialized_network(network, config) is None
    assert "libnvinfer_lean" in log.first_error("it gives no reason")


class FakeBuilder:
    """Builds nothing; `refuses` stands for a machine without a GPU."""

    refuses = False

    def __init__(self, logger: Any) -> None:
        if self.refuses:
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 35\nhelp")
            raise TypeError("pybind11::init(): factory function returned nullptr")


def fake_module(version: str = "10.3.0", **names: Any) -> Any:
    """A TensorRT without a library, for what no machine of the tests has."""
    module = ModuleType("tensorrt")
    module.__dict__.update(__version__=version, ILogger=ILogger, **names)
    return module


def test_no_constant_of_tensorrt_is_written_as_a_number() -> None:
    for path in SOURCES:
        for call in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                settings = ("set_flag", "clear_flag", "set_memory_pool_limit", "create_network")
                if call.func.attr in settings:
                    assert not isinstance(call.args[0], ast.Constant), ast.unparse(call)


def test_versions_compare_as_numbers_up_to_what_is_none() -> None:
    assert version_of("10.13.3.9.post1") == (10, 13, 3, 9)
    assert version_of("10.13.3.9") > version_of("10.3.0")
    assert version_of("10.9.0.34") >= (10, 9)
    assert version_of("") == ()


@pytest.mark.parametrize(
    ("version", "level"), [("10.8.0.43", False), ("10.9.0.34", True), ("11.4.0.106", True)]
)
def test_a_name_is_there_from_its_first_version_on(version: str, level: bool) -> None:
    assert Library(fake_module(version), "tensorrt").has("SAME_COMPUTE_CAPABILITY") == level


def test_tensorrt_comes_before_tensorrt_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_module("10.3.0", Builder=FakeBuilder))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_module("1.7.1", Builder=FakeBuilder))
    assert [library.name for library in installed()] == ["tensorrt 10.3.0", "tensorrt-rtx 1.7.1"]
    assert [library.name for library in installed("tensorrt-rtx")] == ["tensorrt-rtx 1.7.1"]
    assert builder_library().flavor == "tensorrt"


def test_a_tensorrt_that_cannot_build_gives_way_to_one_that_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Builder(FakeBuilder):
        refuses = True

    monkeypatch.setitem(sys.modules, "tensorrt", fake_module("10.3.0", Builder=Builder))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_module("1.7.1", Builder=FakeBuilder))
    assert builder_library().flavor == "tensorrt-rtx"
    reason = "CUDA initialization failure with error: 35"
    refusal_of(UsageError, lambda: builder_library("tensorrt"), "tensorrt 10.3.0", reason)


def test_a_package_without_its_library_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What `pip install tensorrt` leaves where NVIDIA's own index is out of reach."""
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt_rtx.py").write_text("raise OSError('libtensorrt_rtx.so: cannot open')")
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert installed() == []
    refusal_of(UsageError, builder_library, "pip install 'gft-edge[tensorrt]'")
    line = refusal_of(UsageError, lambda: builder_library("tensorrt-rtx"), "pip install")
    assert "TensorRT-RTX" in line


def test_the_first_error_is_the_reason_and_its_echo_is_not(rtx: Any) -> None:
    library = Library(rtx, "tensorrt-rtx")
    log = library.log()
    assert log.first_error("nothing said") == "nothing said"
    levels = rtx.ILogger.Severity
    for severity in (levels.VERBOSE, levels.INFO, levels.WARNING):
        log.sink.log(severity, "beside the point")
    assert log.first_error("nothing said") == "nothing said"
    log.sink.log(levels.ERROR, "\n \n")
    assert log.first_error("nothing said") == "nothing said", "an empty error is no reason"
    log.sink.log(levels.ERROR, "\nthe cause\nand more\n")
    log.sink.log(levels.INTERNAL_ERROR, "its echo")
    assert log.first_error("nothing said") == "the cause"
    assert library.log().first_error("nothing said") == "nothing said"
    log.clear()
    assert log.first_error("nothing said") == "nothing said"


def test_a_log_keeps_the_last_lines_alone(rtx: Any) -> None:
    log = Library(rtx, "tensorrt-rtx").log()
    for number in range(KEPT_LINES + 5):
        log.sink.log(rtx.ILogger.Severity.WARNING, str(number))
    assert len(log.lines) == KEPT_LINES
    assert log.lines[-1] == ("WARNING", str(KEPT_LINES + 4))


@pytest.mark.usefixtures("rtx")
def test_the_log_outlives_the_object_that_tensorrt_took_it_from(tmp_path: Path) -> None:
    """TensorRT calls the logger of its first object for as long as the process lives."""
    (tmp_path / "relu.onnx").write_bytes(relu())
    code = """
import gc, sys
from pathlib import Path
import tensorrt_rtx
from gft_edge.nvidia.library import installed, parse
(library,) = installed("tensorrt-rtx")
path = Path(sys.argv[1])
first = parse(library, path.read_bytes(), path)
second = parse(library, path.read_bytes(), path)
del first
gc.collect()
log = library.log()
tensorrt_rtx.get_plugin_registry().load_library("/no/such/library.so")
print(log.first_error("nothing said"))
"""
    arguments = [sys.executable, "-c", code, str(tmp_path / "relu.onnx")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Unable to load library: /no/such/library.so" in done.stdout
