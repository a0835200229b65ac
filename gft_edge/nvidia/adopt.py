"""An engine that another machine built of a bundle, taken into it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gft_edge.bundle.locks import locked
from gft_edge.bundle.manifest import Engine
from gft_edge.bundle.store import (
    check_inside,
    read_bundle,
    sha256_of,
    write_manifest,
    write_whole,
)
from gft_edge.errors import BundleError
from gft_edge.nvidia.build import with_engine


def adopt_engine(folder: Path, engine: Engine, files: Mapping[str, Path]) -> None:
    """Put an engine and its timing cache into a bundle, and the engine into its manifest.

    `files` has where they lie now, by their paths in the bundle; what is there already is not among them.
    Engines of other machines stay. Raises BundleError where the bundle is not that which was built, or a path
    leaves its folder.
    """
    for path in (engine.path, engine.timing_cache or engine.path, *files):
        check_inside(folder, path)
    with locked(folder):
        bundle = read_bundle(folder)
        if bundle.manifest.artifact.sha256 != engine.graph_sha256:
            raise BundleError(f"{folder} was replaced while its engine was built: build it again")
        plan = files.get(engine.path, folder / engine.path)
        if not plan.is_file() or sha256_of(plan) != engine.sha256:
            raise BundleError(
                f"{folder / engine.path} is not the engine that was built: build it again"
            )
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_whole(folder / path, content.read_bytes())
        if engine not in bundle.manifest.engines:
            write_manifest(folder, with_engine(bundle, engine))
