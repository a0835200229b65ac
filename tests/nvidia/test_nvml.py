"""NVML's bindings have the names that are asked for, and refuse as expected where there is no driver."""

from __future__ import annotations

import pytest

from gft_edge.nvidia import nvml
from tests.support import fake_nvml


def test_every_name_of_the_double_is_one_of_the_bindings() -> None:
    import pynvml

    names = [name for name in vars(fake_nvml.fake_nvml([])) if name.startswith(("nvml", "NVML"))]
    assert len(names) > len(fake_nvml.ASKED)
    assert [name for name in names if not hasattr(pynvml, name)] == []


def test_without_a_driver_there_is_no_card_and_it_is_said_why() -> None:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert nvml.cards() == ()
        with pytest.raises(OSError, match="NVML"), nvml.power_meter():
            pass
    else:
        pynvml.nvmlShutdown()
        assert len(nvml.cards()) >= 1
