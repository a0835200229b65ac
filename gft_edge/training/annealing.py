"""How many patches a training keeps while the counts still fall to the schedule."""

from __future__ import annotations

from collections.abc import Sequence


def annealed_keep(
    schedule: Sequence[int], patches: int, step: int, falling_steps: int
) -> tuple[int, ...]:
    """What each stage keeps at a step, counted from 0.

    Every count falls linearly from all `patches` of the grid at step 0 to the stage's own in
    `schedule` at `falling_steps`, and stays there. Where the schedule does not ascend, neither do the
    counts of any step: a stage never asks for more than the one before it left.
    """
    if step >= falling_steps:
        return tuple(schedule)
    return tuple(patches - (patches - keep) * step // falling_steps for keep in schedule)
