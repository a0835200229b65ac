"""The golden pack: what a machine needs to see whether a bundle still does there what it did here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.manifest import Artifact, EngineSettings
from gft_edge.bundle.store import GOLDEN_FILE, GOLDEN_IMAGES, sha256_of
from gft_edge.export.workbench import Workbench
from gft_edge.runtime.classifier import static_batches
from gft_edge.runtime.outputs import Outputs

CHECK_TEMPLATE = Path(__file__).with_name("check.sh")


def write_golden(
    folder: Path, pixels: npt.NDArray[np.uint8], names: Sequence[str], shipped: Outputs
) -> tuple[str, ...]:
    """Write golden.npz: images (N,S,S,3), logits and, by `names`, kept patches. Returns its name.

    `shipped` is what the artifact gave here, not what PyTorch gives: another machine is asked for the
    same.
    """
    path = folder / GOLDEN_FILE
    path.parent.mkdir()
    some = slice(0, GOLDEN_IMAGES)
    chosen = zip(names, shipped.kept, strict=True)
    np.savez(
        path,
        images=pixels[some],
        logits=shipped.logits[some],
        **{name: indices[some] for name, indices in chosen},  # type: ignore[arg-type]
    )
    return (GOLDEN_FILE,)


def write_check(
    work: Workbench, artifact: Artifact, settings: EngineSettings, folder: Path
) -> tuple[str, ...]:
    """Write check.sh and the files it feeds to trtexec, of the images in golden.npz. Returns the names.

    images_N.bin is one static batch as the graph takes it, the last one padded with its last image.
    logits_N.bin is float32 (images,classes) of the same batch without the padding. Little-endian.
    """
    pixels = work.pixels[:GOLDEN_IMAGES]
    golden = (folder / GOLDEN_FILE).parent
    names = []
    first = 0
    for number, (batch, count) in enumerate(
        static_batches(pixels, work.given, work.spec.preprocessing)
    ):
        logits = work.shipped.logits[first : first + count]
        for name, array in ((f"images_{number}.bin", batch), (f"logits_{number}.bin", logits)):
            (golden / name).write_bytes(array.astype(array.dtype.newbyteorder("<")).tobytes())
            names.append(name)
        first += count
    tolerance = work.reports[-1].tolerance
    sums = "\n".join(f"{sha256_of(golden / name)}  {name}" for name in names)
    facts = f"""\
images={len(pixels)}
batch={work.given.batch}
classes={len(work.spec.labels)}
agreement_bound={tolerance.top1_agreement:g}
cosine_bound={tolerance.cosine:g}
version_compatible={"--versionCompatible" if settings.version_compatible else ""}
model=../{artifact.path}
model_sum='{artifact.sha256}  ../{artifact.path}'
sums='{sums}'"""
    script = CHECK_TEMPLATE.read_text(encoding="utf-8")
    script = script.replace("@FACTS@", facts).replace("@MODEL@", artifact.path)
    check = golden / CHECK_TEMPLATE.name
    check.write_text(script, encoding="utf-8")
    check.chmod(0o755)
    return tuple(f"{golden.name}/{name}" for name in (*names, check.name))
