"""What knowing a split by its content costs: the first read of many images, and each time after.

python benchmarks/split_digest.py [--images 100000] [--kib 100] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gft_edge.datasets import Split, read_split, split_digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--kib", type=int, default=100, help="Size of each file, KiB")
    parser.add_argument("--out", type=Path, help="Folder to write to [default: a temporary one]")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="split-digest-", dir=options.out))
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    try:
        content = os.urandom(options.kib << 10)
        for number in range(options.images):
            folder = root / "data" / "test" / f"class {number % 100}"
            folder.mkdir(parents=True, exist_ok=True)
            # Bytes enough: nothing is decoded. The name makes each file another one.
            (folder / f"{number}.jpg").write_bytes(f"{number:12}".encode() + content[12:])
        time.sleep(2.1)  # what was written just now is not kept yet
        split, listing_s = timed(lambda: read_split(root / "data", "test"))
        first_s = digest_s(split)
        again_s = digest_s(split)
    finally:
        shutil.rmtree(root)
    print(f"{options.images} images of {options.kib} KiB, {os.cpu_count()} cores")
    print(f"listing them {listing_s:.2f} s")
    print(f"the first digest, every file read {first_s:.2f} s ({first_s / listing_s:.1f} listings)")
    print(f"each one after {again_s:.2f} s ({again_s / listing_s:.1f} listings)")


def timed(work: Callable[[], Split]) -> tuple[Split, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def digest_s(split: Split) -> float:
    started = time.perf_counter()
    split_digest(split)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
