"""The images of --data for a device: those that the command reads, or a folder that is there already."""

from __future__ import annotations

from collections.abc import Callable

from gft_edge.bundle.images import DataSource
from gft_edge.cli.errand import Here, Word
from gft_edge.cli.given_images import GivenImages
from gft_edge.cli.on_devices import OnDevices
from gft_edge.datasets import Photographs, Split, imagefolder


def sent_data(
    devices: OnDevices, given: GivenImages, read: Callable[[DataSource], Photographs | Split]
) -> dict[str, list[Word]]:
    """The word of --data: of a folder here only the images that `read` lists travel.

    Other data sets travel whole, as their lists lie beside the images. Raises UsageError.
    """
    if given.data is not None and (there := devices.there(str(given.data))):
        return {"data": [there]}
    source = given.source()
    if source is None:
        return {}
    needed = tuple(read(source).paths)
    whole = source.dataset != imagefolder.NAME
    return {"data": [Here(source.folder, str(source.folder), () if whole else needed)]}
