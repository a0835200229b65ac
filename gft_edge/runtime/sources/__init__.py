"""What a classifier sees: images, video files, streams and cameras.

An argument is a file, a folder or a glob of images (images.py), a video file, a stream or a camera
(video.py), or a pipeline of GStreamer (gstreamer.py); open.py tells them apart. All but images are a Source:
frames one after another, read ahead in a thread of their own (reader.py).
"""

import re

_NO_PATH = re.compile(r"([a-z][a-z0-9+.-]*://|(camera|csi|gst):)", re.IGNORECASE)


def is_live(text: str) -> bool:
    """Whether an argument names a stream, a camera or a pipeline, whatever lies here under that name.

    A device opens such a source itself. What a URL leads to may turn out to be a file.
    """
    return _NO_PATH.match(text) is not None
