"""Runs of one data set as the rows of the paper's tables 1-3."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from gft_edge.bundle.images import DataSource
from gft_edge.bundle.specs import ModelSpec, Progress, Say
from gft_edge.bundle.store import sha256_of
from gft_edge.datasets import split_digest
from gft_edge.errors import UsageError
from gft_edge.fidelity.metrics import Metrics
from gft_edge.model.checkpoint import WEIGHTS_FILE, load_run
from gft_edge.model.cost import cost_of
from gft_edge.studies.evaluation import (
    Case,
    evaluate_case,
    launched_together,
    run_split,
)
from gft_edge.studies.run_latencies import Latency, MeasuredOn, assign, measure
from gft_edge.training.logits import quiet, silent
from gft_edge.training.run_folder import check_run

Average = Literal["weighted", "macro"]

# timm's classes. Other names in Attn weigh the channels of a CNN (SplitAttn), or sit in one's last
# stage (BottleneckAttn).
_ATTENDS = re.compile(r"Attention|(Class|TalkingHead|SubSample)Attn|^(GPSA|MHSA|FactorAttn.*)$")
_EMBEDS = re.compile(r"(^|\.)(patch_embed|stem)(\.|$)")


@dataclass(frozen=True)
class Row:
    """A run. `model` tells the rows apart, `type` is ViT, CNN or MLP; `gflops` is of one image."""

    run: str
    model: str
    type: str
    parameters: int
    gflops: float
    weights_sha256: str
    metrics: Metrics
    latency: tuple[Latency, ...]


@dataclass(frozen=True)
class RunsTable:
    """Rows in the order that was asked for. `measured` is None where no bundle was."""

    data: str
    split: str
    split_digest: str
    images: int
    classes: int
    average: Average
    measured: MeasuredOn | None
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class _Subject:
    """A run before it is evaluated."""

    folder: Path
    source: DataSource
    spec: ModelSpec
    weights_sha256: str
    type: str
    parameters: int
    gflops: float


def compare_runs(
    runs: Sequence[Path],
    sources: Sequence[DataSource],
    split: str,
    average: Average = "weighted",
    bundles: Sequence[Path] = (),
    duration_s: float = 5.0,
    fresh: bool = False,
    device: str = "auto",
    workers: int = 2,
    progress: Progress = quiet,
    say: Say = silent,
) -> RunsTable:
    """Evaluate every run on the split, unless it has kept that, and measure the bundles there are.

    `sources` has the images of each run, `bundles` are bundles, or folders of them, each measured for
    `duration_s`; `fresh`, `device` and `workers` are evaluate_case's.
    Raises CheckpointError for what is no finished run, DataError for images that are not here,
    UsageError for a run given twice, runs of different data sets, and bundles that fit no row or
    the same one.
    """
    if bundles and launched_together():
        raise UsageError(
            "--bundles measures latencies, and processes launched together would measure each other: "
            "start gft-edge evaluate alone, or leave --bundles out"
        )
    subjects: list[_Subject] = []
    for run, source in zip(runs, sources, strict=True):
        subject = _opened(run, source)
        for other in subjects:
            _check_comparable(other, subject)
        subjects.append(subject)
    splits = [run_split(subject.source, split, subject.spec.labels) for subject in subjects]
    for remark in dict.fromkeys(remark for images in splits for remark in images.remarks):
        say(remark)
    cases = [
        Case(subject.folder, subject.spec, images, subject.weights_sha256, split_digest(images))
        for subject, images in zip(subjects, splits, strict=True)
    ]
    for case in cases:
        if case.split_digest != cases[0].split_digest:
            raise _other_images(cases[0], case)
    assigned = assign(bundles, cases, say) if bundles else {}
    # A network is loaded again where it has to be evaluated: all of them at once may be too many.
    found = [evaluate_case(case, fresh, progress, say, device, workers).metrics for case in cases]
    latencies, measured = measure(assigned, duration_s, progress, say) if assigned else ({}, None)
    return RunsTable(
        data=_data_name(sources[0]),
        split=split,
        split_digest=cases[0].split_digest,
        images=len(splits[0].paths),
        classes=len(splits[0].labels),
        average=average,
        measured=measured,
        rows=tuple(
            Row(
                run=str(subject.folder),
                model=name,
                type=subject.type,
                parameters=subject.parameters,
                gflops=subject.gflops,
                weights_sha256=subject.weights_sha256,
                metrics=metrics,
                latency=latencies.get(number, ()),
            )
            for number, (subject, name, metrics) in enumerate(
                zip(subjects, _names(subjects), found, strict=True)
            )
        ),
    )


def _data_name(source: DataSource) -> str:
    """The data set's own name; of class folders, which have none, the folder's."""
    if source.dataset != "imagefolder":
        return source.dataset
    return source.folder.resolve().name


def _opened(run: Path, source: DataSource) -> _Subject:
    check_run(run)
    spec, model = load_run(run)
    return _Subject(
        folder=run,
        source=source,
        spec=spec,
        weights_sha256=sha256_of(run / WEIGHTS_FILE),
        type=type_of(model),
        parameters=sum(p.numel() for p in model.parameters()),
        gflops=cost_of(model).gflops,
    )


def type_of(model: nn.Module) -> str:
    """The paper's word for a network: a ViT attends, a CNN convolves; an MLP does neither.

    Attention that only pools is none, nor is the convolution that only cuts an image into patches.
    """
    kinds = [type(module).__name__ for module in model.modules()]
    if any(_ATTENDS.search(kind) and "Pool" not in kind for kind in kinds):
        return "ViT"
    convolutions = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    return "MLP" if all(_EMBEDS.search(name) for name in convolutions) else "CNN"


def _check_comparable(a: _Subject, b: _Subject) -> None:
    if a.folder.resolve() == b.folder.resolve():
        raise UsageError(f"{b.folder} is given twice: a run is one row")
    if a.spec == b.spec and a.weights_sha256 == b.weights_sha256:
        raise UsageError(
            f"{b.folder} has the weights of {a.folder}: a run is one row, give it once"
        )
    both, ours, theirs = f"{a.folder} and {b.folder}", a.source, b.source
    same_classes = set(a.spec.labels) == set(b.spec.labels)
    if not same_classes or ours.dataset != theirs.dataset:
        if ours.dataset != theirs.dataset:
            difference = f"{ours.dataset} and {theirs.dataset}"
        else:
            difference = _other_labels(a, b)
        mend = "give --data FOLDER and --dataset NAME to evaluate all runs on the same"
        raise UsageError(
            f"{both} are of different data sets: {difference}; "
            f"{mend if same_classes else 'a table compares runs of one data set'}"
        )
    if a.spec.labels != b.spec.labels:
        raise UsageError(
            f"{both} have the same classes in another order: {_other_labels(a, b)}; a table compares "
            "runs that number them alike, train or import one of them again"
        )
    if ours.coco_category != theirs.coco_category:
        raise UsageError(
            f"{both} take different boxes for an image's category, the {ours.coco_category} and the "
            f"{theirs.coco_category}: give --coco-category {ours.coco_category} or "
            f"{theirs.coco_category} to evaluate all runs alike"
        )


def _other_labels(a: _Subject, b: _Subject) -> str:
    ours, theirs = a.spec.labels, b.spec.labels
    if len(ours) != len(theirs):
        return f"{len(ours)} and {len(theirs)} classes"
    index = next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    return f"class {index} is {ours[index]!r} in one and {theirs[index]!r} in the other"


def _other_images(a: Case, b: Case) -> UsageError:
    ours, theirs = (f"{len(one.split.paths)} below {one.split.root}" for one in (a, b))
    return UsageError(
        f"{a.run} and {b.run} have different images in {a.split.name} ({ours}; {theirs}): "
        "give --data FOLDER to evaluate all runs on the same"
    )


def _names(subjects: Sequence[_Subject]) -> list[str]:
    """The network, with the run's folder where several rows have the same."""
    names = [subject.spec.name for subject in subjects]
    for part in (lambda folder: folder.resolve().name, str):
        count = Counter(names)
        names = [
            name if count[name] == 1 else f"{subject.spec.name} ({part(subject.folder)})"
            for name, subject in zip(names, subjects, strict=True)
        ]
    return names
