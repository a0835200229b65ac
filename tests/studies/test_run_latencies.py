"""The bundles below a folder: all of them are found, or what cannot be listed is named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from gft_edge.studies.run_latencies import find_bundles
from tests.support import unprivileged


def test_bundles_below_a_folder_are_found_once_through_links_and_not_in_hidden_folders(
    micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    for place in ("all/deep/a", "all/.old/b", "elsewhere/c"):
        shutil.copytree(micro_bundles["onnx"], tmp_path / place)
    (tmp_path / "all" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "all" / "back").symlink_to("..")
    found = [bundle.folder for bundle, _ in find_bundles([tmp_path / "all"])]
    assert found == [tmp_path / "all" / "deep" / "a", tmp_path / "all" / "linked" / "c"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_folder_that_may_not_be_listed_is_named_and_no_bundle_dropped(
    micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(micro_bundles["onnx"], tmp_path / "open")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    code = f"""
from pathlib import Path
from gft_edge.errors import UsageError
from gft_edge.studies.run_latencies import find_bundles
try:
    print(find_bundles([Path({str(tmp_path)!r})]))
except UsageError as error:
    print(error)
"""
    try:
        done = unprivileged.python("-c", code)
    finally:
        closed.chmod(0o700)
    assert done.stdout.startswith(f"{closed} cannot be read (Permission denied)")
