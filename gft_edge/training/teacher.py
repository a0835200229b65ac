"""The trained network that a training imitates."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.utils.misc import natural_key
from torch import Tensor

from gft_edge.bundle.specs import ModelSpec, Say
from gft_edge.bundle.store import sha256_of
from gft_edge.datasets.listing import first_difference
from gft_edge.datasets.names import class_name
from gft_edge.errors import UsageError
from gft_edge.model.checkpoint import WEIGHTS_FILE, load_run
from gft_edge.model.gft import GFT
from gft_edge.model.named_networks import build_network
from gft_edge.model.network import Network, Tokens
from gft_edge.model.pretrained import LOCAL, load_pretrained
from gft_edge.model.weight_files import names_by_index
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
    # Each way to name the classes, as class index -> name; none of a timm model that has their number alone.
    names: tuple[Mapping[int, str], ...]
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


def load_teacher(
    teacher: Teacher,
    pupil: ModelSpec,
    network: Network,
    recipe: Recipe,
    say: Say = lambda text: None,
) -> Network:
    """The teacher, frozen, its logits in the order of the classes of `pupil`, the spec of `network`.

    Classes are matched by name. A timm model that does not name them is taken to have them in the
    data's order, which is said. Raises what `teacher_of` does, and UsageError when it has other weights
    than recorded, its logits mean other classes and count in the recipe, its tokens do and are not of
    the network's kind, or it reads images of another size or normalisation.
    """
    opened = _open(teacher.run)
    if opened.sha256 != teacher.sha256:
        raise UsageError(
            f"--teacher {teacher.run} has other weights than when this training began: restore them, "
            "or start a new run with another --out"
        )
    order = tuple(range(opened.classes))
    if recipe.distillation:
        order = _order(teacher.run, opened, pupil.labels, say)
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
    taught = opened.network
    if order != tuple(range(opened.classes)):
        say(f"--teacher {teacher.run} has the classes in another order: they are matched by name")
        taught = _Reordered(taught, order)
    return taught.requires_grad_(requires_grad=False).eval()


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
            _names_of(name, network.backbone.num_classes, found),
            network.backbone.num_classes,
            (size_px, tuple(found["mean"]), tuple(found["std"])),
        )
    spec, network = load_run(Path(name))
    weights = sha256_of(Path(name) / WEIGHTS_FILE)
    names = (dict(enumerate(spec.labels)),)
    return _Opened(network, weights, names, len(spec.labels), _images(spec))


def _names_of(name: str, classes: int, config: Mapping[str, Any]) -> tuple[Mapping[int, str], ...]:
    """The classes of a timm model by name and by description; nothing where its config.json has neither.

    timm's `label_names` is a list, or a dict from class index to name. Raises UsageError for anything
    else, and for names of another number of classes.
    """
    given = config.get("label_names")
    if not given:
        return ()
    try:
        names = names_by_index(given)
    except (TypeError, ValueError):
        raise UsageError(
            f"--teacher {name} has label_names that are neither a list of names nor a name by class index: "
            "mend them in its config.json"
        ) from None
    if max(names) >= classes or (len(names) < classes and not isinstance(given, Mapping)):
        raise UsageError(
            f"--teacher {name} has {classes} classes and its label_names {len(names)}: mend them in its "
            "config.json"
        )
    described = config.get("label_descriptions") or {}
    return names, {index: str(described.get(label, label)) for index, label in names.items()}


def _images(spec: ModelSpec) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    given = spec.preprocessing
    return given.image_size_px, given.mean, given.std


def _sha256_of_weights(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _order(name: str, teacher: _Opened, labels: tuple[str, ...], say: Say) -> tuple[int, ...]:
    """The teacher's class index of each of `labels`. Raises UsageError where it has other classes."""
    without = "or give --distillation 0 --feature-distillation 1, which does without its classes"
    counts = f"--teacher {name} has {teacher.classes} classes and the data {len(labels)}"
    if not teacher.names:
        if teacher.classes != len(labels):
            raise UsageError(f"{counts}: take one trained on this data, {without}")
        say(_assumed(name, labels))
        return tuple(range(teacher.classes))
    ours = [class_name(label) for label in labels]
    for names in teacher.names:
        index = {class_name(label): number for number, label in names.items()}
        if len(index) == len(names) and index.keys() == set(ours):
            return tuple(index[label] for label in ours)
    theirs = [class_name(label) for label in teacher.names[0].values()]
    if set(theirs) == set(ours):
        raise UsageError(f"--teacher {name} gives two classes one name: take another, {without}")
    here, there = first_difference(sorted(ours), sorted(theirs))
    raise UsageError(
        f"{counts}, first difference in the order of names {there} and {here}: take a teacher trained on "
        f"this data, {without}"
    )


def _assumed(name: str, labels: Sequence[str]) -> str:
    """What is said of a timm model that does not name its classes."""
    said = f"--teacher {name} does not name its classes: they are taken to be in the data's order"
    natural = sorted(labels, key=natural_key)
    if list(labels) == natural:
        return said
    n = next(n for n, (a, b) in enumerate(zip(labels, natural, strict=True)) if a != b)
    return (
        f"{said}, class {n + 1} being {labels[n]!r}. timm's own training sorts folders by their numbers, "
        f"which makes it {natural[n]!r}: for such a teacher write label_names into its config.json"
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


class _Reordered(Network):
    """A network whose logits are those of another, in another order of the classes."""

    order: Tensor

    def __init__(self, network: Network, order: Sequence[int]):
        super().__init__(network.backbone, network.image_size_px)
        self.network = network
        self.register_buffer("order", torch.tensor(order), persistent=False)

    def forward_with_kept(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits, kept = self.network.forward_with_kept(images)
        return logits[:, self.order], kept

    def forward_with_tokens(self, images: Tensor) -> Tokens:
        made = self.network.forward_with_tokens(images)
        return made._replace(logits=made.logits[:, self.order])

    def group_matcher(self, coarse: bool = False) -> Any:
        return self.network.group_matcher(coarse)
