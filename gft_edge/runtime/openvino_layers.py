"""Layers as a device of OpenVINO's runs them, from the execution graph of a compiled model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gft_edge.errors import FailedError
from gft_edge.runtime.backends import LayerTime, precision_of

# What is read of a layer in the execution graph (docs.openvino.ai, ov::exec_model_info).
_TOLD = {"execTimeMcs", "layerType", "originalLayersNames", "primitiveType", "runtimePrecision"}


def told_layers(compiled: Any, device: str) -> Iterator[dict[str, Any]]:
    """What a device tells of each layer that it made, behind those that it reads.

    Constants are left out, with what converts them once when the model is loaded: a counter of
    that is no time of an inference. Raises FailedError for a device that does not tell.
    """
    try:
        operations = compiled.get_runtime_model().get_ordered_ops()
    except RuntimeError as error:
        raise FailedError(f"{device} does not tell its layers") from error
    constants: set[str] = set()
    for operation in operations:
        told = {name: value.astype(str) for name, value in operation.rt_info.items()}
        if not told.keys() >= _TOLD:
            raise FailedError(f"{device} tells too little of its layers")
        name = operation.get_friendly_name()
        sources = (given.get_source_output().get_node() for given in operation.inputs())
        reads = tuple(source.get_friendly_name() for source in sources)
        if told["layerType"] == "Const" or (reads and constants.issuperset(reads)):
            constants.add(name)
        else:
            yield {**told, "name": name, "reads": reads}


def mean_us(told: dict[str, Any]) -> int:
    """The counter of a layer: its mean time an inference in microseconds."""
    return 0 if told["execTimeMcs"] == "not_executed" else int(told["execTimeMcs"])


def layer_of(told: dict[str, Any], mean_ms: float) -> LayerTime:
    """A layer as the device told it, with its mean time an inference."""
    # runtimePrecision alone may be that of stored weights; of integers it alone tells the sign.
    computed = told["primitiveType"].rpartition("_")[2]
    floating = computed in ("f32", "f16", "bf16")
    return LayerTime(
        name=told["name"],
        kind=told["layerType"],
        kernel=told["primitiveType"],
        precision=precision_of(
            told["layerType"], [computed if floating else told["runtimePrecision"]]
        ),
        nodes=tuple(filter(None, told["originalLayersNames"].split(","))),
        reads=told["reads"],
        writes=(told["name"],),
        mean_ms=mean_ms,
    )
