"""Layers in INT8 on small networks: which there are, and what rounding each of them costs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gft_edge.calibration.layers import layer_macs, quantizable_layers, reading
from gft_edge.calibration.sensitivity import (
    LayerSensitivity,
    damage_of_all,
    in_int8,
    rounded_weight,
    sensitivity,
    tensor_peaks,
)
from gft_edge.errors import FailedError
from tests.calibration.networks import (
    EMBEDDING,
    OUTLIER,
    PATCH_PX,
    PATCHES,
    WIDTH,
    block_layers,
    equal_weights,
    hooks,
    logits_of,
    network,
    with_outlier,
)
from tests.support.refusals import refusal_of


def test_layers_are_listed_as_they_run_without_the_head() -> None:
    layers = quantizable_layers(network())
    assert list(layers) == [EMBEDDING, *block_layers(0, 1, 2)]
    assert isinstance(layers[EMBEDDING], nn.Conv2d)
    first, second = ([f"layers.{n}.attn.qkv", f"layers.{n}.attn.proj"] for n in (0, 1))
    with_gala_layers = quantizable_layers(network("1:20,3:15", gala="layer"))
    assert list(with_gala_layers) == [
        EMBEDDING, *block_layers(0), *first, *block_layers(1, 2), *second,
    ]  # fmt: skip


def test_the_work_of_a_layer_is_its_weights_times_the_tokens_it_reads() -> None:
    model = network("0:20,1:15")
    macs = layer_macs(model, quantizable_layers(model))
    square = WIDTH * WIDTH
    assert macs[EMBEDDING] == PATCHES * WIDTH * 3 * PATCH_PX**2
    # A block stage drops patches between attention and MLP; the class token is one more.
    tokens = {0: (37, 21), 1: (21, 16), 2: (16, 16)}
    for block, (attention, mlp) in tokens.items():
        qkv, proj, fc1, fc2 = (macs[name] for name in block_layers(block))
        assert (qkv, proj) == (3 * square * attention, square * attention)
        assert (fc1, fc2) == (4 * square * mlp, 4 * square * mlp)


def test_a_gala_layer_projects_what_it_kept() -> None:
    model = network("1:20", gala="layer")
    macs = layer_macs(model, quantizable_layers(model))
    assert macs["layers.0.attn.qkv"] == 37 * 3 * WIDTH * WIDTH
    assert macs["layers.0.attn.proj"] == 21 * WIDTH * WIDTH


def test_what_a_layer_reads_can_be_seen_and_replaced(batches: list[Tensor]) -> None:
    model = network()
    layers = quantizable_layers(model)
    seen: list[str] = []

    def read(name: str, given: Tensor) -> Tensor | None:
        seen.append(name)
        return torch.zeros_like(given) if name == OUTLIER else None

    plain = logits_of(model, batches[:1])
    with reading(layers, read):
        replaced = logits_of(model, batches[:1])
    assert seen == list(layers)
    assert not torch.equal(plain, replaced)
    assert torch.equal(plain, logits_of(model, batches[:1]))


@pytest.fixture(scope="module")
def rows(batches: list[Tensor]) -> list[LayerSensitivity]:
    return sensitivity(network(), batches, [0, 1, 2, 0, 1, 2, 0, 1])


def test_every_layer_is_ranked_by_damage_for_its_work(rows: list[LayerSensitivity]) -> None:
    assert sorted(row.layer for row in rows) == sorted(quantizable_layers(network()))
    worth = [row.damage / row.macs for row in rows]
    assert worth == sorted(worth, reverse=True)
    assert sum(row.macs for row in rows) == pytest.approx(1)
    assert all(row.macs > 0 for row in rows)
    for row in rows:
        assert len(row.overlap_loss) == len(row.score_noise) == 2
        assert all(0 <= loss <= 1 for loss in row.overlap_loss)
        assert all(noise >= 0 for noise in row.score_noise)
        assert row.accuracy_drop is not None
        assert -1 <= row.accuracy_drop <= 1
        assert -1e-6 < row.cosine_drop < 0.5


def test_a_layer_behind_a_stage_cannot_disturb_its_scores(rows: list[LayerSensitivity]) -> None:
    noise = {row.layer: row.score_noise for row in rows}
    assert noise["backbone.blocks.2.mlp.fc2"] == (0, 0)
    assert noise["backbone.blocks.0.mlp.fc2"][0] == 0
    assert noise["backbone.blocks.0.mlp.fc2"][1] > 0
    assert noise["backbone.blocks.0.attn.qkv"][0] > 0
    # In block mode a stage scores before its own projection runs.
    assert noise["backbone.blocks.0.attn.proj"][0] == 0


def test_a_layer_that_reads_an_outlier_is_ranked_first(
    rows: list[LayerSensitivity], batches: list[Tensor]
) -> None:
    assert rows[0].layer != OUTLIER
    ranking = sensitivity(with_outlier(network()), batches, [0] * 8)
    assert ranking[0].layer == OUTLIER
    before = next(row for row in rows if row.layer == OUTLIER)
    assert ranking[0].damage > 10 * before.damage


def test_a_dense_network_is_ranked_by_its_logits(batches: list[Tensor]) -> None:
    ranking = sensitivity(network("none"), batches, [0] * 8)
    assert len(ranking) == 13
    for row in ranking:
        assert (row.overlap_loss, row.score_noise) == ((), ())
        assert row.damage == pytest.approx(5 * row.cosine_drop)
    assert damage_of_all(network("none"), batches) > 0


def test_sensitivity_counts_layers_and_leaves_the_network_as_it_was(batches: list[Tensor]) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    counted: list[int] = []
    sensitivity(model, batches, [0] * 8, counted.append)
    assert sum(counted) == 13
    assert hooks(model) == 0
    assert equal_weights(model, before)


def test_all_layers_together_cost_more_than_most_alone(
    rows: list[LayerSensitivity], batches: list[Tensor]
) -> None:
    # Not more than any: errors of two layers may cancel.
    damages = sorted(row.damage for row in rows)
    together = damage_of_all(network(), batches)
    assert together > damages[-2]
    assert together < 3 * sum(damages)


def test_what_is_in_int8_is_restored_when_it_fails(batches: list[Tensor]) -> None:
    model = network()
    layers = quantizable_layers(model)
    peaks = tensor_peaks(model, layers, batches)
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    with in_int8(layers, peaks):
        for name, layer in layers.items():
            assert not torch.equal(layer.weight, before[name])
    with pytest.raises(RuntimeError, match="channels"), in_int8(layers, peaks):
        model(batches[0][:, :2])
    assert hooks(model) == 0
    for name, layer in layers.items():
        assert torch.equal(layer.weight, before[name])
    # A layer without a range fails while the hooks run.
    with pytest.raises(KeyError), in_int8(layers, {}), torch.inference_mode():
        model(batches[0])
    for name, layer in layers.items():
        assert torch.equal(layer.weight, before[name])


def test_weights_are_rounded_by_output_channel() -> None:
    weight = torch.tensor([[1.0, -127.0, 0.4], [0.01, 0.0, -0.0004], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[1.0, -127.0, 0.0], [0.01, 0.0, -0.01 * 5 / 127], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(rounded_weight(weight), expected)
    kernel = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    rounded = rounded_weight(kernel)
    step = kernel.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    assert bool(((kernel - rounded).abs() <= step / 2 * 1.001).all())
    assert all(len(channel.unique()) > 8 for channel in rounded)


def test_layers_in_high_precision_are_left_exact(batches: list[Tensor]) -> None:
    model = network()
    layers = quantizable_layers(model)
    peaks = tensor_peaks(model, layers, batches)
    exact = logits_of(model, batches)
    last = list(layers)[-1]
    for low in ({}, {last: layers[last]}):
        with in_int8(low, peaks):
            lost = (logits_of(model, batches) - exact).abs().max()
        assert lost < exact.abs().max()
        assert bool(lost) == bool(low)


@pytest.mark.parametrize("measure", [lambda m, b: sensitivity(m, b, [0] * 8), damage_of_all])
def test_nan_in_a_network_to_rank_is_named(measure: Any, batches: list[Tensor]) -> None:
    read, unread = network(), network()
    read.backbone.blocks[1].attn.qkv.weight.data[100, 4] = torch.nan
    refusal_of(FailedError, lambda: measure(read, batches), "layer backbone.blocks.1.attn.proj")
    assert hooks(read) == 0
    # No ranked layer reads it.
    unread.backbone.blocks[2].mlp.fc2.weight.data[3, 4] = torch.nan
    refusal_of(FailedError, lambda: measure(unread, batches), "logits", "NaN")
