"""Images drawn from a split: seeded, the classes in turn, recorded by digest."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from pathlib import Path

from gft_edge.image_folder import Split
from gft_edge.specs import ImageSet


def draw_image_set(split: Split, count: int, seed: int) -> ImageSet:
    """Draw up to `count` images, seeded, the classes taken in turn so that each is represented."""
    by_class: dict[int, list[Path]] = defaultdict(list)
    for path, target in zip(split.paths, split.targets, strict=True):
        by_class[target].append(path)
    generator = random.Random(seed)
    for paths in by_class.values():
        generator.shuffle(paths)
    rounds = max(len(paths) for paths in by_class.values())
    in_turn = [
        (paths[turn], target)
        for turn in range(rounds)
        for target, paths in by_class.items()
        if turn < len(paths)
    ]
    chosen = in_turn[:count]
    digest = hashlib.sha256()
    for path, _ in chosen:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return ImageSet(
        tuple(str(path) for path, _ in chosen),
        seed,
        digest.hexdigest(),
        tuple(target for _, target in chosen),
    )
