"""An NVIDIA board in a device's home folder: TensorRT and CUDA are the doubles, in Python's user site.

The doubles' files are copied there and imported by the Python of the device. A build makes a plan of the
double's, and a timing cache that remembers how often it was used; FAKE_BUILD_S makes it last.
"""

from __future__ import annotations

import enum
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support.fake_cudart import MULTIPROCESSORS, FakeCudart
from tests.support.fake_tensorrt import FakeTensorrt

_STEPS = 50

_CUSTOMIZE = """
try:
    import gft_edge.nvidia.cuda as cuda
except ImportError:
    pass  # pip
else:
    from tests.support.fake_board import CUDART
    cuda.runtimes = lambda: iter([CUDART.runtime()])
"""
_TENSORRT = """
import sys
from tests.support.fake_board import tensorrt
sys.modules[__name__] = tensorrt()
"""


def become_board(home: Path, python: str) -> None:
    """Put the doubles where a Python of this version, python3.11, finds them."""
    site = home / ".local" / "lib" / python / "site-packages"
    support = site / "tests" / "support"
    support.mkdir(parents=True)
    (support.parent / "__init__.py").touch()
    (support / "__init__.py").touch()
    for name in ("fake_board", "fake_cudart", "fake_tensorrt"):
        shutil.copy(Path(__file__).with_name(f"{name}.py"), support)
    (site / "usercustomize.py").write_text(_CUSTOMIZE)
    (site / "tensorrt.py").write_text(_TENSORRT)


class _Orin(FakeCudart):
    """Every Jetson Orin has that name: their sizes differ, by FAKE_MULTIPROCESSORS."""

    def cudaDeviceGetAttribute(self, out: Any, attribute: int, device: int) -> int:  # noqa: N802
        code = super().cudaDeviceGetAttribute(out, attribute, device)
        if attribute == MULTIPROCESSORS:
            out[0] = int(os.environ.get("FAKE_MULTIPROCESSORS", "8"))
        return code


CUDART = _Orin()


def tensorrt() -> Any:
    """The double that runs engines, with what builds them."""
    module = FakeTensorrt(CUDART).module
    flags = "TF32 FP16 VERSION_COMPATIBLE REFIT"
    module.__dict__.update(
        Builder=_Builder,
        OnnxParser=_OnnxParser,
        IProgressMonitor=type("IProgressMonitor", (), {}),
        BuilderFlag=enum.IntEnum("BuilderFlag", flags, start=0),
        NetworkDefinitionCreationFlag=enum.IntEnum(
            "NetworkDefinitionCreationFlag", "EXPLICIT_BATCH STRONGLY_TYPED", start=0
        ),
        ProfilingVerbosity=enum.Enum("ProfilingVerbosity", "NONE DETAILED"),
        MemoryPoolType=enum.Enum("MemoryPoolType", "WORKSPACE"),
    )
    return module


class _Builder:
    def __init__(self, logger: object) -> None:
        pass

    def create_network(self, flags: int) -> Any:
        assert flags == 1 << 1
        return SimpleNamespace(model=b"", num_outputs=0)

    def create_builder_config(self) -> _Config:
        return _Config()

    def build_serialized_network(self, network: Any, config: _Config) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, _STEPS)
        for step in range(_STEPS):
            time.sleep(float(os.environ.get("FAKE_BUILD_S", "0")) / _STEPS)
            if not monitor.step_complete("Building", step):
                return None
        monitor.phase_finish("Building")
        assert config.cache is not None
        config.cache.content += b"used "
        return FakeTensorrt.plan_of(network.model)


class _OnnxParser:
    def __init__(self, network: Any, logger: object) -> None:
        self._network = network

    def parse(self, model: bytes) -> bool:
        self._network.model, self._network.num_outputs = model, 1
        return True


class _Config:
    progress_monitor: Any = None

    def __init__(self) -> None:
        self.cache: _Timings | None = None
        self._flags: set[int] = {0}

    def clear_flag(self, flag: int) -> None:
        self._flags.discard(flag)

    def set_flag(self, flag: int) -> None:
        self._flags.add(flag)

    def get_flag(self, flag: int) -> bool:
        return flag in self._flags

    def create_timing_cache(self, content: bytes) -> _Timings:
        return _Timings(content)

    def set_timing_cache(self, cache: _Timings, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True


class _Timings:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content
