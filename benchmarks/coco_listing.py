"""Seconds and memory to list a COCO training split of the official size, outlines and all.

Writes an annotation file like instances_train2017.json (118,287 images, 860,001 annotations, 475 MB)
and as many empty images below --folder, then lists the split in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

IMAGES, ANNOTATIONS, CATEGORIES, CORNERS = 118_287, 860_001, 80, 24

MEASURE = """
import resource, sys, time
from pathlib import Path
from gft_edge.datasets import read_split, split_digest
from gft_edge.bundle.images import DataSource
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = DataSource(Path(sys.argv[1]), "coco", sys.argv[2])
for name in ("train", "val"):
    started = time.perf_counter()
    split = read_split(source, name)
    listed = time.perf_counter()
    split_digest(split)
    print(f"{name}: {len(split.paths)} images listed in {listed - started:.1f} s, "
          f"digest {time.perf_counter() - listed:.1f} s; {split.remarks[0]}")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
now = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
print(f"peak {after / 1024:.0f} MiB, {before / 1024:.0f} before; {now / 1024:.0f} afterwards")
"""


def main() -> None:
    """Write the file unless it is there, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    file = given.folder / "annotations" / "instances_train2017.json"
    if not file.is_file():
        _write(file, given.folder / "train2017")
    print(f"{file.stat().st_size / 1e6:.0f} MB of annotations")
    for category in ("largest", "first"):
        print(category)
        subprocess.run([sys.executable, "-c", MEASURE, str(given.folder), category], check=True)


def _write(file: Path, pictures: Path) -> None:
    generator = random.Random(0)
    file.parent.mkdir(parents=True)
    pictures.mkdir()
    numbers = sorted(generator.sample(range(600_000), IMAGES))
    for number in numbers:
        (pictures / f"{number:012d}.jpg").touch()
    images = [
        {
            "license": 3,
            "file_name": f"{number:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/train2017/{number:012d}.jpg",
            "height": 480,
            "width": 640,
            "date_captured": "2013-11-14 11:18:45",
            "flickr_url": f"http://farm4.staticflickr.com/3153/{number}_c_z.jpg",
            "id": number,
        }
        for number in numbers
    ]
    annotated = numbers[: -IMAGES // 100]
    with file.open("w", encoding="utf-8") as text:
        text.write('{"info": {"year": 2017}, "licenses": [], "images": ')
        json.dump(images, text)
        text.write(', "annotations": [')
        for number in range(ANNOTATIONS):
            text.write("," if number else "")
            json.dump(_annotation(generator, number, annotated), text)
        text.write('], "categories": ')
        json.dump([{"id": n + 1, "name": f"category {n}"} for n in range(CATEGORIES)], text)
        text.write("}")


def _annotation(generator: random.Random, number: int, images: list[int]) -> dict[str, object]:
    corners = [round(generator.uniform(0, 480), 2) for _ in range(2 * CORNERS)]
    return {
        "segmentation": [corners],
        "area": round(generator.uniform(10, 90_000), 4),
        "iscrowd": 0,
        "image_id": images[number % len(images)],
        "bbox": [round(generator.uniform(1, 300), 2) for _ in range(4)],
        "category_id": generator.randint(1, CATEGORIES),
        "id": number,
    }


if __name__ == "__main__":
    main()
