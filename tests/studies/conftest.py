"""A benchmark to begin, and two trained runs of one backbone: with its stages, and dense."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.runs import trained_on


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of a benchmark, which is not there yet."""
    return tmp_path / "out"


@pytest.fixture
def given(micro_run: Path, micro_data: Path, out: Path) -> tuple[object, ...]:
    """The command that benchmarks the micro run into that folder."""
    return ("benchmark", micro_run, "--data", micro_data, "--out", out)


@pytest.fixture
def gft(tmp_path: Path, micro_run: Path, micro_data: Path) -> Path:
    """The micro GFT as a trained run that keeps no evaluation."""
    shutil.copytree(micro_run, tmp_path / "gft", ignore=shutil.ignore_patterns("evaluation"))
    return trained_on(tmp_path / "gft", micro_data)


@pytest.fixture(scope="session")
def dense_network(tmp_path_factory: pytest.TempPathFactory, micro_run: Path) -> Path:
    """The dense backbone of the micro GFT, at the same weights but for its stages."""
    from gft_edge.model.checkpoint import load_run, save_network
    from gft_edge.model.gft import build_gft
    from tests.support.networks import micro_spec

    _, model = load_run(micro_run)
    plain = micro_spec(stages="none")
    network = build_gft(plain)
    network.backbone.load_state_dict(model.backbone.state_dict())
    folder = tmp_path_factory.mktemp("dense")
    save_network(folder, network, plain)
    return folder


@pytest.fixture
def dense(tmp_path: Path, dense_network: Path, micro_data: Path) -> Path:
    """The dense network as a trained run."""
    return trained_on(Path(shutil.copytree(dense_network, tmp_path / "dense")), micro_data)
