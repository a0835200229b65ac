"""Frames a second of a video through Classifier.stream, against its parts alone; memory over many frames.

python benchmarks/video.py BUNDLE [--video FILE] [--photos FOLDER] [--rounds 5] [--frames 0] [--spin]

Without --video a 1080p H.264 file of --seconds is made of the photographs. In each round decoding,
preparing and inferring are timed alone, one after the other, then all of it as `gft-edge predict` runs it.
The bound: at least 0.9 of 1 / (decode + prepare + infer). With --frames the file is written again and again
to one of so many frames, and the resident memory is printed as it is streamed; it may grow by 2 %.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
from PIL import Image, ImageOps

from gft_edge.profiling.machine import summary, this_machine
from gft_edge.runtime.classifier import Classifier
from gft_edge.runtime.sources.frames import Decoded
from gft_edge.runtime.sources.images import images_below
from gft_edge.runtime.sources.video import opened_file

BOUND = 0.9
GROWTH = 1.02
SIZE = (1920, 1080)
FPS = 30
# A second of each photograph, which moves as a camera does.
PAN_PX = 4
# Frames whose preparing and inferring is timed.
SOME = 32


@dataclass(frozen=True)
class Round:
    """Seconds a frame: the parts alone, and all of them together."""

    decode_s: float
    prepare_s: float
    infer_s: float
    stream_s: float

    @property
    def ratio(self) -> float:
        """The rate of the whole by that of the parts one after another."""
        return (self.decode_s + self.prepare_s + self.infer_s) / self.stream_s


def main() -> None:
    """Print Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--backend")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=0)
    parser.add_argument(
        "--spin", action="store_true", help="let ONNX Runtime's threads wait actively"
    )
    given = parser.parse_args()
    print(f"{summary(this_machine())}\n")
    with tempfile.TemporaryDirectory() as folder:
        video = given.video or made_video(given.photos, Path(folder) / "made.mp4", given.seconds)
        with Classifier.load(
            given.bundle, given.backend, given.threads, spin=given.spin
        ) as classifier:
            rounds = [measured(classifier, video) for _ in range(given.rounds + 1)][1:]
            show(rounds)
            if given.frames:
                long = repeated(video, Path(folder) / "long.mkv", given.frames)
                watch_memory(classifier, long, given.frames)


def measured(classifier: Classifier, video: Path) -> Round:
    """One round: decoding and the whole see every frame, the rest some."""
    frames = [*islice(decoded(video), SOME)]
    prepared = [classifier.prepare(frame.rgb()) for frame in frames]
    return Round(
        seconds_each(lambda: sum(1 for _ in decoded(video))),
        seconds_each(lambda: sum(classifier.prepare(frame.rgb()).ndim // 3 for frame in frames)),
        seconds_each(lambda: sum(len(classifier.predict_pixels(each[None])) for each in prepared)),
        seconds_each(lambda: sum(1 for _ in classifier.stream(video))),
    )


def decoded(video: Path) -> Iterator[Decoded]:
    """The frames of a file; their pictures are made when asked for."""
    with closing(opened_file(str(video))) as source:
        yield from source.frames(threading.Event())


def seconds_each(work: Callable[[], int]) -> float:
    """Seconds of some work by the number that it returns."""
    started = time.perf_counter()
    count = work()
    return (time.perf_counter() - started) / count


def show(rounds: list[Round]) -> None:
    """The medians of the rounds, and the verdict."""
    parts = ("decode", "prepare", "infer", "stream")
    medians = [statistics.median(getattr(each, f"{part}_s") for each in rounds) for part in parts]
    ratio = statistics.median(each.ratio for each in rounds)
    low, high = min(each.ratio for each in rounds), max(each.ratio for each in rounds)
    print("| decode ms | prepare ms | infer ms | all together ms | frames/s | ratio | bound |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {' | '.join(f'{1000 * each:.2f}' for each in medians)} | {1 / medians[3]:.1f} "
        f"| {ratio:.2f} ({low:.2f} to {high:.2f}) | {'held' if ratio >= BOUND else 'MISSED'} |",
        flush=True,
    )


def watch_memory(classifier: Classifier, video: Path, frames: int) -> None:
    """Print the resident memory ten times over the frames of one file."""
    process = psutil.Process()
    held: list[float] = []
    print("\n| frames | resident MiB |\n|---|---|")
    for count, _ in enumerate(classifier.stream(video), start=1):
        if count % (frames // 10) == 0:
            held.append(process.memory_info().rss / 2**20)
            print(f"| {count} | {held[-1]:.1f} |", flush=True)
    growth = held[-1] / held[0]
    print(f"\ngrowth {growth:.3f}, {'held' if growth <= GROWTH else 'MISSED'}")


def repeated(video: Path, path: Path, frames: int) -> Path:
    """Write the frames of a video again and again, without decoding them."""
    import av

    with av.open(str(video)) as given, av.open(str(path), "w") as made:
        stream = given.streams.video[0]
        out = made.add_stream_from_template(stream)
        packets = [packet for packet in given.demux(stream) if packet.size]
        length = sum(packet.duration or 0 for packet in packets)
        for turn in range(-(-frames // len(packets))):
            for packet in packets:
                copy = av.Packet(bytes(packet))
                copy.stream, copy.time_base = out, packet.time_base
                copy.is_keyframe, copy.duration = packet.is_keyframe, packet.duration
                copy.pts = None if packet.pts is None else packet.pts + turn * length
                copy.dts = None if packet.dts is None else packet.dts + turn * length
                made.mux(copy)
    return path


def made_video(photos: Path | None, path: Path, seconds: int) -> Path:
    """Write a 1080p H.264 file of photographs, or of noise without any, each panned for a second."""
    import av

    images = images_below(photos)[:seconds] if photos else []
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        assert isinstance(stream, av.VideoStream)
        (stream.width, stream.height), stream.pix_fmt = SIZE, "yuv420p"
        wide = (SIZE[0] + PAN_PX * FPS, SIZE[1])
        for second in range(seconds):
            if images:
                picture = ImageOps.fit(
                    Image.open(images[second % len(images)]).convert("RGB"), wide
                )
            else:
                noise = np.random.default_rng(second).integers(0, 256, (34, 61, 3), dtype=np.uint8)
                picture = Image.fromarray(noise).resize(wide, Image.Resampling.BICUBIC)
            pixels = np.asarray(picture)
            for left in range(0, PAN_PX * FPS, PAN_PX):
                frame = av.VideoFrame.from_ndarray(
                    np.ascontiguousarray(pixels[:, left : left + SIZE[0]])
                )
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


if __name__ == "__main__":
    main()
