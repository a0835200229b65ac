"""A stand-in for OpenVINO on a machine with two GPUs and an NPU: the CPU's plugin computes for them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import openvino

# Tests put the stand-in in its place.
_REAL_CORE = openvino.Core

_ABSENT = re.compile(r"\b(GPU(\.\d)?|NPU)\b")


@dataclass
class Devices:
    """What the stand-in finds and does; set before a model is compiled.

    `compiled` has the device and the properties of each model that was compiled, `models` the models
    themselves. `refuses` is what a device answers to a graph, `fails` what it answers when it is run,
    `silent` devices tell nothing of their layers, and on those that are `wrong` the logits change sign.
    """

    here: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"GPU.0": ("FP32", "FP16"), "GPU.1": ("FP16",), "NPU": ("FP16",)}
    )
    compiled: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    models: list[Any] = field(default_factory=list)
    imported: list[str] = field(default_factory=list)
    refuses: dict[str, str] = field(default_factory=dict)
    fails: dict[str, str] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    def core(self) -> Any:
        """Stand in for openvino.Core()."""
        return _Core(self)


class _Compiled(openvino.CompiledModel):  # type: ignore[misc]
    def __init__(self, compiled: Any, devices: Devices, name: str):
        super().__init__(compiled)
        self._devices, self._name = devices, name

    def get_runtime_model(self) -> Any:
        if self._name in self._devices.silent:
            raise RuntimeError("Not Implemented")
        return super().get_runtime_model()

    def create_infer_request(self) -> Any:
        request = super().create_infer_request()
        return (
            _Failing(self._devices.fails[self._name])
            if self._name in self._devices.fails
            else request
        )


@dataclass
class _Failing:
    message: str

    def infer(self, inputs: Any) -> Any:
        raise RuntimeError(self.message)


class _Core:
    def __init__(self, devices: Devices):
        self._core, self._devices = _REAL_CORE(), devices

    @property
    def available_devices(self) -> list[str]:
        return ["CPU", *self._devices.here]

    def get_property(self, device: str, name: str) -> Any:
        if device == "CPU":
            return self._core.get_property(device, name)
        return {
            "FULL_DEVICE_NAME": f"Stand-in {device}",
            "OPTIMIZATION_CAPABILITIES": list(self._devices.here[device]),
        }[name]

    def read_model(self, *given: Any) -> Any:
        return self._core.read_model(*given)

    def compile_model(self, model: Any, device: str, properties: dict[str, Any]) -> Any:
        self._devices.compiled.append((device, properties))
        self._devices.models.append(model)
        if device in self._devices.refuses:
            raise RuntimeError(
                f"Exception from src/core.cpp:117:\n{self._devices.refuses[device]}\n\n"
            )
        if device in self._devices.wrong:
            model = _turned(model)
        found = self._core.compile_model(model, *_on_the_cpu(device, properties))
        return _Compiled(found, self._devices, device)

    def import_model(self, content: Any, device: str, properties: dict[str, Any]) -> Any:
        self._devices.imported.append(device)
        return self._core.import_model(content, *_on_the_cpu(device, properties))


def _on_the_cpu(device: str, properties: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    own = properties.get("DEVICE_PROPERTIES")
    if own is None:
        return _ABSENT.sub("CPU", device), properties
    head = device.partition(":")[0]
    return f"{head}:CPU", {**properties, "DEVICE_PROPERTIES": {"CPU": next(iter(own.values()))}}


def _turned(model: Any) -> Any:
    """The same network with logits of the other sign."""
    import numpy as np
    from openvino import opset13 as ops

    turned = model.clone()
    results = turned.get_results()
    logits = results[0].input_value(0)
    names = logits.get_names()
    negative = ops.multiply(logits, ops.constant(np.float32(-1)))
    logits.set_names(set())
    negative.output(0).set_names(names)
    results[0].input(0).replace_source_output(negative.output(0))
    turned.validate_nodes_and_infer_types()
    return turned
