"""Images that the tests of what a layer reads share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def batches() -> list[Tensor]:
    images = torch.randn(8, 3, 48, 48, generator=torch.Generator().manual_seed(2))
    return [images[:5], images[5:]]
