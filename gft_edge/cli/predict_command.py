"""gft-edge predict."""

from __future__ import annotations

from pathlib import Path

import click

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.specs import Prediction
from gft_edge.bundle.store import read_bundle
from gft_edge.cli.options import (
    PATH,
    backend_option,
    cache_folder,
    cache_option,
    json_option,
    threads_option,
)
from gft_edge.cli.output import print_json, progress, say, shown
from gft_edge.errors import ImageError
from gft_edge.runtime.backends import backend_for
from gft_edge.runtime.classifier import Classifier
from gft_edge.runtime.sources import expanded

MANY = 20


@click.command("predict")
@click.argument("bundle", type=PATH)
@click.argument("paths", nargs=-1, required=True)
@click.option("--top-k", type=click.IntRange(1), default=5, show_default=True)
@backend_option
@threads_option
@cache_option
@json_option
def command(
    bundle: Path,
    paths: tuple[str, ...],
    top_k: int,
    backend: str | None,
    threads: int | None,
    cache_dir: str | None,
    as_json: bool,
) -> None:
    """Classify images: files, folders (searched through) and globs.

    An image that cannot be read is reported and the rest goes on; the exit code is then 1.
    """
    opened = read_bundle(bundle)
    target = backend_for(backend or opened.manifest.target).TARGET
    folder = cache_folder(cache_dir, target)
    with Classifier.load(opened, backend, threads, cache_dir=folder) as classifier:
        images = list(expanded(paths))
        failed = 0
        with progress() as report:
            for number, path in enumerate(images, start=1):
                try:
                    _show(path, classifier.predict(path, top_k), as_json)
                except ImageError as error:
                    failed += 1
                    if as_json:
                        print_json({"path": path, "error": str(error)}, lines=True)
                    else:
                        say(f"Error: {shown(str(error))}")
                if len(images) >= MANY:
                    report("classify", number, len(images))
    if failed:
        say(f"{failed} of {len(images)} images could not be read")
        raise click.exceptions.Exit(1)


def _show(path: str, predictions: list[Prediction], as_json: bool) -> None:
    if as_json:
        print_json({"path": path, "predictions": to_json(predictions)}, lines=True)
        return
    click.echo(shown(path))
    for prediction in predictions:
        click.echo(f"  {100 * prediction.probability:6.2f} %  {prediction.label}")
