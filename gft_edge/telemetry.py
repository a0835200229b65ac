"""What ONNX Runtime and OpenVINO would tell their makers, switched off before either is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def switch_off() -> None:
    """Keep both from writing an identifier below the home folder and from looking up a host.

    A user who has decided otherwise is left alone: by ORT_DISABLE_TELEMETRY, or by OpenVINO's own
    `opt_in_out --opt_in`.
    """
    # https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md, "Disabling Telemetry".
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # OpenVINO and NNCF send nothing where their package for it cannot be imported. Its own `opt_in_out
    # --opt_out` would write to the home folder, where its answer to an unwritable one is two warnings.
    if "openvino_telemetry" not in sys.modules and not _opted_in():
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def _opted_in() -> bool:
    """Whether the file that `opt_in_out` writes says 1."""
    windows = sys.platform == "win32"
    try:
        folder = (
            Path(os.environ["LOCALAPPDATA"], "Intel Corporation")
            if windows
            else (Path.home() / "intel")
        )
        return (folder / "openvino_telemetry").read_bytes().strip() == b"1"
    # No home folder, no file, or one that is another user's.
    except (KeyError, OSError, RuntimeError):
        return False
