"""The trained network that a training imitates."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from gft_edge.bundle.specs import ModelSpec, Say
from gft_edge.bundle.store import sha256_of
from gft_edge.datasets.listing import first_difference
from gft_edge.errors import UsageError
from gft_edge.model.checkpoint import WEIGHTS_FILE, load_run
from gft_edge.model.gft import GFT
from gft_edge.model.named_networks import build_network
from gft_edge.model.network import Network
from gft_edge.model.pretrained import LOCAL, load_pretrained
from gft_edge.training.recipes import Recipe

TIMM = "timm:"


@dataclass(frozen=True)
class Teacher:
    """A teacher's run folder or `timm:NAME`, and the sha256 of the weights that a training began with.

    The sha256 is that of a run's weights file; of a timm model, of its state dict.
    """

    run: str
    sha256: str


class _Opened(NamedTuple):
    network: Network
    sha256: str
    labels: tuple[str, ...] | None  # unknown of a timm model, which has their number alone
    classes: int
    images: tuple[int, tuple[float, ...], tuple[float, ...]]  # side in px, mean and deviation


def teacher_of(name: str | Path) -> Teacher:
    """What a training records of its teacher, a run folder or `timm:NAME`.

    Raises CheckpointError when it is no run, or when timm has or reaches no weights of that name, and
    SpecError for a name unknown to timm.
    """
    text = str(name)
    local = f"{TIMM}{LOCAL}"
    if text.startswith(local):
        text = f"{local}{Path(text.removeprefix(local)).resolve()}"
    elif not text.startswith(TIMM):
        text = str(Path(text).resolve())
    return Teacher(text, _open(text).sha256)


def load_teacher(teacher: Teacher, pupil: ModelSpec, network: Network, recipe: Recipe) -> Network:
    """The teacher, frozen, for `network` of the spec `pupil`.

    Raises what `teacher_of` does, and UsageError when it has other weights than recorded, its logits
    mean other classes and count in the recipe, its tokens do and are not of the network's kind, or
    it reads images of another size or normalisation. A timm model's classes are taken to be in the
    data's order.
    """
    opened = _open(teacher.run)
    if opened.sha256 != teacher.sha256:
        raise UsageError(
            f"--teacher {teacher.run} has other weights than when this training began: restore them, "
            "or start a new run with another --out"
        )
    if recipe.distillation:
        _check_classes(teacher.run, opened, pupil.labels)
    theirs, ours = opened.images, _images(pupil)
    if theirs != ours:
        raise UsageError(
            f"--teacher {teacher.run} reads images of {theirs[0]} px with mean {theirs[1]} and deviation "
            f"{theirs[2]}, the network of {ours[0]} px with {ours[1]} and {ours[2]}: both see the "
            "same images, so take a teacher of that kind"
        )
    if recipe.feature_distillation and (
        why := _unlike_tokens(teacher.run, opened.network, network)
    ):
        raise UsageError(
            f"--feature-distillation compares tokens patch by patch, and {why}: take a teacher like the "
            "network, trained with --stages none, or leave it out"
        )
    return opened.network.requires_grad_(requires_grad=False).eval()


def taught_recipe(recipe: Recipe, teacher: Teacher, pupil: ModelSpec, say: Say) -> Recipe:
    """The recipe for a network of the spec `pupil`, its tokens compared only where the teacher's are alike.

    Where they are not, that is said. Raises what `teacher_of` does.
    """
    if not recipe.feature_distillation:
        return recipe
    why = _unlike_tokens(teacher.run, _open(teacher.run).network, build_network(pupil))
    if why is None:
        return recipe
    say(f"{why}: its logits are imitated, its tokens are not")
    return dataclasses.replace(recipe, feature_distillation=0.0)


def _open(name: str) -> _Opened:
    if name.startswith(TIMM):
        network = load_pretrained(name.removeprefix(TIMM))
        size_px, found = network.image_size_px, network.backbone.pretrained_cfg
        return _Opened(
            network,
            _sha256_of_weights(network.backbone),
            None,
            network.backbone.num_classes,
            (size_px, tuple(found["mean"]), tuple(found["std"])),
        )
    spec, network = load_run(Path(name))
    weights = sha256_of(Path(name) / WEIGHTS_FILE)
    return _Opened(network, weights, spec.labels, len(spec.labels), _images(spec))


def _images(spec: ModelSpec) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    given = spec.preprocessing
    return given.image_size_px, given.mean, given.std


def _sha256_of_weights(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _check_classes(name: str, teacher: _Opened, labels: tuple[str, ...]) -> None:
    without = "or give --distillation 0 --feature-distillation 1, which does without its classes"
    if teacher.labels is None and teacher.classes != len(labels):
        raise UsageError(
            f"--teacher {name} has {teacher.classes} classes and the data {len(labels)}: take one trained "
            f"on this data, {without}"
        )
    if teacher.labels is not None and teacher.labels != labels:
        here, there = first_difference(labels, teacher.labels)
        raise UsageError(
            f"--teacher {name} has {teacher.classes} classes and the data {len(labels)}, first "
            f"difference {there} and {here}: take a run trained on this data, {without}"
        )


def _unlike_tokens(name: str, teacher: Network, network: Network) -> str | None:
    """Why the tokens of the two cannot be compared, None where they can."""
    for who, one in (("the network", network), (f"--teacher {name}", teacher)):
        if not isinstance(one, GFT):
            return f"{who} is no plain ViT ({type(one.backbone).__name__})"
    if teacher.selections:
        return (
            f"--teacher {name} has {len(teacher.selections)} stages and does not keep all patches"
        )
    (rows, columns, width), ours = _tokens(teacher), _tokens(network)
    if (rows, columns, width) != ours:
        return (
            f"--teacher {name} has {rows} x {columns} patches of width {width}, the network {ours[0]} x "
            f"{ours[1]} of {ours[2]}"
        )
    return None


def _tokens(network: Network) -> tuple[int, int, int]:
    backbone = network.backbone
    rows, columns = backbone.patch_embed.grid_size
    return rows, columns, backbone.embed_dim
