"""Which keep counts a sweep tries: those asked for, or the trained ratios scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from gft_edge.bundle.specs import ModelSpec, Stage
from gft_edge.errors import UsageError
from gft_edge.model.networks import Network
from gft_edge.model.schedule import dense_stages, stages_from_keep

Role = Literal["trained", "other", "dense"]

DEFAULT_POINTS = 6
# The share of all patches that the first stage of the smallest point of a grid keeps.
LEAST_SHARE = Fraction(1, 4)


@dataclass(frozen=True)
class KeepCounts:
    """A point of a sweep: the network's stages at other counts. `dense` drops nothing."""

    role: Role
    stages: tuple[Stage, ...]

    @property
    def name(self) -> str:
        """`147,98,49`, as --keep takes it, or `dense`."""
        if self.role == "dense":
            return "dense"
        return ",".join(str(stage.keep) for stage in self.stages)

    @property
    def file_name(self) -> str:
        """The same where a comma would be awkward."""
        return self.name.replace(",", "-")


def keep_counts(
    spec: ModelSpec, model: Network, keep: Sequence[str], points: int
) -> tuple[KeepCounts, ...]:
    """The trained counts first, then those of `keep`, or without any a grid of `points`, then dense.

    What comes twice is taken once. Raises SpecError for counts the network cannot have, UsageError
    for one that has no stages.
    """
    if not spec.stages:
        raise UsageError(f"{spec.name} selects no patches: there are no keep counts to sweep")
    asked = [stages_from_keep(text, spec, model) for text in keep] or scaled(spec, points)
    trained, dense = spec.stages, dense_stages(spec)
    others = [stages for stages in dict.fromkeys(asked) if stages not in (trained, dense)]
    return (
        KeepCounts("trained", trained),
        *(KeepCounts("other", stages) for stages in others),
        KeepCounts("dense", dense),
    )


def scaled(spec: ModelSpec, points: int) -> list[tuple[Stage, ...]]:
    """The trained counts times what lets the first stage keep all patches, down to a quarter of them."""
    first = spec.stages[0].keep
    grid = []
    for number in range(points):
        share = 1 - number * (1 - LEAST_SHARE) / (points - 1)
        scale = share * spec.patch_count / first
        stages, left = [], spec.patch_count
        for stage in spec.stages:
            # Of one patch the next stage would have nothing to choose.
            left = min(left, max(round(scale * stage.keep), min(2, stage.keep)))
            stages.append(Stage(stage.position, left))
        grid.append(tuple(stages))
    return grid
