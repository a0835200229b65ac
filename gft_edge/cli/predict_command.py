"""gft-edge predict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.store import read_bundle, read_manifest
from gft_edge.cli.answers import finish, only
from gft_edge.cli.on_devices import OnDeviceCommand, OnDevices, on_option
from gft_edge.cli.options import (
    PATH,
    FiniteRange,
    backend_option,
    cache_folder,
    cache_option,
    json_option,
    openvino_device_option,
    refuse_given,
    threads_option,
)
from gft_edge.cli.output import print_json, progress, say, show, shown
from gft_edge.cli.predict_streams import Saving, label_streams, named, print_frame
from gft_edge.errors import ImageError, UsageError
from gft_edge.fidelity.verify import verify_once
from gft_edge.runtime.backends import backend_for
from gft_edge.runtime.classifier import Classifier
from gft_edge.runtime.openvino_devices import UNKEPT
from gft_edge.runtime.sources import is_live
from gft_edge.runtime.sources.images import expanded
from gft_edge.runtime.sources.open import is_video

MANY = 20


@click.command("predict", cls=OnDeviceCommand)
@click.argument("bundle", type=PATH)
@click.argument("sources", nargs=-1, required=True)
@click.option("--top-k", type=click.IntRange(1), default=5, show_default=True,
              help="Number of labels for each image, and in the JSON of each frame.")  # fmt: skip
@click.option("--every", type=click.IntRange(1), default=1, show_default=True,
              help="Label one frame in so many of a video or a camera.")  # fmt: skip
@click.option("--fps", type=FiniteRange(0, min_open=True),
              help="Number of frames a second to label of a video or a camera [default: all].")  # fmt: skip
@click.option("--min-probability", type=FiniteRange(0, 1), metavar="P",
              help="Least probability, of 1, for a label: what is less sure is none of these [default: the "
              "bundle's own].")  # fmt: skip
@click.option("--smooth", "smooth_s", type=FiniteRange(0), default=0.0, show_default=True,
              metavar="SECONDS",
              help="Seconds of a video or a camera over which probabilities are averaged.")  # fmt: skip
@click.option("--save", type=PATH, metavar="OUT.mp4|FOLDER",
              help="Video, or folder for pictures, to write the labelled frames to.")  # fmt: skip
@click.option("--show-kept", is_flag=True,
              help="Show the patches that survive each stage beside each frame of --save.")  # fmt: skip
@backend_option
@threads_option
@openvino_device_option
@cache_option
@on_option
@json_option
def command(
    bundle: Path,
    sources: tuple[str, ...],
    backend: str | None,
    threads: int | None,
    device: str | None,
    cache_dir: str | None,
    min_probability: float | None,
    devices: OnDevices | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Classify images, the frames of videos, and what cameras see.

    A SOURCE is an image, a folder of images (searched through), a video, a glob of these, a stream
    (rtsp://, http://), camera:0, on a Jetson csi:0, or gst:PIPELINE. Of a camera or a stream the newest
    frame is labelled, again and again, until Ctrl-C. What cannot be read is reported and the rest goes on;
    the exit code is then 1.

    gft-edge predict bundles/grocery photo.jpg --top-k 3
    gft-edge predict bundles/grocery rtsp://192.168.1.20/live --save seen.mp4 --show-kept
    """
    if devices is not None:
        _on(devices, bundle, sources, backend, as_json)
        return
    meant = [*_meant(sources)]
    moving = dict.fromkeys(source for source in meant if _moves(source))
    images = [source for source in meant if source not in moving]
    saving = _saving(settings.pop("save"), settings.pop("show_kept"), [*moving])
    opened = read_bundle(bundle)
    folder = cache_folder(cache_dir, backend_for(backend or opened.manifest.target).TARGET)
    if cache_dir not in (None, "none") and (device or "").partition(":")[0] in UNKEPT:
        raise UsageError(f"what {device} compiles cannot be kept: leave --cache-dir out")
    kept = saving is not None and saving.checked(opened.manifest)
    verify_once(opened, backend, device)
    with Classifier.load(
        opened, backend, threads, kept=kept, device=device, cache_dir=folder, spin=not moving,
        min_probability=min_probability,
    ) as classifier:  # fmt: skip
        unread = _label_images(classifier, images, settings["top_k"], as_json)
        if unread:
            say(f"{unread} of {len(images)} images could not be read")
        if moving:
            unread += label_streams(classifier, [*moving], saving, as_json, **settings)
    if unread:
        raise click.exceptions.Exit(1)


def _meant(sources: Sequence[str]) -> Iterator[str]:
    """What sources mean, in order, of globs and folders each file."""
    for source in sources:
        yield from [source] if is_live(source) else expanded([source], say, also=is_video)


def _moves(source: str) -> bool:
    return is_live(source) or is_video(source)


def _saving(save: Path | None, show_kept: bool, moving: Sequence[str]) -> Saving | None:
    """What --save and --show-kept ask for. Raises UsageError where they, or others, ask for nothing."""
    if not moving:
        why = "is for videos and cameras: here are images alone"
        refuse_given("every", "fps", "smooth_s", "save", "show_kept", why=why)
    if show_kept and save is None:
        raise UsageError(
            "--show-kept draws the frames of --save: give --save OUT.mp4 or a folder too"
        )
    return None if save is None else Saving(save, show_kept, moving)


def _label_images(classifier: Classifier, images: Sequence[str], top_k: int, as_json: bool) -> int:
    """Print the predictions of each image; return how many could not be read."""
    failed = 0
    with progress() as report:
        for number, path in enumerate(images, start=1):
            try:
                predictions = classifier.predict(path, top_k)
            except ImageError as error:
                failed += 1
                _print({"path": path, "error": str(error)}, as_json, classifier.labels)
            else:
                found = {"label": predictions[0].label, "predictions": to_json(predictions)}
                _print({"path": path, **found}, as_json, classifier.labels)
            if len(images) >= MANY:
                report("classify", number, len(images))
    return failed


def _print(content: dict[str, Any], as_json: bool, labels: Sequence[str]) -> None:
    """An image's or a frame's predictions, or why it has none."""
    if as_json:
        print_json(content, lines=True)
    elif "error" in content:
        say(f"Error: {shown(content['error'])}")
    elif "source" in content:
        print_frame(content, labels)
    else:
        show(
            shown(content["path"]),
            *(
                f"  {100 * p['probability']:6.2f} %  {named(p['label'], p['index'], labels)}"
                for p in content["predictions"]
            ),
        )


def _on(
    devices: OnDevices, bundle: Path, sources: Sequence[str], backend: str | None, as_json: bool
) -> None:
    several = len(devices.hosts) > 1
    refuse_given(
        "save", "show_kept", why="writes here, and --on reads there: leave one of them out"
    )

    def each(host: str, content: dict[str, Any]) -> None:
        if several and not as_json:
            name = "source" if "source" in content else "path"
            content[name] = f"{host}: {content[name]}"
        _print({**content, "host": host}, as_json, labels)

    labels = read_manifest(bundle).model.labels
    words = devices.words(sent=("bundle",), replaced={"sources": devices.sources(sources)})
    extras = {"video"} if any(map(_moves, sources)) else set[str]()
    answers = devices.do(words, [bundle], backend, each=each, extras=extras)
    if not several and answers[0].error is not None:
        only(answers)
    finish(answers)
