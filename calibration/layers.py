"""The layers that INT8 may hold: every one with a weight, by the names both PyTorch and ONNX know."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from gft_edge.errors import FailedError
from gft_edge.model.network import Network

Layer: TypeAlias = nn.Linear | nn.Conv2d

# (layer name, what it reads) -> what it shall read instead, or None to leave it.
Read = Callable[[str, Tensor], Tensor | None]


def quantizable_layers(model: Network) -> dict[str, Layer]:
    """Linear and convolution layers in the order they run, the head left out, by module path.

    The head is under a thousandth of the work and decides the logits alone.
    """
    head = {module for part in model.classifiers() for module in part.modules()}
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module not in head
    }
    order: list[str] = []
    with torch.inference_mode(), reading(layers, lambda name, _: order.append(name)):
        model.eval()(_image(model))
    return {name: layers[name] for name in order}


def layer_macs(model: Network, layers: dict[str, Layer]) -> dict[str, int]:
    """Multiply-accumulates an image of each layer: its weights times the places it writes."""
    macs = dict.fromkeys(layers, 0)

    def count(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        weight = layers[name].weight

        def apply(_: nn.Module, given: object, written: Tensor) -> None:
            macs[name] += weight.numel() * (written.numel() // weight.shape[0])

        return apply

    with ExitStack() as stack, torch.inference_mode():
        for name, module in layers.items():
            stack.enter_context(module.register_forward_hook(count(name)))
        model.eval()(_image(model))
    return macs


def _image(model: Network) -> Tensor:
    return torch.zeros(1, 3, model.image_size_px, model.image_size_px)


@contextmanager
def reading(layers: dict[str, Layer], read: Read) -> Iterator[None]:
    """While open, `read` sees, and may replace, what each layer reads."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor] | None]:
        def apply(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor] | None:
            replaced = read(name, given[0])
            return None if replaced is None else (replaced,)

        return apply

    with ExitStack() as stack:
        for name, module in layers.items():
            stack.enter_context(module.register_forward_pre_hook(hook(name)))
        yield


def read_all(
    model: Network,
    layers: dict[str, Layer],
    batches: Sequence[Tensor],
    read: Read,
    advance: Callable[[int], object] = lambda images: None,
) -> None:
    """Let `read` see what each layer reads of normalised (B,3,S,S) batches, which `advance` counts."""
    with torch.inference_mode(), reading(layers, read):
        for batch in batches:
            model(batch)
            advance(len(batch))


def finite_peak(name: str, read: Tensor) -> float:
    """The largest magnitude of what layer `name` reads. Raises FailedError where it is not finite."""
    peak = float(read.abs().max())
    if not peak < float("inf"):
        raise FailedError(
            f"layer {name} reads NaN or infinity on the calibration images: "
            "quantization needs a sound FP32 network"
        )
    return peak
