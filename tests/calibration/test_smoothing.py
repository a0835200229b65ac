"""What layers read, by channel and by tensor: measured by each method, and levelled without a change."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gft_edge.calibration.layers import quantizable_layers
from gft_edge.calibration.sampling import METHODS, activation_peaks
from gft_edge.calibration.sensitivity import (
    damage_of_all,
    tensor_peaks,
)
from gft_edge.calibration.smoothing import channel_peaks, smooth
from gft_edge.errors import FailedError
from gft_edge.model.gft import GFT
from gft_edge.model.network import Network
from tests.calibration.networks import (
    EMBEDDING,
    OUTLIER,
    equal_weights,
    hooks,
    network,
    with_outlier,
)
from tests.support.refusals import refusal_of


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
