"""Whether a bundle has been verified on a device that computes it in f16, as the user's cache remembers."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from gft_edge.bundle.store import Bundle
from gft_edge.runtime.backends import Session
from gft_edge.runtime.engine_cache import keep_entry, key_of, read_entry, usable
from gft_edge.runtime.user_cache import user_cache

_log = logging.getLogger(__name__)

_WHAT = "verdicts of devices"


def recalled_failures(
    bundle: Bundle, processors: Sequence[str], engine: str
) -> tuple[str, ...] | None:
    """The bounds that a bundle missed on these processors; None where it was not verified there.

    `processors` are their makers' names, `engine` is the version of the engine: another of either is
    another verdict.
    """
    folder = _folder()
    kept = None if folder is None else read_entry(folder, _key(bundle, processors, engine))
    return None if kept is None else tuple(json.loads(kept.tobytes()))


def remember_failures(
    bundle: Bundle, processors: Sequence[str], engine: str, failures: Sequence[str]
) -> None:
    """Keep a verdict for `recalled_failures`; without a cache folder it is forgotten."""
    if (folder := _folder()) is not None:
        content = json.dumps([*failures]).encode()
        keep_entry(folder, _key(bundle, processors, engine), content, "the verdict")


def warn_of_doubt(bundle: Bundle, session: Session, engine: str, device: str | None) -> None:
    """Log a warning where a session computes in f16 on a device that the bundle has not passed on."""
    if session.half_on and (doubt := _doubt_of(bundle, session.half_on, engine)):
        _log.warning("%s on %s: %s", bundle.folder, device, doubt)


def _doubt_of(bundle: Bundle, processors: Sequence[str], engine: str) -> str | None:
    """Why the bundle is not to be trusted on these processors; None where it was verified and passed."""
    failures = recalled_failures(bundle, processors, engine)
    if failures is None:
        return (
            "it computes in f16 there and was not verified: gft-edge verify with this --device does"
        )
    return "; ".join(failures) or None


def _folder() -> Path | None:
    folder = user_cache("verdicts")
    return folder if folder is not None and usable(folder, _WHAT) else None


def _key(bundle: Bundle, processors: Sequence[str], engine: str) -> str:
    return key_of(bundle.manifest.seal, sorted(processors), engine)
