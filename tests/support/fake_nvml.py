"""An NVML of cards that are not here; what a card does not say raises, as NVML does."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

# What a card may say, and the function of pynvml that asks it.
ASKED = {
    "name": "nvmlDeviceGetName",
    "compute": "nvmlDeviceGetCudaComputeCapability",
    "mhz": "nvmlDeviceGetClockInfo",
    "max_mhz": "nvmlDeviceGetMaxClockInfo",
    "temperature_c": "nvmlDeviceGetTemperature",
    "reasons": "nvmlDeviceGetCurrentClocksThrottleReasons",
    "milliwatts": "nvmlDeviceGetPowerUsage",
}


class NVMLError(Exception):
    """As pynvml's."""


def fake_nvml(cards: Sequence[dict[str, Any]], driver: str = "570.86.10") -> types.ModuleType:
    """Return a module in pynvml's place; it has to be opened before a card answers."""
    module: Any = types.ModuleType("pynvml")
    opened = [0]

    def told(card: dict[str, Any], what: str) -> Any:
        if not opened[0]:
            raise NVMLError("Uninitialized")
        if what not in card:
            raise NVMLError("Not Supported")
        return card[what]

    for what, function in ASKED.items():
        setattr(module, function, lambda card, *_, what=what: told(card, what))
    module.NVMLError = NVMLError
    module.NVML_CLOCK_SM = 1
    module.NVML_TEMPERATURE_GPU = 0
    module.nvmlInit = lambda: opened.__setitem__(0, opened[0] + 1)
    module.nvmlShutdown = lambda: opened.__setitem__(0, opened[0] - 1)
    module.nvmlDeviceGetCount = lambda: len(cards)
    module.nvmlDeviceGetHandleByIndex = lambda index: cards[index]
    module.nvmlSystemGetDriverVersion = lambda: driver
    module.nvmlDeviceGetUtilizationRates = lambda card: types.SimpleNamespace(
        gpu=told(card, "busy_pct")
    )
    result: types.ModuleType = module
    return result
