"""OpenVINO's devices: their names as benchmark_app -d takes them, which are here, what each computes in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gft_edge.errors import UsageError

# A plain name is a processor; AUTO picks one of several, HETERO splits the graph between them and MULTI
# the images (docs.openvino.ai, inference devices and modes).
_VIRTUAL = ("AUTO", "HETERO", "MULTI")

# Those whose compiled models cannot be exported to a file.
UNKEPT = ("AUTO", "MULTI")

CPU = "CPU"

# Processors that compute in f16 by default, an NPU in nothing wider.
_HALF = ("GPU", "NPU")

_DRIVERS = "https://docs.openvino.ai/2025/get-started/install-openvino/configurations.html"


@dataclass(frozen=True)
class OpenVinoDevice:
    """A processor that OpenVINO finds: its name (CPU, GPU.1), its maker's, and what it computes in."""

    name: str
    full_name: str
    capabilities: tuple[str, ...]

    @property
    def kind(self) -> str:
        """CPU, GPU or NPU."""
        return self.name.partition(".")[0]

    @property
    def half(self) -> bool:
        """Whether it computes in f16 what a CPU computes in f32."""
        return self.kind in _HALF

    def precision(self, asked: str) -> str:
        """What it is told to compute in, where a CPU is told `asked`."""
        return "f16" if self.half else asked


@dataclass(frozen=True)
class Placement:
    """Where a model is compiled: the device as it was asked for, and the processors it may run on."""

    device: str
    processors: tuple[OpenVinoDevice, ...]

    @property
    def virtual(self) -> bool:
        """Whether OpenVINO divides the work itself."""
        return self.device.partition(":")[0] in _VIRTUAL

    @property
    def half_on(self) -> tuple[str, ...]:
        """The makers' names of the processors that compute in f16 what a CPU computes in f32."""
        return tuple(processor.full_name for processor in self.processors if processor.half)

    @property
    def remedy(self) -> str:
        """What to do where a processor refuses a graph."""
        if self.half_on and not self.virtual:
            return f"--device HETERO:{self.device},CPU leaves to the CPU what it refuses"
        return "--device CPU runs it" if self.device != CPU else "export it anew"


def devices_here(core: Any) -> tuple[OpenVinoDevice, ...]:
    """The processors that an openvino.Core finds on this machine, the CPU among them."""
    return tuple(
        OpenVinoDevice(
            name,
            core.get_property(name, "FULL_DEVICE_NAME").strip(),
            tuple(sorted(core.get_property(name, "OPTIMIZATION_CAPABILITIES"))),
        )
        for name in core.available_devices
    )


def placement(core: Any, device: str) -> Placement:
    """Where `device` puts a model on this machine.

    Raises UsageError for a name that OpenVINO does not know, and for a device that is not here: of
    those that AUTO is given one is enough.
    """
    here = devices_here(core)
    head, _, listed = device.partition(":")
    if head not in _VIRTUAL:
        return Placement(device, _those_here([device], here, device))
    names = listed.split(",") if listed else []
    if head == "AUTO":
        left_out = [name[1:] for name in names if name.startswith("-")]
        wanted = [name for name in names if not name.startswith("-")]
        for name in left_out:
            _check_known(name, device, here)
        # By itself it takes no NPU (docs.openvino.ai, automatic device selection).
        found = tuple(each for each in here if each.kind != "NPU")
        if wanted:
            found = _those_here(wanted, here, device, one_is_enough=True, every=True)
        found = tuple(p for p in found if not any(_is(name, p, every=True) for name in left_out))
        if not found:
            raise UsageError(f"--device {device} leaves no device: this machine has {_names(here)}")
        return Placement(device, found)
    if not names:
        raise UsageError(f"--device {device} divides work among devices: write {head}:GPU,CPU")
    return Placement(device, _those_here(names, here, device, every=head == "MULTI"))


def _those_here(
    names: Sequence[str],
    here: Sequence[OpenVinoDevice],
    device: str,
    one_is_enough: bool = False,
    every: bool = False,
) -> tuple[OpenVinoDevice, ...]:
    found: list[OpenVinoDevice] = []
    absent: list[str] = []
    for name in names:
        _check_known(name, device, here)
        matches = [processor for processor in here if _is(name, processor, every)]
        found += matches
        if not matches:
            absent.append(name)
    if absent and not (one_is_enough and found):
        raise UsageError(
            f"OpenVINO finds no {', no '.join(absent)} on this machine, where it finds {_names(here)}: "
            f"install the driver ({_DRIVERS}), or choose another --device"
        )
    return tuple(dict.fromkeys(found))


def _is(name: str, processor: OpenVinoDevice, every: bool = False) -> bool:
    # Of several the first is meant by the plain name, but all of them where work is shared; one alone
    # answers to .0 as well.
    if every and name == processor.kind:
        return True
    return processor.name in (name, f"{name}.0") or f"{processor.name}.0" == name


def _check_known(name: str, device: str, here: Sequence[OpenVinoDevice]) -> None:
    kind, dot, number = name.partition(".")
    numbered = kind in _HALF and number.isdecimal()
    if kind in (CPU, *_HALF) and (numbered or not dot):
        return
    hint = "; cpu and cuda are PyTorch's, for runs" if device in ("auto", "cpu", "cuda") else ""
    raise UsageError(
        f"--device {device}: OpenVINO has no device {name!r}: choose from CPU, GPU, GPU.1, NPU, AUTO, "
        f"HETERO:GPU,CPU, MULTI:GPU,CPU (this machine has {_names(here)}){hint}"
    )


def _names(here: Sequence[OpenVinoDevice]) -> str:
    return ", ".join(processor.name for processor in here)
