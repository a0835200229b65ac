"""The trained network whose logits a training imitates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gft_edge.bundle import sha256_of
from gft_edge.datasets import first_difference
from gft_edge.errors import UsageError
from gft_edge.model.checkpoint import WEIGHTS_FILE, load_run
from gft_edge.model.networks import Network
from gft_edge.specs import ModelSpec


@dataclass(frozen=True)
class Teacher:
    """The run of a teacher, and the sha256 of the weights that a training began with."""

    run: str
    sha256: str


def teacher_of(run: Path) -> Teacher:
    """What a training records of its teacher. Raises CheckpointError when `run` is no run."""
    load_run(run)
    return Teacher(str(run.resolve()), sha256_of(run / WEIGHTS_FILE))


def load_teacher(teacher: Teacher, pupil: ModelSpec) -> Network:
    """The network of a run, frozen, for a network of `pupil`'s classes and images.

    Raises CheckpointError when it is no run, UsageError when it has other weights than recorded, its
    logits mean other classes, or it reads images of another size or normalisation.
    """
    run = Path(teacher.run)
    spec, network = load_run(run)
    if sha256_of(run / WEIGHTS_FILE) != teacher.sha256:
        raise UsageError(
            f"--teacher {run} has other weights than when this training began: restore them, or "
            "start a new run with another --out"
        )
    if spec.labels != pupil.labels:
        here, there = first_difference(pupil.labels, spec.labels)
        raise UsageError(
            f"--teacher {run} has {len(spec.labels)} classes and the data {len(pupil.labels)}, first "
            f"difference {there} and {here}: take a run trained on this data"
        )
    theirs, ours = (
        (one.preprocessing.image_size_px, one.preprocessing.mean, one.preprocessing.std)
        for one in (spec, pupil)
    )
    if theirs != ours:
        raise UsageError(
            f"--teacher {run} reads images of {theirs[0]} px with mean {theirs[1]} and deviation "
            f"{theirs[2]}, the network of {ours[0]} px with {ours[1]} and {ours[2]}: both see the "
            "same images, so take a teacher of that kind"
        )
    return network.requires_grad_(requires_grad=False).eval()
