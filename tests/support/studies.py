"""What a study's tests put in the place of minutes of exporting and measuring: bundles made before."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gft_edge.bundle.store import Bundle, read_bundle, read_manifest, write_manifest
from gft_edge.errors import GateError
from gft_edge.profiling.report import Profile
from gft_edge.profiling.report_file import read_profile

if TYPE_CHECKING:
    from gft_edge.export.request import ExportRequest
    from gft_edge.profiling.profile import ProfileRequest

MISSED = "step 'x' differs from PyTorch on 12 images"


class Shortcut:
    """Exports that copy a bundle of the target, and a profile that was measured before.

    `exported` notes the folders that were asked for, `measured` the bundles. `refuses` says whether an
    export misses its bounds, by default every one under fp32; `dies` is the name of a bundle whose
    engine does not survive being measured; `stable` is what the next profile says of itself.
    """

    def __init__(self, bundles: dict[str, Path], profile_file: Path) -> None:
        self.bundles, self.profile_file = bundles, profile_file
        self.exported: list[str] = []
        self.measured: list[list[str]] = []
        self.refuses: Callable[[ExportRequest], bool] = lambda asked: asked.precision != "fp32"
        self.dies: str | None = None
        self.stable = True

    def use(self, patch: pytest.MonkeyPatch) -> Shortcut:
        """Take the place of what studies call."""
        from gft_edge.studies import bench, study

        patch.setattr(study, "export", self.export)
        patch.setattr(bench, "profile", self.profile)
        return self

    def export(
        self, _: Any, __: Any, ___: Any, asked: ExportRequest, out: Path, *____: Any
    ) -> Bundle:
        """Copy a bundle; its manifest says what it was asked for, so that no two have one seal."""
        self.exported.append(out.name)
        if self.refuses(asked):
            raise GateError(MISSED, "Nothing was written")
        shutil.copytree(self.bundles[asked.target], out, dirs_exist_ok=True)
        manifest = read_manifest(out)
        tools = {**manifest.tools, "asked": str(asked.stages)}
        write_manifest(out, dataclasses.replace(manifest, tools=tools))
        return read_bundle(out)

    def profile(self, asked: ProfileRequest, *_: Any) -> Profile:
        """Give each bundle the report of its target."""
        from gft_edge.errors import FailedError

        self.measured.append([folder.name for folder in asked.bundles])
        for folder in asked.bundles:
            if folder.name == self.dies:
                raise FailedError("the process that measures it ended", bundle=folder)
        found = read_profile(self.profile_file)
        by_target = {report.target: report for report in found.reports}
        reports = tuple(
            dataclasses.replace(
                by_target[read_manifest(folder).target],
                bundle=str(folder),
                digest=read_manifest(folder).seal,
            )
            for folder in asked.bundles
        )
        causes = () if self.stable else ("busy",)
        return dataclasses.replace(found, reports=reports, stable=self.stable, causes=causes)
