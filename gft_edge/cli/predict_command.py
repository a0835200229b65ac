"""gft-edge predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.store import read_bundle, read_manifest
from gft_edge.cli.answers import finish, only
from gft_edge.cli.on_devices import OnDeviceCommand, OnDevices, on_option
from gft_edge.cli.options import (
    PATH,
    backend_option,
    cache_folder,
    cache_option,
    json_option,
    threads_option,
)
from gft_edge.cli.output import print_json, progress, say, show, shown
from gft_edge.errors import ImageError
from gft_edge.runtime.backends import backend_for
from gft_edge.runtime.classifier import Classifier
from gft_edge.runtime.sources.images import expanded

MANY = 20


@click.command("predict", cls=OnDeviceCommand)
@click.argument("bundle", type=PATH)
@click.argument("paths", nargs=-1, required=True)
@click.option("--top-k", type=click.IntRange(1), default=5, show_default=True,
              help="Number of labels to print for each image.")  # fmt: skip
@backend_option
@threads_option
@cache_option
@on_option
@json_option
def command(
    bundle: Path,
    paths: tuple[str, ...],
    top_k: int,
    backend: str | None,
    threads: int | None,
    cache_dir: str | None,
    devices: OnDevices | None,
    as_json: bool,
) -> None:
    """Classify images: files, folders (searched through) and globs.

    An image that cannot be read is reported and the rest goes on; the exit code is then 1.

    gft-edge predict bundles/grocery photo.jpg --top-k 3
    """
    if devices is not None:
        _on(devices, bundle, paths, backend, as_json)
        return
    opened = read_bundle(bundle)
    folder = cache_folder(cache_dir, backend_for(backend or opened.manifest.target).TARGET)
    with Classifier.load(opened, backend, threads, cache_dir=folder) as classifier:
        images = list(expanded(paths, say))
        failed = 0
        with progress() as report:
            for number, path in enumerate(images, start=1):
                try:
                    predictions = classifier.predict(path, top_k)
                except ImageError as error:
                    failed += 1
                    _print({"path": path, "error": str(error)}, as_json)
                else:
                    _print({"path": path, "predictions": to_json(predictions)}, as_json)
                if len(images) >= MANY:
                    report("classify", number, len(images))
    if failed:
        say(f"{failed} of {len(images)} images could not be read")
        raise click.exceptions.Exit(1)


def _print(content: dict[str, Any], as_json: bool) -> None:
    """An image's predictions, or why it has none."""
    if as_json:
        print_json(content, lines=True)
    elif "error" in content:
        say(f"Error: {shown(content['error'])}")
    else:
        show(
            shown(content["path"]),
            *(f"  {100 * p['probability']:6.2f} %  {p['label']}" for p in content["predictions"]),
        )


def _on(
    devices: OnDevices, bundle: Path, paths: tuple[str, ...], backend: str | None, as_json: bool
) -> None:
    several = len(devices.hosts) > 1

    def each(host: str, content: dict[str, Any]) -> None:
        if several and not as_json:
            content["path"] = f"{host}: {content['path']}"
        _print({**content, "host": host}, as_json)

    read_manifest(bundle)
    words = devices.words(sent=("bundle",), replaced={"paths": devices.sources(paths)})
    answers = devices.do(words, [bundle], backend, each=each)
    if not several and answers[0].error is not None:
        only(answers)
    finish(answers)
