"""The keep counts that a benchmark tries, and the accuracy of the trained network at each."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import t

from gft_edge.bundle.specs import ModelSpec, Progress, Say, Stage
from gft_edge.errors import FailedError, UsageError
from gft_edge.model.cost import cost_of
from gft_edge.model.network import Network
from gft_edge.model.schedule import at_stages, dense_stages, stages_from_keep
from gft_edge.studies.evaluation import Case, chosen_device, evaluate_case
from gft_edge.studies.memory import Memory
from gft_edge.studies.variants import AtCounts, Estimate, KeepCounts, Rests
from gft_edge.training.data import targets_of
from gft_edge.training.logits import network_logits, silent
from gft_edge.training.processes import accelerator_on

# The share of all patches that the first stage of the smallest point of a grid keeps.
LEAST_SHARE = Fraction(1, 4)
CONFIDENCE = 0.95


def keep_counts(
    spec: ModelSpec, model: Network, keep: Sequence[str], points: int
) -> tuple[KeepCounts, ...]:
    """The trained counts first, then those of `keep`, or without any a grid of `points`, then dense.

    What comes twice is taken once. Raises SpecError for counts the network cannot have, UsageError
    for one that has no stages.
    """
    if not spec.stages:
        raise UsageError(f"{spec.name} selects no patches: leave --keep and --grid out")
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
            # A stage that gets a single patch has nothing to choose.
            left = min(left, max(round(scale * stage.keep), min(2, stage.keep)))
            stages.append(Stage(stage.position, left))
        grid.append(tuple(stages))
    return grid


def evaluated_at(
    counts: Sequence[KeepCounts],
    trained: Case,
    model: Network,
    memory: Memory,
    fresh: bool,
    device: str,
    workers: int,
    progress: Progress,
    say: Say,
) -> dict[KeepCounts, AtCounts]:
    """Evaluate the network of `trained` at each of the keep counts, the trained ones first.

    What is remembered is taken over. At the trained counts it is the run's own evaluation, so that no
    other command has another number. `device` and `workers` are evaluate_case's. Raises FailedError
    for logits that are not finite, UsageError for a split of one image.
    """
    found: dict[KeepCounts, AtCounts] = {}
    right_when_trained: npt.NDArray[np.bool_] | None = None
    for number, each in enumerate(counts, start=1):
        place = f"{each.name} ({number} of {len(counts)})"

        def said(text: str, done: int, total: int, place: str = place) -> None:
            progress(f"{place}: {text}", done, total)

        if each.role == "trained":
            evaluation = evaluate_case(trained, fresh, said, silent, device, workers, model)
            model.to("cpu")
            classes, reused = evaluation.logits.argmax(axis=1), evaluation.reused
        else:
            classes, reused = _predicted(each, trained, model, memory, device, workers, said)
        right: npt.NDArray[np.bool_] = classes == targets_of(trained.split)
        how = "as evaluated before" if reused else "evaluated"
        say(f"{place}: {how}, top-1 {100 * right.mean():.2f} %")
        gflops = cost_of(at_stages(trained.spec, model, each.stages)[1]).gflops
        if right_when_trained is None:
            right_when_trained = right
            found[each] = AtCounts(gflops, float(right.mean()), None, 0, 0)
            continue
        found[each] = AtCounts(
            gflops,
            float(right.mean()),
            paired_estimate(right.astype(int) - right_when_trained),
            int((right & ~right_when_trained).sum()),
            int((right_when_trained & ~right).sum()),
        )
    return found


def _predicted(
    counts: KeepCounts,
    trained: Case,
    model: Network,
    memory: Memory,
    device: str,
    workers: int,
    progress: Progress,
) -> tuple[npt.NDArray[np.int64], bool]:
    """(images,) classes at other counts than the trained ones, and whether they were remembered."""
    spec, network = at_stages(trained.spec, model, counts.stages)
    name = f"{trained.split.name}-{counts.name.replace(',', '-')}"
    decides = trained.decides(spec)
    known = memory.recall(name, tuple[int, ...], decides)
    if known is not None:
        return np.asarray(known), True
    accelerator = accelerator_on(chosen_device(device))
    logits = network_logits(
        network.to(accelerator.device), spec, trained.split, workers, progress, accelerator
    )
    if not np.isfinite(logits).all():
        raise FailedError(f"at {counts.name} the logits hold NaN or infinity: train the run again")
    classes = logits.argmax(axis=1)
    memory.keep(name, classes.tolist(), decides)
    return classes, False


def paired_estimate(differences: npt.NDArray[Any]) -> Estimate:
    """differences (I,), one of every image -> the mean they have in the long run of images.

    The interval is of the networks that were compared, and not of the way they were trained, which
    takes seeds (benchmarks/crossed.py). Raises UsageError for one image.
    """
    x = np.asarray(differences, dtype=np.float64)
    if len(x) < 2:
        raise UsageError("one image has no interval: evaluate on a --split with more")
    return estimate_by_t(
        float(x.mean()), float(x.std(ddof=1) / len(x) ** 0.5), len(x) - 1, "images"
    )


def estimate_by_t(mean: float, error: float, df: float, rests_on: Rests) -> Estimate:
    """A mean with its standard error, by Student's t of `df` degrees of freedom."""
    # Rounding alone: what did not vary has no error.
    if error < 1e-12:
        return Estimate(mean, 0.0, df, mean, mean, None, None, None)
    half = float(t.ppf((1 + CONFIDENCE) / 2, df)) * error
    p_value = float(2 * t.sf(abs(mean / error), df))
    return Estimate(mean, error, df, mean - half, mean + half, mean / error, p_value, rests_on)
