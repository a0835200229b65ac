"""INT8 with the whole range of its weights is refused where products would saturate, and nowhere else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from gft_edge.bundle.images import ImageRecord
from gft_edge.bundle.manifest import Quantization, WeightsRange
from gft_edge.bundle.store import read_bundle
from gft_edge.errors import UsageError
from gft_edge.runtime import processor
from gft_edge.runtime.processor import refuse_saturation, saturates_int8
from tests.support.refusals import refusal_of

PLAIN = "model name\t: AMD EPYC\nflags\t\t: fpu sse2 avx2 fma\n"
VNNI = "flags\t\t: avx512f avx512_vnni\n"
AMX = "flags\t\t: amx_tile amx_int8\n"
ARM = "Features\t: fp asimd\n"

Processor = Callable[[str, str], None]


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Processor:
    """Makes this machine one of another processor, by what Linux says of it."""

    def become(machine: str, told: str) -> None:
        file = tmp_path / "cpuinfo"
        file.write_text(told)
        monkeypatch.setattr(processor, "CPUINFO", file)
        monkeypatch.setattr("platform.machine", lambda: machine)

    return become


@pytest.mark.parametrize(
    ("machine", "told", "saturates"),
    [
        ("x86_64", PLAIN, True),
        ("AMD64", PLAIN, True),
        ("x86_64", VNNI, False),
        ("x86_64", AMX, False),
        ("aarch64", ARM, False),
        # Nothing is known: nothing is refused.
        ("x86_64", "", False),
    ],
)
def test_x86_without_vnni_saturates(
    machine: str, told: str, saturates: bool, on: Processor
) -> None:
    on(machine, told)
    assert saturates_int8() == saturates


@pytest.mark.parametrize(
    ("weights_range", "target", "refused"),
    [("full", "onnx", True), ("half", "onnx", False), ("full", "tensorrt", False)],
)
def test_a_bundle_that_would_saturate_is_refused_with_the_way_out(
    weights_range: WeightsRange, target: str, refused: bool, on: Processor,
    micro_bundles: dict[str, Path],
) -> None:  # fmt: skip
    folder = micro_bundles["onnx"]
    found = Quantization(
        "minmax", None, ImageRecord(1, 0, ""), (), 1, 1.0, weights_range=weights_range
    )
    manifest = dataclasses.replace(read_bundle(folder).manifest, target=target, quantization=found)
    on("x86_64", PLAIN)
    if refused:
        words = (str(folder), "--weights-range half")
        refusal_of(UsageError, lambda: refuse_saturation(folder, manifest), *words)
    else:
        refuse_saturation(folder, manifest)
    on("x86_64", VNNI)
    refuse_saturation(folder, manifest)
