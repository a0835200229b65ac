"""What NVIDIA's driver says of each card of a desktop or a server, by NVML (package nvidia-ml-py).

A Jetson has no NVML: its GPU is in sysfs (profiling/conditions.py). https://docs.nvidia.com/deploy/nvml-api
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gft_edge.errors import MissingDependencyError

# The clocks event reasons that hold a busy GPU down; the others say that it is idle or told to be slow.
_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


@dataclass(frozen=True)
class GpuState:
    """One GPU at one moment; `slowed_by` is what holds its clock down. None: it does not say."""

    name: str
    mhz: float | None
    max_mhz: float | None
    temperature_c: float | None
    busy_pct: float | None
    slowed_by: tuple[str, ...] | None


@dataclass(frozen=True)
class Card:
    """One card, and what it does at one moment."""

    name: str
    driver: str
    compute_capability: str
    state: GpuState


def cards() -> tuple[Card, ...]:
    """Ask every card; nothing where NVML is absent."""
    try:
        with _opened() as pynvml:
            return tuple(_card(pynvml, n) for n in range(pynvml.nvmlDeviceGetCount()))
    except OSError:
        return ()


@contextmanager
def power_meter() -> Iterator[Callable[[], dict[str, float | None]]]:
    """Give a function that reads the watts of every card, by name. None: the card does not say.

    NVML stays open until the block ends. Raises OSError where it cannot be opened.
    """
    with _opened() as pynvml:

        def watts(index: int) -> float | None:
            card = pynvml.nvmlDeviceGetHandleByIndex(index)
            try:
                return float(pynvml.nvmlDeviceGetPowerUsage(card)) / 1000
            except pynvml.NVMLError:
                return None

        yield lambda: {f"GPU {n}": watts(n) for n in range(pynvml.nvmlDeviceGetCount())}


@contextmanager
def _opened() -> Iterator[Any]:
    """Open NVML and give its bindings. Raises OSError with its reason, in the block too."""
    try:
        import pynvml
    except ImportError as error:
        raise OSError(str(MissingDependencyError("nvidia-ml-py", "tensorrt"))) from error
    try:
        pynvml.nvmlInit()
        try:
            yield pynvml
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise OSError(str(error)) from error


def _card(pynvml: Any, index: int) -> Card:
    card = pynvml.nvmlDeviceGetHandleByIndex(index)

    def told(ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except pynvml.NVMLError:  # this card or driver does not know it
            return None

    compute = told(lambda: pynvml.nvmlDeviceGetCudaComputeCapability(card))
    reasons = told(lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(card))
    busy = told(lambda: pynvml.nvmlDeviceGetUtilizationRates(card))
    name = str(told(lambda: pynvml.nvmlDeviceGetName(card)))
    state = GpuState(
        name=f"GPU {index} {name}",
        mhz=told(lambda: float(pynvml.nvmlDeviceGetClockInfo(card, pynvml.NVML_CLOCK_SM))),
        max_mhz=told(lambda: float(pynvml.nvmlDeviceGetMaxClockInfo(card, pynvml.NVML_CLOCK_SM))),
        temperature_c=told(
            lambda: float(pynvml.nvmlDeviceGetTemperature(card, pynvml.NVML_TEMPERATURE_GPU))
        ),
        busy_pct=None if busy is None else float(busy.gpu),
        slowed_by=None
        if reasons is None
        else tuple(reason for bit, reason in _REASONS.items() if reasons & bit),
    )
    driver = str(told(pynvml.nvmlSystemGetDriverVersion))
    capability = "unknown" if compute is None else "{}.{}".format(*compute)
    return Card(name, driver, capability, state)
