"""Layers in INT8 on small networks: which there are, what they read, what smoothing and rounding do."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gft_edge.bundle.specs import GalaMode, Score
from gft_edge.calibration.charts import sensitivity_chart
from gft_edge.calibration.layers import layer_macs, quantizable_layers, reading
from gft_edge.calibration.sampling import METHODS, activation_peaks
from gft_edge.calibration.sensitivity import (
    LayerSensitivity,
    damage_of_all,
    in_int8,
    outputs_in_int8,
    rounded_weight,
    sensitivity,
    tensor_peaks,
)
from gft_edge.calibration.smoothing import channel_peaks, smooth
from gft_edge.errors import FailedError
from gft_edge.model.gft import GFT
from gft_edge.model.networks import Network
from tests.support.networks import wide_network
from tests.support.refusals import refusal_of

# 48 px in patches of 8: 36 patches and the class token.
PATCHES, WIDTH, PATCH_PX = 36, 48, 8
OUTLIER = "backbone.blocks.1.mlp.fc1"
EMBEDDING = "backbone.patch_embed.proj"


def network(
    stages: str = "0:20,1:15", gala: GalaMode = "block", score: Score = "gala", **changes: int
) -> GFT:
    """Three blocks of wide weights, biases and gains, so that each shows in the logits."""
    return wide_network(stages, gala, score, bias_spread=1 / 4, depth=3, **changes)[1]


def with_outlier(model: GFT, block: int = 1, gain: float = 1000) -> GFT:
    """The same function, but for one channel that fc1 of a block reads `gain` times as large."""
    changed = copy.deepcopy(model)
    chosen: Any = changed.backbone.blocks[block]
    chosen.norm2.weight.data[5] *= gain
    chosen.norm2.bias.data[5] *= gain
    chosen.mlp.fc1.weight.data[:, 5] /= gain
    return changed


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    images = torch.randn(8, 3, 48, 48, generator=torch.Generator().manual_seed(2))
    return [images[:5], images[5:]]


def logits_of(model: GFT, batches: list[Tensor]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in batches])


def block_layers(*numbers: int) -> list[str]:
    return [
        f"backbone.blocks.{number}.{layer}"
        for number in numbers
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]


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


def hooks(model: GFT) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_reading_ends_when_the_forward_fails(batches: list[Tensor]) -> None:
    model = network()
    layers = quantizable_layers(model)
    assert hooks(model) == 0
    with reading(layers, lambda *_: None):
        assert hooks(model) == len(layers)
    with pytest.raises(RuntimeError, match="channels"), reading(layers, lambda *_: None):
        model(batches[0][:, :2])
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("model", "alpha"),
    [
        pytest.param(network, 0.15, id="block"),
        pytest.param(lambda: network("1:20,3:15", gala="layer"), 0.95, id="layer"),
        pytest.param(lambda: network(score="class"), 0.5, id="class"),
        pytest.param(lambda: network(qk_norm=1, init_values=1), 0.95, id="with LayerScale"),
        pytest.param(lambda: network("none"), 0.5, id="dense"),
    ],
)
def test_smoothing_computes_the_same(
    model: Callable[[], GFT], alpha: float, batches: list[Tensor]
) -> None:
    plain = model()
    before = copy.deepcopy(plain.state_dict())
    peaks = channel_peaks(plain, batches)
    smoothed = smooth(plain, peaks, alpha)
    for name in peaks:
        ours, theirs = (quantizable_layers(m)[name].weight for m in (plain, smoothed))
        # Everything but the patch embedding is scaled: LayerNorm, values or a Mul take it up.
        assert torch.equal(ours, theirs) == (name == EMBEDDING), name
    for batch in batches:
        with torch.inference_mode():
            logits, kept = plain.forward_with_kept(batch)
            same, same_kept = smoothed.forward_with_kept(batch)
        torch.testing.assert_close(same, logits, atol=1e-4, rtol=1e-4)
        for ours_kept, theirs_kept in zip(kept, same_kept, strict=True):
            assert torch.equal(ours_kept, theirs_kept)
    # The network that was given is as it was.
    assert hooks(plain) == 0
    assert equal_weights(plain, before)


def equal_weights(model: Network, before: Mapping[str, Tensor]) -> bool:
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in after)


def unevenness(model: Network, batches: list[Tensor]) -> dict[str, float]:
    """Layer -> how far the largest channel it reads stands out from the median."""
    return {
        name: float(peak.max() / peak.median())
        for name, peak in channel_peaks(model, batches).items()
    }


def test_smoothing_levels_the_channels_that_a_layer_reads_and_makes_int8_cheaper(
    batches: list[Tensor],
) -> None:
    model = with_outlier(network())
    peaks = channel_peaks(model, batches)
    smoothed = [smooth(model, peaks, alpha) for alpha in (None, 0.15, 0.5, 0.95)]
    levels = [unevenness(each, batches)[OUTLIER] for each in smoothed]
    assert levels[0] > 300
    assert levels[0] > levels[1] > levels[2] > levels[3]
    assert levels[3] < 2
    assert damage_of_all(smoothed[2], batches) < 0.5 * damage_of_all(model, batches)


def test_no_smoothing_gives_a_copy_of_equal_weights(batches: list[Tensor]) -> None:
    model = network()
    plain = smooth(model, channel_peaks(model, batches), None)
    assert plain is not model
    assert equal_weights(plain, model.state_dict())
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() != plain.state_dict()[name].data_ptr()


def test_channel_peaks_are_of_all_batches_and_counted(batches: list[Tensor]) -> None:
    model = network()
    counted: list[int] = []
    both = channel_peaks(model, batches, counted.append)
    each = [channel_peaks(model, [batch]) for batch in batches]
    assert counted == [5, 3]
    for name, peak in both.items():
        torch.testing.assert_close(peak, torch.maximum(each[0][name], each[1][name]))
        assert peak.shape == quantizable_layers(model)[name].weight.shape[1:2] or "embed" in name


@pytest.mark.parametrize("method", METHODS)
def test_no_estimator_goes_beyond_the_extreme(method: str, batches: list[Tensor]) -> None:
    model = network()
    extremes = tensor_peaks(model, quantizable_layers(model), batches)
    counted: list[int] = []
    peaks = activation_peaks(model, batches, method, counted.append)
    assert list(peaks) == list(extremes)
    assert counted == [5, 3]
    for name, peak in peaks.items():
        assert 0.5 * extremes[name] < peak <= extremes[name], name
    assert (peaks == extremes) == (method == "minmax")


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_reads_nan_or_only_zeros_is_named(method: str, batches: list[Tensor]) -> None:
    nan, zeros = network(), network()
    nan.backbone.blocks[1].mlp.fc1.weight.data[3, 4] = torch.nan
    zeros.backbone.blocks[2].norm2.weight.data.zero_()
    zeros.backbone.blocks[2].norm2.bias.data.zero_()
    for model, words in (
        (nan, ("layer backbone.blocks.1.mlp.fc2", "NaN")),
        (zeros, ("layer backbone.blocks.2.mlp.fc1", "zeros")),
    ):
        work = functools.partial(activation_peaks, model, batches, method)
        refusal_of(FailedError, work, *words)
        assert hooks(model) == 0


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


def test_a_dense_network_is_ranked_by_its_logits(batches: list[Tensor], tmp_path: Path) -> None:
    ranking = sensitivity(network("none"), batches, [0] * 8)
    assert len(ranking) == 13
    for row in ranking:
        assert (row.overlap_loss, row.score_noise) == ((), ())
        assert row.damage == pytest.approx(5 * row.cosine_drop)
    assert damage_of_all(network("none"), batches) > 0
    assert png(ranking, (), tmp_path / "dense.png").size[0] == 990


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
    exact = outputs_in_int8(model, batches, tuple(layers))
    torch.testing.assert_close(torch.from_numpy(exact.logits), logits_of(model, batches))
    assert [stage.shape for stage in exact.kept] == [(8, 20), (8, 15)]
    some = outputs_in_int8(model, batches, list(layers)[:-1])
    assert 0 < abs(some.logits - exact.logits).max() < abs(exact.logits).max()


@pytest.mark.parametrize("measure", [lambda m, b: sensitivity(m, b, [0] * 8), damage_of_all])
def test_nan_in_a_network_to_rank_is_named(measure: Any, batches: list[Tensor]) -> None:
    read, unread = network(), network()
    read.backbone.blocks[1].attn.qkv.weight.data[100, 4] = torch.nan
    refusal_of(FailedError, lambda: measure(read, batches), "layer backbone.blocks.1.attn.proj")
    assert hooks(read) == 0
    # No ranked layer reads it.
    unread.backbone.blocks[2].mlp.fc2.weight.data[3, 4] = torch.nan
    refusal_of(FailedError, lambda: measure(unread, batches), "logits", "NaN")


def png(ranking: list[LayerSensitivity], high: tuple[str, ...], path: Path) -> Image.Image:
    sensitivity_chart(ranking, high, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with Image.open(path) as picture:
        picture.load()
        return picture


def test_the_chart_draws_the_ranking_and_marks_what_stays_precise(
    rows: list[LayerSensitivity], tmp_path: Path
) -> None:
    plain = png(rows, (), tmp_path / "plain.png")
    marked = png(rows, (rows[0].layer,), tmp_path / "marked.png")
    assert plain.tobytes() != marked.tobytes()
    assert plain.size[0] == 990
    assert png(rows[:3], (), tmp_path / "short.png").size[1] < plain.size[1]
