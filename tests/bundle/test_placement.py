"""Where in the GFT a layer lies, by its name or by its data."""

from __future__ import annotations

import pytest

from gft_edge.bundle.placement import Layer, group_of, groups_by_flow


def step(text: str) -> Layer:
    """`NODE KIND: a b -> c`."""
    head, _, flow = text.partition(": ")
    node, kind = head.split()
    reads, _, writes = flow.partition(" -> ")
    return Layer(node, kind, "fp32", (node,), tuple(reads.split()), tuple(writes.split()))


def groups(*lines: str) -> list[str]:
    return groups_by_flow([step(line) for line in lines])


@pytest.mark.parametrize(
    ("node", "group"),
    [
        ("backbone.patch_embed.proj/Conv", "patch embedding"),
        ("backbone.blocks.11.attn/MatMul_2", "block 11"),
        ("layers.0.norm/LayerNormalization", "GALA layer 1"),
        ("selections.2/TopK", "selection 3"),
        ("backbone.norm/LayerNormalization", "head"),
        ("backbone.head/Gemm", "head"),
        ("logits", "head"),
        ("Reshape_12", ""),
    ],
)
def test_a_node_lies_in_the_module_that_it_is_named_after(node: str, group: str) -> None:
    assert group_of([node]) == group


def test_a_layer_of_several_nodes_lies_where_most_of_them_do() -> None:
    nodes = ["backbone.blocks.0/Add_2", "backbone.blocks.1.norm1/A", "backbone.blocks.1.norm1/B"]
    assert group_of([*nodes, "Cast_3"]) == "block 1"


def test_an_unnamed_layer_lies_where_its_data_comes_from() -> None:
    assert groups(
        "backbone.patch_embed/Conv Conv: images -> a",
        "backbone.blocks.0/Add Add: a -> b",
        "Gemm_4 Gemm: b weight -> c",
        # A residual sum: the latest group, whatever the order of its inputs.
        "Add_3 Add: c a -> d",
        "Add_4 Add: a c -> e",
    ) == ["patch embedding", "block 0", "block 0", "block 0", "block 0"]


def test_what_precedes_all_names_lies_where_it_is_read() -> None:
    assert (
        groups(
            "Cast Cast: images -> a",
            "Transpose Transpose: a -> b",
            "backbone.patch_embed.proj/Conv Conv: b w -> c",
        )
        == ["patch embedding"] * 3
    )


def test_a_dequantized_weight_lies_with_the_layer_that_reads_it() -> None:
    assert groups(
        "weight_DequantizeLinear DequantizeLinear: q scale -> w",
        "backbone.patch_embed/Conv Conv: images v -> a",
        "backbone.blocks.3.mlp.fc1/Gemm Gemm: a w -> b",
    ) == ["block 3", "patch embedding", "block 3"]


def test_all_that_a_gather_needs_lies_in_its_selection_and_what_comes_out_where_it_was() -> None:
    assert groups(
        "backbone.blocks.2/Add Add: images -> x",
        "selections.0/TopK TopK: x -> scores kept",
        "Reshape_1 Reshape: kept -> index",
        "Slice_1 Slice: x -> prefix",
        "Slice_2 Slice: x -> patches",
        "Gather Gather: patches index -> rows",
        "Reshape_2 Reshape: rows -> shaped",
        "Concat_2 Concat: prefix shaped -> x2",
        "Transpose_7 Transpose: x2 -> x3",
        "Mul Mul: x3 -> x4",
    ) == ["block 2", *["selection 1"] * 7, "block 2", "block 2"]


def test_a_layer_that_others_read_too_stays_out_of_the_selection() -> None:
    assert groups(
        "layers.0.norm/Add Add: images -> x",
        "Squeeze Squeeze: x -> q",
        "selections.0/TopK TopK: q -> scores kept",
        "Transpose_3 Transpose: q -> q2",
        "Gather Gather: q2 kept -> rows",
    ) == ["GALA layer 1", "GALA layer 1", "selection 1", "selection 1", "selection 1"]


def test_what_nothing_tells_is_other() -> None:
    assert groups("kernel_7 Kernel: ->") == ["other"]
    assert groups_by_flow([]) == []
