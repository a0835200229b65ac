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
    bundle: Bundle, device: str, processors: Sequence[str], engine: str
) -> tuple[str, ...] | None:
    """The bounds that a bundle missed on a device; None where it was not verified there.

    `processors` are their makers' names, `engine` is the version of the engine: another of these, or of
    the device, is another verdict. HETERO:GPU,CPU says nothing of GPU, as the CPU may have done all of it.
    """
    known = _recalled(bundle, device, processors, engine)
    return None if known is None else (*known["golden"], *known["reference"])


def remember_failures(
    bundle: Bundle,
    device: str,
    processors: Sequence[str],
    engine: str,
    golden: Sequence[str],
    reference: Sequence[str] | None,
) -> None:
    """Keep a verdict for `recalled_failures`; without a cache folder it is forgotten.

    `reference` is None where there was none to compare with: what an earlier comparison found stays.
    """
    folder = _folder()
    if folder is None:
        return
    earlier = _recalled(bundle, device, processors, engine) or {"reference": []}
    kept = earlier["reference"] if reference is None else [*reference]
    content = json.dumps({"golden": [*golden], "reference": kept}).encode()
    keep_entry(folder, _key(bundle, device, processors, engine), content, "the verdict")


def warn_of_doubt(bundle: Bundle, session: Session, engine: str, device: str | None) -> None:
    """Log a warning where a session computes in f16 on a device that the bundle has not passed on."""
    if not session.half_on or device is None:
        return
    failures = recalled_failures(bundle, device, session.half_on, engine)
    if failures is None:
        doubt = (
            "it computes in f16 there and was not verified: gft-edge verify with this --device does"
        )
    else:
        doubt = "; ".join(failures)
    if doubt:
        _log.warning("%s on %s: %s", bundle.folder, device, doubt)


def _recalled(
    bundle: Bundle, device: str, processors: Sequence[str], engine: str
) -> dict[str, list[str]] | None:
    folder = _folder()
    key = _key(bundle, device, processors, engine)
    kept = None if folder is None else read_entry(folder, key)
    if kept is None:
        return None
    content: dict[str, list[str]] = json.loads(kept.tobytes())
    return content


def _folder() -> Path | None:
    folder = user_cache("verdicts")
    return folder if folder is not None and usable(folder, _WHAT) else None


def _key(bundle: Bundle, device: str, processors: Sequence[str], engine: str) -> str:
    return key_of(bundle.manifest.seal, device, sorted(processors), engine)
