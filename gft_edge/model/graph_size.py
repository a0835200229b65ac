"""The largest network that one ONNX file holds, by the number of its weights."""

from __future__ import annotations

from torch import nn

from gft_edge.errors import SpecError

# protobuf writes no message of 2 GiB or more: "Failed to serialize proto".
LIMIT_BYTES = 2**31 - 1

# For the nodes beside the weights; the largest graph here has 2 MB of them.
_NODES_BYTES = 16 << 20


def refuse_large_graph(model: nn.Module, bytes_a_weight: int) -> None:
    """Raise SpecError for a network whose weights of so many bytes, 2 in fp16, no ONNX file holds."""
    reason = why_too_large(model, bytes_a_weight)
    if reason:
        raise SpecError(reason)


def why_too_large(model: nn.Module, bytes_a_weight: int) -> str | None:
    """The size and the limit, where the graph is over it, and what can be done; else None."""
    if _fits(model, bytes_a_weight):
        return None
    halved = bytes_a_weight > 2 and _fits(model, 2)
    weights = _weights(model)
    return (
        f"a network of {weights:,} weights has {weights * bytes_a_weight / 2**30:.2f} GiB in a graph of "
        f"{8 * bytes_a_weight} bits, and an ONNX file holds under {LIMIT_BYTES / 2**30:.0f} GiB: "
        + ("export it in --precision fp16 for onnx or tensorrt" if halved else "take a smaller one")
    )


def _fits(model: nn.Module, bytes_a_weight: int) -> bool:
    return _weights(model) * bytes_a_weight + _NODES_BYTES <= LIMIT_BYTES


def _weights(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.parameters())
