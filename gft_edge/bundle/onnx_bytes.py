"""ONNX bytes written and read without the onnx package, which a device does not have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class GraphNode:
    """A node of an ONNX graph and the tensors that it reads and writes; absent inputs are left out."""

    name: str
    operator: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


def graph_nodes(model: bytes) -> tuple[GraphNode, ...]:
    """The nodes of a serialized ModelProto, in its order.

    Field numbers are those of onnx.proto: ModelProto.graph 7, GraphProto.node 1, NodeProto.input 1,
    .output 2, .name 3 and .op_type 4.
    """
    graphs = [content for number, content in _fields(memoryview(model)) if number == 7]
    return tuple(
        _graph_node(content)
        for graph in graphs
        for number, content in _fields(graph)
        if number == 1
    )


def _graph_node(message: memoryview) -> GraphNode:
    texts: dict[int, list[str]] = {1: [], 2: [], 3: [""], 4: [""]}
    for number, content in _fields(message):
        if number in texts:
            texts[number].append(str(content, "utf-8"))
    reads, writes = (tuple(filter(None, texts[number])) for number in (1, 2))
    return GraphNode(texts[3][-1], texts[4][-1], reads, writes)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each length-delimited field; others are passed over."""
    place = 0
    while place < len(message):
        key, place = _read_varint(message, place)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            _, place = _read_varint(message, place)
        elif wire_type == 2:
            size, place = _read_varint(message, place)
            yield number, message[place : place + size]
            place += size
        else:
            place += {1: 8, 5: 4}[wire_type]


def _read_varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number and where it ends."""
    number = shift = 0
    while True:
        digit = message[place]
        place += 1
        number |= (digit & 0x7F) << shift
        shift += 7
        if digit < 0x80:
            return number, place


INT64, FLOAT = 7, 1  # of TensorProto.DataType


def graph_output(name: str, element_type: int = INT64) -> bytes:
    """Bytes that, appended to a serialized ModelProto, make an inner tensor a graph output.

    Concatenated protobuf messages merge, and repeated fields append
    (protobuf.dev/programming-guides/encoding/#last-one-wins), so a device needs no onnx package to
    see the kept patches. Field numbers are those of onnx.proto: ModelProto.graph 7,
    GraphProto.output 12, ValueInfoProto.name 1 and .type 2, TypeProto.tensor_type 1,
    Tensor.elem_type 1.
    """
    typed = _field(2, _field(1, bytes([0x08, element_type])))
    return _field(7, _field(12, _field(1, name.encode()) + typed))


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, *_varint(len(content))]) + content


def _varint(value: int) -> list[int]:
    digits = []
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return [*digits, value]
