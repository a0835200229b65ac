"""Outputs that are remembered: those that the network gives, asked for once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gft_edge.model.reference import torch_outputs
from gft_edge.model.remembered import Remembered
from gft_edge.runtime.outputs import Outputs
from tests.support.networks import wide_network
from tests.support.pictures import smooth_pixels

PIXELS = smooth_pixels(6, 48)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gft-edge" / "references"


def equal(ours: Outputs, theirs: Outputs) -> bool:
    pairs = zip((*ours.kept, *ours.ranks), (*theirs.kept, *theirs.ranks), strict=True)
    return np.allclose(ours.logits, theirs.logits, atol=1e-5) and all(
        np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs
    )


@pytest.mark.parametrize("stages", ["0:20,1:15,2:10", "none"])
def test_an_image_is_computed_once_for_all_commands(stages: str) -> None:
    spec, model = wide_network(stages)
    images: list[int] = []
    model.backbone.patch_embed.register_forward_pre_hook(
        lambda _, given: images.append(len(given[0]))
    )
    expected = torch_outputs(model, PIXELS, spec.preprocessing)
    images.clear()
    done: list[int] = []
    assert equal(
        Remembered(model, spec).outputs(PIXELS[:4], done.append), rows(expected, [0, 1, 2, 3])
    )
    assert sum(images) == sum(done) == 4
    again = np.concatenate([PIXELS[::-1], PIXELS[:1]])
    found = Remembered(model, spec).outputs(again)
    assert sum(images) == 6
    assert equal(found, rows(expected, [5, 4, 3, 2, 1, 0, 0]))


def rows(found: Outputs, chosen: list[int]) -> Outputs:
    return Outputs(
        found.logits[chosen],
        tuple(kept[chosen] for kept in found.kept),
        tuple(ranks[chosen] for ranks in found.ranks),
    )


def test_other_weights_are_another_network(cache: Path) -> None:
    spec, model = wide_network()
    before = Remembered(model, spec).outputs(PIXELS)
    with torch.no_grad():
        model.backbone.head.bias[0] += 1
    after = Remembered(model, spec).outputs(PIXELS)
    assert np.allclose(after.logits[:, 0], before.logits[:, 0] + 1, atol=1e-5)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_what_is_damaged_is_computed_again(content: bytes | None, cache: Path) -> None:
    spec, model = wide_network()
    before = Remembered(model, spec).outputs(PIXELS)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    # In the middle of an array: what the archive's checksum tells.
    middle = len(whole) // 2
    file.write_bytes(
        whole[:middle] + b"damaged!" + whole[middle + 8 :] if content is None else content
    )
    assert equal(Remembered(model, spec).outputs(PIXELS), before)


def test_without_a_cache_everything_is_computed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    spec, model = wide_network()
    assert equal(
        Remembered(model, spec).outputs(PIXELS), torch_outputs(model, PIXELS, spec.preprocessing)
    )
