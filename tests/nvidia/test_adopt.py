"""An engine that another machine built is taken into a bundle, or the bundle stays as it was."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from gft_edge.bundle.store import read_bundle
from gft_edge.errors import BundleError
from gft_edge.nvidia.adopt import adopt_engine
from tests.support.bundles import assert_untouched, files_of
from tests.support.refusals import refusal_of


def test_an_engine_of_another_machine_is_taken_in_and_loads_nothing_from_elsewhere(
    built: Path, trt_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(trt_bundle, tmp_path / "another"))
    (engine,) = read_bundle(built).manifest.engines
    files = {engine.path: built / engine.path}
    adopt_engine(bundle, engine, files)
    assert read_bundle(bundle).manifest.engines == (engine,)
    assert (bundle / engine.path).read_bytes() == (built / engine.path).read_bytes()
    # The same again changes nothing.
    before = files_of(bundle)
    adopt_engine(bundle, engine, {})
    for path in ("../model.engine", "/tmp/model.engine"):
        foreign = dataclasses.replace(engine, path=path)
        refusal_of(BundleError, lambda: adopt_engine(bundle, foreign, {}), path)  # noqa: B023
    damaged = dataclasses.replace(engine, sha256="0" * 64)
    refusal_of(BundleError, lambda: adopt_engine(bundle, damaged, files), engine.path)
    replaced = dataclasses.replace(engine, graph_sha256="0" * 64)
    refusal_of(BundleError, lambda: adopt_engine(bundle, replaced, files), "replaced")
    assert_untouched(bundle, before)
