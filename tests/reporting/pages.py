"""Pages and points that both the tests of words and those in a browser look at."""

from __future__ import annotations

import random

from gft_edge.profiling.report import Profile
from gft_edge.reporting.page import html_of
from gft_edge.reporting.pareto import ParetoPoint
from gft_edge.reporting.profile_page import profile_page


def page_of(**profiles: Profile) -> str:
    """The HTML of profiles; the only one is called by no file."""
    (first, *others) = profiles.values()
    return html_of(profile_page(profiles if others else {"": first}))


def points() -> list[ParetoPoint]:
    """Thirty deployments, two thirds of them in a crowd."""
    noise = random.Random(3)
    crowd = [(noise.gauss(12, 0.6), noise.gauss(0.9, 0.002)) for _ in range(20)]
    rest = [(noise.uniform(4, 90), noise.uniform(0.82, 0.92)) for _ in range(10)]
    engines = ("onnx", "openvino", "tensorrt")
    return [
        ParetoPoint(f"gft_tiny_{n} {engines[n % 3]} int8", ms, share, engines[n % 3])
        for n, (ms, share) in enumerate(crowd + rest)
    ]
