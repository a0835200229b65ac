"""An engine is loaded where it fits, and where none fits the reasons say why."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gft_edge.bundle.manifest import Engine, EngineSettings, Flavor
from gft_edge.errors import KeptPatchesError, UsageError
from gft_edge.nvidia import system
from gft_edge.nvidia.cuda import Gpu
from gft_edge.nvidia.engines import (
    Host,
    engine_for,
    engine_of,
    fingerprint,
    host_of,
    misfit,
    serves,
)
from gft_edge.nvidia.library import Library
from gft_edge.nvidia.system import l4t
from tests.support.files import write
from tests.support.refusals import refusal_of

GRAPH = "a" * 64
FOLDER = Path("bundles") / "grocery"
LOGITS = ("logits",)
KEPT = ("logits", "kept_1", "kept_2")

ORIN = Gpu("Orin", "8.7", True, 8)
DESKTOP = Gpu("NVIDIA GeForce RTX 4090", "8.9", False, 128)
JETSON = Host("linux-aarch64", ORIN, "12.6", "540.4.0", "R36.4.0")
WORKSTATION = Host("linux-x86_64", DESKTOP, "12.8", "570.86.10", None)
NO_GPU = Host("linux-x86_64", None, None, None, None)


def library(version: str = "10.3.0", flavor: Flavor = "tensorrt") -> Library:
    """An installed library: nothing but its version is asked for here."""
    return Library(SimpleNamespace(__version__=version), flavor)


RTX = library("1.7.1.116", "tensorrt-rtx")


def engine(
    host: Host = JETSON, made_by: Library | None = None, settings: EngineSettings | None = None,
    outputs: tuple[str, ...] = LOGITS, graph_sha256: str = GRAPH,
) -> Engine:  # fmt: skip
    """What a build by that library on that host records."""
    made_by, settings = made_by or library(), settings or EngineSettings()
    name = "explain.engine" if len(outputs) > 1 else "model.engine"
    path = f"engines/{fingerprint(settings, made_by, host)}/{name}"
    return engine_of(
        made_by, host, settings, path=path, sha256="b" * 64, graph_sha256=graph_sha256,
        outputs=outputs, flags=("STRONGLY_TYPED",), timing_cache=None, build_seconds=1.0,
    )  # fmt: skip


def on(host: Host, **gpu: Any) -> Host:
    """That host with another GPU."""
    assert host.gpu is not None
    return dataclasses.replace(host, gpu=dataclasses.replace(host.gpu, **gpu))


@pytest.mark.parametrize(
    ("expected", "made_by", "host", "level"),
    [
        ("tensorrt-10.3.0-linux-aarch64-orin-8mp-sm87", library(), JETSON, "none"),
        ("tensorrt-10.13.3.9-linux-x86_64-geforce-rtx-4090-128mp-sm89", library("10.13.3.9"),
         WORKSTATION, "none"),
        ("tensorrt-10.13.3.9-linux-x86_64-sm80+", library("10.13.3.9"), WORKSTATION, "ampere+"),
        ("tensorrt-10.13.3.9-linux-x86_64-sm89", library("10.13.3.9"), WORKSTATION,
         "sameComputeCapability"),
        ("tensorrt-rtx-1.7.1.116-sm80-sm86-sm89-sm120+", RTX, WORKSTATION, "none"),
        ("tensorrt-rtx-1.7.1.116-sm80-sm86-sm89-sm120+", RTX, NO_GPU, "none"),
    ],
)  # fmt: skip
def test_a_fingerprint_names_what_an_engine_is_bound_to(
    expected: str, made_by: Library, host: Host, level: Any
) -> None:
    assert fingerprint(EngineSettings(hardware_compatibility=level), made_by, host) == expected


@pytest.mark.parametrize("name", ["NVIDIA A/B ../..", "Tesla™ T4 (C)", "NVIDIA\tGPU\n"])
def test_a_fingerprint_is_one_plain_folder_whatever_the_gpu_is_called(name: str) -> None:
    made = fingerprint(EngineSettings(), library(), on(JETSON, name=name))
    assert re.fullmatch(r"[a-z0-9.+_-]+", made)
    assert "--" not in made
    assert (FOLDER / made).resolve().parent == FOLDER.resolve()


def test_settings_that_differ_in_numbers_share_a_folder() -> None:
    """The second replaces the first: one machine loads one engine."""
    slow = EngineSettings(builder_optimization_level=5, workspace_gib=1, version_compatible=True)
    assert fingerprint(slow, library(), JETSON) == fingerprint(EngineSettings(), library(), JETSON)


def choose(
    made: list[Engine], host: Host, libraries: list[Library], outputs: tuple[str, ...] = LOGITS
) -> tuple[Engine, Library]:
    return engine_for(FOLDER, made, GRAPH, outputs, libraries, host)


def test_the_engine_that_was_built_here_is_the_one() -> None:
    made = [engine(WORKSTATION), engine(JETSON), engine(on(JETSON, compute_capability="11.0"))]
    assert choose(made, JETSON, [library()]) == (made[1], library())


@pytest.mark.parametrize("order", [1, -1])
def test_an_engine_of_tensorrt_comes_before_one_of_tensorrt_rtx(order: int) -> None:
    made = [engine(WORKSTATION, RTX), engine(WORKSTATION)][::order]
    libraries = [library(), RTX]
    assert choose(made, WORKSTATION, libraries)[0].flavor == "tensorrt"
    # Without its library the other one is as good.
    assert choose(made, WORKSTATION, [RTX])[0].flavor == "tensorrt-rtx"


@pytest.mark.parametrize("order", [1, -1])
def test_an_engine_for_this_very_gpu_comes_before_one_for_many(order: int) -> None:
    portable = engine(WORKSTATION, settings=EngineSettings(hardware_compatibility="ampere+"))
    made = [portable, engine(WORKSTATION)][::order]
    assert choose(made, WORKSTATION, [library()])[0].settings == EngineSettings()
    other = on(WORKSTATION, name="NVIDIA GeForce RTX 3060", compute_capability="8.6")
    assert choose(made, other, [library()])[0] == portable


def test_an_engine_that_returns_the_kept_patches_is_another_one() -> None:
    made = [engine(), engine(outputs=KEPT)]
    assert choose(made, JETSON, [library()])[0].path.endswith("/model.engine")
    assert choose(made, JETSON, [library()], KEPT)[0].path.endswith("/explain.engine")


def test_a_bundle_without_an_engine_names_the_command_that_makes_one() -> None:
    with pytest.raises(UsageError) as caught:
        choose([], JETSON, [library()])
    assert f"gft-edge build {FOLDER}" in str(caught.value)
    assert not isinstance(caught.value, KeptPatchesError)
    # Kept patches of other stages are no engine for these.
    elsewhere = engine(WORKSTATION, outputs=KEPT)
    for made in (engine(), engine(outputs=("logits", "old_1", "old_2")), elsewhere):
        choosing = functools.partial(choose, [made], JETSON, [library()], KEPT)
        refusal_of(KeptPatchesError, choosing, f"gft-edge build {FOLDER} --explain")


def test_every_engine_that_does_not_fit_is_listed_with_its_reason() -> None:
    made = [engine(WORKSTATION, RTX), engine(WORKSTATION, library("10.13.3.9")), engine()]
    here = library("10.13.3.9")
    reasons = [
        f"{Path(each.path).parent.name} {misfit(each, GRAPH, here, JETSON)}" for each in made[1:]
    ]
    reasons.append(f"{Path(made[0].path).parent.name} {misfit(made[0], GRAPH, None, JETSON)}")
    line = refusal_of(UsageError, lambda: choose(made, JETSON, [here]), JETSON.text, *reasons)
    assert line.endswith(f"gft-edge build {FOLDER}")
    # A machine without a GPU is described as one.
    refusal_of(UsageError, lambda: choose(made[:1], NO_GPU, [RTX]), NO_GPU.text)


COMPATIBLE = EngineSettings(version_compatible=True)
AMPERE = EngineSettings(hardware_compatibility="ampere+")
SAME = EngineSettings(hardware_compatibility="sameComputeCapability")
OTHER_89 = on(WORKSTATION, name="NVIDIA L4")

FITTING = {
    "built here": (engine(), library(), JETSON),
    "newer library, version-compatible": (engine(settings=COMPATIBLE), library("10.13.3.9"), JETSON),
    "same library, version-compatible": (engine(settings=COMPATIBLE), library(), JETSON),
    "ampere+ on the first Ampere": (
        engine(WORKSTATION, settings=AMPERE), library(),
        on(WORKSTATION, name="NVIDIA A100", compute_capability="8.0"),
    ),
    "ampere+ on Blackwell": (
        engine(WORKSTATION, settings=AMPERE), library(),
        on(WORKSTATION, name="NVIDIA B200", compute_capability="10.0"),
    ),
    "same capability of another model": (engine(WORKSTATION, settings=SAME), library(), OTHER_89),
    "RTX on another model": (engine(NO_GPU, RTX), RTX, OTHER_89),
    "RTX on what its + covers": (
        engine(NO_GPU, RTX), RTX, on(WORKSTATION, compute_capability="12.1"),
    ),
    "another driver and CUDA": (
        engine(), library(), dataclasses.replace(JETSON, driver="1.0", cuda="13.0", l4t=None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FITTING)
def test_what_an_engine_is_not_bound_to_may_differ(case: str) -> None:
    made, here, host = FITTING[case]
    assert misfit(made, GRAPH, here, host) is None


MISFITS = {
    "another graph": (
        engine(graph_sha256="c" * 64), library(), JETSON, "was built from another graph",
    ),
    "no library": (
        engine(), None, JETSON, "needs tensorrt 10.3.0, which is not installed here",
    ),
    "another build of the same version": (
        engine(made_by=library("10.3.0.26")), library("10.3.0.30"), JETSON,
        "was built by tensorrt 10.3.0.26, here is 10.3.0.30",
    ),
    "older library, version-compatible": (
        engine(made_by=library("10.13.3.9"), settings=COMPATIBLE), library(), JETSON,
        "was built by tensorrt 10.13.3.9, here is 10.3.0",
    ),
    "another platform": (
        engine(on(JETSON, compute_capability="8.9")), library(), WORKSTATION,
        "was built on linux-aarch64",
    ),
    "no GPU": (engine(WORKSTATION), library(), NO_GPU, "needs a GPU"),
    "RTX without a GPU": (engine(NO_GPU, RTX), RTX, NO_GPU, "needs a GPU"),
    "another capability": (
        engine(WORKSTATION), library(), on(WORKSTATION, compute_capability="8.6"),
        "was built for compute capability 8.9, this GPU has 8.6",
    ),
    "ampere+ before Ampere": (
        engine(WORKSTATION, settings=AMPERE), library(),
        on(WORKSTATION, name="Tesla T4", compute_capability="7.5"),
        "was built for compute capability 8.0+, this GPU has 7.5",
    ),
    "RTX on data-centre Blackwell": (
        engine(NO_GPU, RTX), RTX, on(WORKSTATION, compute_capability="10.0"),
        "was built for compute capability 8.0, 8.6, 8.9, 12.0+, this GPU has 10.0",
    ),
    "another model of the same capability": (
        engine(WORKSTATION), library(), OTHER_89,
        "was built on NVIDIA GeForce RTX 4090, this is NVIDIA L4",
    ),
    "version-compatible on another model": (
        engine(WORKSTATION, settings=COMPATIBLE), library(), OTHER_89,
        "was built on NVIDIA GeForce RTX 4090, this is NVIDIA L4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_what_an_engine_is_bound_to_is_named(case: str) -> None:
    made, here, host, reason = MISFITS[case]
    assert misfit(made, GRAPH, here, host) == reason


TEGRA = (
    "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64, "
    "DATE: Fri Sep 13 04:36:44 UTC 2024\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"
)
JETSON_DRIVER = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  "
    "(buildbrain@mobile-u64-6519-d7000)  Fri Sep 13 04:36:44 UTC 2024\n"
    "GCC version:  collect2: error: ld returned 1 exit status\n"
)
DESKTOP_DRIVER = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
    "GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)\n"
)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The root folder of another machine, which has no file yet."""
    monkeypatch.setattr(system, "Path", lambda path: tmp_path / path.lstrip("/"))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TEGRA, "R36.4.0"),
        (TEGRA.replace("R36", "R38").replace("4.0,", "2.1,"), "R38.2.1"),
        ("", None),
        ("# R36\n", None),
    ],
)
def test_jetson_linux_is_read_from_its_release_file(
    text: str, expected: str | None, root: Path
) -> None:
    assert l4t() is None
    write(root, {"etc/nv_tegra_release": text})
    assert l4t() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (JETSON_DRIVER, "540.4.0"),
        (DESKTOP_DRIVER, "550.54.15"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65  Release Build",
            "580.65",
        ),
        ("", None),
    ],
)
def test_the_driver_is_read_from_the_kernel_module(
    text: str, expected: str | None, root: Path
) -> None:
    write(root, {"proc/driver/nvidia/version": text})
    assert host_of(None).driver == expected


def test_a_host_is_what_the_cuda_runtime_and_the_system_say(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root, {"etc/nv_tegra_release": TEGRA, "proc/driver/nvidia/version": JETSON_DRIVER})
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    cuda: Any = SimpleNamespace(gpu=lambda: ORIN, runtime_version="12.6")
    assert host_of(cuda) == JETSON
    assert JETSON.text == "linux-aarch64, Orin, compute capability 8.7"
    without = dataclasses.replace(JETSON, gpu=None, cuda=None)
    assert host_of(None) == without
    assert without.text == "linux-aarch64, no GPU"


def test_orins_of_one_name_are_told_apart_by_their_size() -> None:
    nano, agx = JETSON, on(JETSON, multiprocessors=16)
    assert fingerprint(EngineSettings(), library(), nano) != fingerprint(
        EngineSettings(), library(), agx
    )
    assert misfit(engine(agx), GRAPH, library(), nano) == (
        "was built on Orin with 16 multiprocessors, this is Orin with 8"
    )


def test_tensorrt_rtx_serves_no_jetson() -> None:
    assert JETSON.gpu is not None
    assert not serves(RTX, JETSON.gpu)
    assert serves(library(), JETSON.gpu)
    assert serves(RTX, DESKTOP)
