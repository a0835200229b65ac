"""ONNX bytes written without the onnx package: an inner tensor of a graph becomes an output."""

from __future__ import annotations


def graph_output(name: str) -> bytes:
    """Bytes that, appended to a serialized ModelProto, make an inner int64 tensor a graph output.

    Concatenated protobuf messages merge, and repeated fields append
    (protobuf.dev/programming-guides/encoding/#last-one-wins), so a device needs no onnx package to
    see the kept patches. Field numbers are those of onnx.proto: ModelProto.graph 7,
    GraphProto.output 12, ValueInfoProto.name 1 and .type 2, TypeProto.tensor_type 1,
    Tensor.elem_type 1 = INT64 (7).
    """
    int64 = _field(2, _field(1, b"\x08\x07"))
    return _field(7, _field(12, _field(1, name.encode()) + int64))


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, *_varint(len(content))]) + content


def _varint(value: int) -> list[int]:
    digits = []
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return [*digits, value]
