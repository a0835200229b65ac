"""The exception tree. Each message is one line that says what happened and what to do.

GftEdgeError
├── UsageError            exit 2   an option, a path or an input is wrong
│   ├── SpecError                  a network, a stage list or a spec file that cannot be built
│   ├── DataError                  a folder of training or test images that cannot be used
│   ├── CheckpointError            weights that cannot be read or do not fit the network
│   │   └── UnwrittenError         a file of a run that the disk does not take
│   ├── ImageError                 an image that cannot be decoded
│   ├── SourceError                a video, a stream or a camera that cannot be read, or breaks off
│   ├── BundleError                a bundle that is incomplete, altered or from another version
│   ├── LockedError                a folder that another process is writing to
│   ├── NoGpuError                 a GPU that does not answer, or a driver absent or too old
│   ├── KeptPatchesError           an engine that does not return the patches it keeps
│   └── MissingDependencyError     a package this machine lacks, with the line that installs it
└── FailedError           exit 1   the request was right and the work did not succeed
    ├── GateError                  a measured result missed its bound
    ├── PipelineError              a step of an export failed; names it and those finished before
    ├── CudaError                  a call that the CUDA runtime refused, with its code
    ├── RemoteError                a device of --on that cannot be reached, or does not do its part
    └── TrainingError              training cannot go on
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class GftEdgeError(Exception):
    """Any failure that is the user's to mend.

    `exit_code` is what the command line returns. `bundle` is the folder of the bundle that the error
    is about, where a caller works on several; else None.
    """

    exit_code = 1

    def __init__(self, message: str, *, bundle: Path | None = None) -> None:
        super().__init__(message)
        self.bundle = bundle


class UsageError(GftEdgeError):
    """The request itself is wrong."""

    exit_code = 2


class SpecError(UsageError):
    """A network, a stage list or a spec file that cannot be built."""


class DataError(UsageError):
    """A folder of images that cannot be used."""


class CheckpointError(UsageError):
    """Weights that cannot be read or do not fit the network."""


class UnwrittenError(CheckpointError):
    """A file of a run that the disk does not take; `what` says which and why, without an advice."""

    def __init__(self, path: Path, reason: str) -> None:
        self.what = f"cannot write {path} ({reason})"
        super().__init__(f"{self.what}: make room and run the same command again")


class ImageError(UsageError):
    """An image that cannot be decoded."""


class SourceError(UsageError):
    """A video, a stream or a camera that cannot be read, or breaks off: `source`, and the `reason`."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason


class BundleError(UsageError):
    """A bundle that is incomplete, altered or from another version."""


class LockedError(UsageError):
    """A folder that another process is writing to."""

    def __init__(self, folder: object) -> None:
        super().__init__(f"{folder} is being written by another gft-edge: wait until it is done")


class NoGpuError(UsageError):
    """A GPU that does not answer, or a driver that is absent or too old."""


class KeptPatchesError(UsageError):
    """An engine that does not return the patches it keeps."""


class MissingDependencyError(UsageError):
    """A package that this machine lacks."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed here: pip install 'gft-edge[{extra}]'")


class FailedError(GftEdgeError):
    """The request was right and the work did not succeed."""


class GateError(FailedError):
    """A measured result missed its bound: `reason` says by how much, `advice` what to do about it."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(f"{reason}. {advice}" if advice else reason)
        self.reason = reason


class PipelineError(FailedError):
    """Work on a graph failed for `reason`, in an export during `step`, after the steps `finished`.

    `step` is None outside of an export.
    """

    def __init__(
        self, reason: str, *, step: str | None = None, finished: Sequence[str] = ()
    ) -> None:
        before = f"finished before it: {', '.join(finished) or 'none'}"
        super().__init__(reason if step is None else f"step {step!r} failed ({before}): {reason}")
        self.reason = reason
        self.step = step


class CudaError(FailedError):
    """A call that the CUDA runtime refused: `call`, and the error's `name` and `code`."""

    def __init__(self, call: str, name: str, code: int, detail: str) -> None:
        super().__init__(f"{call} failed: {name} ({code}): {detail}")
        self.call = call
        self.name = name
        self.code = code


class RemoteError(FailedError):
    """A device that cannot be reached, or that does not do its part: `host`, and the `reason`."""

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(f"{host}: {reason}")
        self.host = host
        self.reason = reason


class TrainingError(FailedError):
    """Training cannot go on."""
