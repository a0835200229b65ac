"""The paper's data sets in small: made once, and a copy for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.data_sets import make_aircraft, make_coco, make_food


@pytest.fixture(scope="session")
def data_sets_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data_sets")
    for make in (make_aircraft, make_food, make_coco):
        make(folder)
    return folder


def _copied(made: Path, tmp_path: Path, name: str) -> Path:
    shutil.copytree(made / name, tmp_path / name)
    return tmp_path / name


@pytest.fixture
def aircraft(data_sets_made: Path, tmp_path: Path) -> Path:
    return _copied(data_sets_made, tmp_path, "fgvc")


@pytest.fixture
def food(data_sets_made: Path, tmp_path: Path) -> Path:
    return _copied(data_sets_made, tmp_path, "food")


@pytest.fixture
def coco(data_sets_made: Path, tmp_path: Path) -> Path:
    return _copied(data_sets_made, tmp_path, "coco")
