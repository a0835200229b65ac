"""gft-edge predict."""

from __future__ import annotations

from pathlib import Path

import click

from gft_edge.bundle.store import read_bundle
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
from gft_edge.runtime.sources import expanded

MANY = 20


@click.command("predict")
@click.argument("bundle", type=PATH)
@click.argument("paths", nargs=-1, required=True)
@click.option("--top-k", type=click.IntRange(1), default=5, show_default=True,
              help="Number of labels to print for each image.")  # fmt: skip
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

    gft-edge predict bundles/grocery photo.jpg --top-k 3
    """
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
                    if as_json:
                        print_json({"path": path, "error": str(error)}, lines=True)
                    else:
                        say(f"Error: {shown(error)}")
                else:
                    if as_json:
                        print_json({"path": path, "predictions": predictions}, lines=True)
                    else:
                        show(shown(path))
                        show(*(f"  {100 * p.probability:6.2f} %  {p.label}" for p in predictions))
                if len(images) >= MANY:
                    report("classify", number, len(images))
    if failed:
        say(f"{failed} of {len(images)} images could not be read")
        raise click.exceptions.Exit(1)
