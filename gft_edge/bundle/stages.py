"""The grammar of stages and keep counts, and the check that a network can have them."""

from __future__ import annotations

import re
from fractions import Fraction

from gft_edge.bundle.specs import GalaMode, Stage
from gft_edge.errors import SpecError

_INTEGER = re.compile(r"-?[0-9]{1,9}")
_PERCENT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*%")
_RATIO = re.compile(r"[0-9]{0,9}\.[0-9]{1,9}")
_AUTO = re.compile(r"auto:([0-9]{1,9})", re.IGNORECASE)

_STAGES_EXAMPLE = (
    "--stages 8:147,9:98,10:49 or --stages 8:75%,9:50%,10:25% or --stages "
    "3:auto:16,6:auto:16,9:auto:16"
)
_KEEP_EXAMPLE = "--keep 120,80,40 or --keep 60%,40%,20% or --keep auto:16,auto:16,auto:16"


def parse_stages(text: str, patch_count: int, prefix_tokens: int) -> tuple[Stage, ...]:
    """Read `8:147,9:98,10:49` into stages: a position and a keep count each; `none` is no stage.

    A keep count is a number of patches; `75%` or `0.75` of all `patch_count`, rounded down; or
    `auto:16`: what the paper's straight line leaves at stage i of n, (n + 1 - i) / (n + 1) of all
    patches, rounded down until the tokens, `prefix_tokens` (class, distillation, register)
    included, are a multiple of 16, or of any other number. Raises SpecError for anything else.
    """
    if text.strip().lower() == "none":
        return ()
    entries = [entry.strip() for entry in text.split(",")]
    stages = []
    for number, entry in enumerate(entries, start=1):
        position, colon, keep = (part.strip() for part in entry.partition(":"))
        where = f"stage {number} ({entry})"
        if not colon or not _INTEGER.fullmatch(position):
            raise SpecError(f"{where} is not POSITION:KEEP: write for example {_STAGES_EXAMPLE}")
        line = Fraction(len(entries) + 1 - number, len(entries) + 1)
        keep_count = _keep_count(keep, line, patch_count, prefix_tokens, where, _STAGES_EXAMPLE)
        stages.append(Stage(int(position), keep_count))
    return tuple(stages)


def parse_keep(
    text: str, stages: tuple[Stage, ...], patch_count: int, prefix_tokens: int
) -> tuple[Stage, ...]:
    """Read `120,80,40`, a keep count of parse_stages' grammar for each of `stages`, in their places.

    Raises SpecError for another number of counts, and where there are no stages.
    """
    if not stages:
        raise SpecError(
            f"--keep {text} is for a network with stages, and this one keeps all: leave it out"
        )
    entries = [entry.strip() for entry in text.split(",")]
    if len(entries) != len(stages):
        raise SpecError(
            f"--keep {text} has {len(entries)} counts for {len(stages)} stages: "
            f"give {len(stages)} with commas between"
        )
    counted = []
    for number, (stage, keep) in enumerate(zip(stages, entries, strict=True), start=1):
        where = f"--keep {text}, stage {number}"
        line = Fraction(len(stages) + 1 - number, len(stages) + 1)
        keep_count = _keep_count(keep, line, patch_count, prefix_tokens, where, _KEEP_EXAMPLE)
        counted.append(Stage(stage.position, keep_count))
    return tuple(counted)


def _keep_count(
    keep: str, line: Fraction, patch_count: int, prefix_tokens: int, where: str, example: str
) -> int:
    """`line` is the paper's share at this stage. Whether so many are left is check_stages' to say."""
    if _INTEGER.fullmatch(keep):
        return int(keep)
    if found := _AUTO.fullmatch(keep):
        multiple = int(found[1])
        if multiple < 1:
            raise SpecError(f"{where}: auto:0 is no multiple: give 1 or more, as auto:16")
        tokens = int(line * patch_count) + prefix_tokens
        count = tokens // multiple * multiple - prefix_tokens
        if count < 1:
            raise SpecError(
                f"{where}: {tokens} tokens ({prefix_tokens} of them no patches) hold no multiple of "
                f"{multiple} with a patch in it: give a smaller one"
            )
        return count
    percent = _PERCENT.fullmatch(keep)
    if not percent and not _RATIO.fullmatch(keep):
        raise SpecError(f"{where}: {keep!r} is no keep count: write for example {example}")
    # Exact: 0.29 of 100 patches are 29, and 28 in floating point.
    ratio = Fraction(percent[1]) / 100 if percent else Fraction(keep)
    if not 0 < ratio <= 1:
        raise SpecError(f"{where}: {keep} is no share of the patches: give more than 0, up to 100%")
    return max(1, int(ratio * patch_count))


def stages_text(stages: tuple[Stage, ...]) -> str:
    """`8:147, 9:98`, as a person reads it."""
    return ", ".join(f"{stage.position}:{stage.keep}" for stage in stages)


def check_stages(stages: tuple[Stage, ...], gala: GalaMode, depth: int, patch_count: int) -> None:
    """Raise SpecError unless each stage lies in the network, keeps enough, and reaches the logits."""
    left = patch_count
    previous = -1
    for number, stage in enumerate(stages, start=1):
        where = f"stage {number} ({stage.position}:{stage.keep})"
        # A selection inside the last block, after its attention, could not change the class token.
        last = depth if gala == "layer" else depth - 2
        if not 0 <= stage.position <= last:
            raise SpecError(
                f"{where} is out of range: a {depth}-block network takes positions 0 to {last} "
                f"in {gala} mode"
            )
        if stage.position < previous or (gala == "block" and stage.position == previous):
            order = "ascend" if gala == "block" else "not descend"
            raise SpecError(f"{where} follows position {previous}: positions must {order}")
        if left < 2:
            raise SpecError(f"{where} has one patch left to choose from: leave the stage out")
        if not 1 <= stage.keep <= left:
            raise SpecError(
                f"{where} keeps {stage.keep} patches and {left} are left there: "
                f"choose a count from 1 to {left}"
            )
        previous, left = stage.position, stage.keep
