"""The device API: Classifier.load(bundle).predict(image) -> predictions."""

from __future__ import annotations

import ctypes
import dataclasses
import heapq
import math
import os
import time
import weakref
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, get_args, overload

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.specs import Prediction, Preprocessing, Say
from gft_edge.bundle.store import Bundle, read_bundle
from gft_edge.errors import FailedError, UsageError
from gft_edge.runtime.backends import Hint, Session
from gft_edge.runtime.batches import Advance, session_outputs
from gft_edge.runtime.device_verdicts import warn_of_doubt
from gft_edge.runtime.image_inputs import ImageLike, decoded_rgb, each_named, images_of
from gft_edge.runtime.opening import bundle_request
from gft_edge.runtime.outputs import Outputs
from gft_edge.runtime.preprocess import batch_from_pixels, resize_and_crop
from gft_edge.runtime.stream import Failed, Labelled, Stream, StreamSettings

_ELSEWHERE = (
    "this Classifier was loaded in another process, and no engine can be handed on: load the bundle in "
    "the process that uses it"
)
_loaded: weakref.WeakSet[Classifier] = weakref.WeakSet()


@dataclass(frozen=True)
class Timing:
    """Where the time of one `predict` went; the parts sum to `total_ms`.

    `compute_ms` holds the launch and the wait for the engine too. Frames are decoded already.
    """

    decode_ms: float
    preprocess_ms: float
    host_to_device_ms: float
    compute_ms: float
    device_to_host_ms: float
    postprocess_ms: float

    @property
    def total_ms(self) -> float:
        """From the encoded images or frames to the predictions."""
        return float(sum(dataclasses.astuple(self)))


class Classifier:
    """A bundle loaded into an engine.

    `predict` may be called from several threads at once, in the process that loaded it: engines do not
    survive a fork, and cannot be pickled. Close it, or use it as a context manager, to release the engine.
    """

    def __init__(self, bundle: Bundle, session: Session):
        self.bundle = bundle
        self._session: Session | None = session
        self._is_copy = False
        self._temperature = bundle.manifest.confidence.temperature
        self._min_probability = bundle.manifest.confidence.min_probability
        _loaded.add(self)

    def __reduce__(self) -> NoReturn:
        raise UsageError(_ELSEWHERE)

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle,
        backend: str | None = None,
        threads: int | None = None,
        *,
        kept: bool = False,
        cuda_graph: bool = False,
        hint: Hint = "latency",
        device: str | None = None,
        cache_dir: str | Path | None = None,
        spin: bool = True,
        min_probability: float | None = None,
    ) -> Classifier:
        """Open a bundle folder.

        `backend` is the target it was exported for unless named; OpenVINO also loads ONNX bundles.
        `threads` is a CPU engine's, all cores unless given. With `kept`, `outputs` also returns the
        kept patches. With `cuda_graph` TensorRT replays its launches from one recording. With the
        `hint` throughput OpenVINO runs several images of a list at once, each more slowly. It computes
        on `device`: CPU unless given, or GPU, GPU.1, NPU, AUTO, HETERO:GPU,CPU. A GPU and an NPU compute
        in f16, which is logged as a warning where gft-edge verify has not passed on that device. In
        `cache_dir` it keeps compiled models, which then load sooner; where it cannot, it goes on without.
        An image whose likeliest class is under `min_probability`, of 1 and the bundle's own unless given, has
        the label None. Without `spin` ONNX Runtime's threads sleep while they wait, and leave the cores to
        whatever else is done, as `stream` decodes. Raises BundleError, MissingDependencyError and UsageError.
        """
        opened = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
        if min_probability is not None:
            check_probability(min_probability)
        engine, request = bundle_request(
            opened,
            backend,
            threads,
            kept_outputs=opened.manifest.kept_outputs if kept else (),
            cuda_graph=cuda_graph,
            hint=hint,
            device=device,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            spin="always" if spin else "never",
        )
        if hint not in get_args(Hint):
            raise UsageError(f"hint is {hint!r}: give {' or '.join(get_args(Hint))}")
        for option, given, owner in (
            ("cuda_graph", cuda_graph, "tensorrt"),
            ("hint throughput", hint == "throughput", "openvino"),
            ("cache_dir", cache_dir is not None, "openvino"),
        ):
            if given and owner != engine.TARGET:
                raise UsageError(f"{option} needs {owner}: leave it out for {engine.TARGET}")
        session = engine.open_session(opened.artifact_path, request)
        warn_of_doubt(opened, session, engine.version(), device)
        found = cls(opened, session)
        if min_probability is not None:
            found._min_probability = min_probability
        return found

    @property
    def session(self) -> Session:
        """The engine itself. Raises UsageError when closed, or in a process that it was not loaded in."""
        session = self._session
        if session is None:
            raise UsageError(
                _ELSEWHERE if self._is_copy else "this Classifier is closed: load the bundle again"
            )
        return session

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.bundle.manifest.model.labels

    # A str is a sequence of str as well; it means one path, and the first overload takes it.
    @overload
    def predict(  # type: ignore[overload-overlap]
        self, images: ImageLike, top_k: int = 5
    ) -> list[Prediction]: ...

    @overload
    def predict(self, images: Iterable[ImageLike], top_k: int = 5) -> list[list[Prediction]]: ...

    def predict(
        self, images: ImageLike | Iterable[ImageLike], top_k: int = 5
    ) -> list[Prediction] | list[list[Prediction]]:
        """The `top_k` likeliest classes, best first; one such list an image when given several.

        An image is a path, the bytes of an image file, a file opened in binary, a PIL image, or a uint8
        array (H,W,3) RGB or (H,W) grey; several are a list of them, or anything that yields them in
        order. Raises ImageError for one that cannot be decoded or is something else, UsageError when
        closed or top_k < 1.
        """
        given, alone = images_of(images)
        if not given:
            return []
        found = self._predictions(self.logits(given), top_k)
        return found[0] if alone else found

    def predict_pixels(
        self, pixels: npt.NDArray[np.uint8], top_k: int = 5
    ) -> list[list[Prediction]]:
        """As `predict`, for images that `prepare` has made ready: uint8 (images,S,S,3)."""
        return self._predictions(self.outputs(pixels).logits, top_k)

    def prepare(self, image: ImageLike) -> npt.NDArray[np.uint8]:
        """Decode, resize and crop an image: uint8 (S,S,3). Raises ImageError."""
        return load_pixels(image, self.bundle.manifest.model.preprocessing)

    def predict_timed(
        self, images: Sequence[ImageLike], top_k: int = 5
    ) -> tuple[list[list[Prediction]], Timing]:
        """As `predict` for one engine run: as many images as the static batch, and where the time went."""
        manifest = self.bundle.manifest
        if len(images) != manifest.input.batch:
            raise UsageError(
                f"{len(images)} images for one run of a static batch of {manifest.input.batch}"
            )
        started = time.perf_counter()
        decoded = [*each_named(images, decoded_rgb)]
        at_preprocess = time.perf_counter()
        spec = manifest.model.preprocessing
        pixels = np.stack([resize_and_crop(image, spec) for image in decoded])
        batch = batch_from_pixels(pixels, spec, manifest.input.dtype)
        at_run = time.perf_counter()
        outputs, split = self.session.run_split(batch)
        at_postprocess = time.perf_counter()
        predictions = self._predictions(outputs[0], top_k)
        ended = time.perf_counter()
        copies_ms = split.host_to_device_ms + split.device_to_host_ms
        return predictions, Timing(
            decode_ms=(at_preprocess - started) * 1000,
            preprocess_ms=(at_run - at_preprocess) * 1000,
            host_to_device_ms=split.host_to_device_ms,
            compute_ms=(at_postprocess - at_run) * 1000 - copies_ms,
            device_to_host_ms=split.device_to_host_ms,
            postprocess_ms=(ended - at_postprocess) * 1000,
        )

    def stream(
        self,
        sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        top_k: int = 5,
        *,
        every: int = 1,
        fps: float | None = None,
        smooth_s: float = 0.0,
        say: Say = lambda text: None,
        failed: Failed | None = None,
    ) -> Generator[Labelled, None, None]:
        """Label the frames of videos, streams and cameras as they come: `gft-edge predict`'s sources.

        A source is a video file, a URL, `camera:0`, `csi:0` or `gst:PIPELINE`. Of live ones always the
        newest frame is labelled. One frame in `every` is, or about `fps` a second of the source's time;
        probabilities are means over `smooth_s` seconds. Decoding is done beside the engine: load without
        `spin`. `say` gets remarks, and `failed` a source and why
        it cannot be read, or no further, while the others go on; without it that SourceError is raised.
        Raises MissingDependencyError, and UsageError for settings out of range.
        """
        settings = StreamSettings(top_k, every, fps, smooth_s)
        given = [sources] if isinstance(sources, (str, os.PathLike)) else sources
        names = [os.fspath(source) for source in given]
        return Stream(self, self._ranked, names, settings, say, failed).labelled()

    def logits(self, images: Sequence[ImageLike]) -> npt.NDArray[np.float32]:
        """Float32 (images, classes), for one image or more."""
        if not len(images):
            raise UsageError("logits of no image: give one or more")
        return self.outputs(np.stack([*each_named(images, self.prepare)])).logits

    def outputs(self, pixels: npt.NDArray[np.uint8], advance: Advance | None = None) -> Outputs:
        """Everything the engine returns for preprocessed uint8 (images,S,S,3)."""
        session, manifest = self.session, self.bundle.manifest
        preprocessing = manifest.model.preprocessing
        size = preprocessing.image_size_px
        if pixels.dtype != np.uint8 or not len(pixels) or pixels.shape[1:] != (size, size, 3):
            raise UsageError(
                f"pixels are {pixels.dtype} {pixels.shape}, expected uint8 (images, {size}, {size}, 3)"
            )
        return session_outputs(session, pixels, manifest.input, preprocessing, advance)

    def close(self) -> None:
        """Release the engine. Closing twice is harmless."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _predictions(self, logits: npt.NDArray[np.float32], top_k: int) -> list[list[Prediction]]:
        if top_k < 1:
            raise UsageError(f"top_k is {top_k}: give 1 or more")
        return [self.accepted(row) for row in self._ranked(logits, top_k)]

    def _ranked(self, logits: npt.NDArray[np.float32], top_k: int) -> list[list[Prediction]]:
        return [self._likeliest(row, top_k) for row in logits.tolist()]

    def accepted(self, ranked: list[Prediction]) -> list[Prediction]:
        """The same predictions of an image, without labels where the likeliest is under the least."""
        if ranked[0].probability >= self._min_probability:
            return ranked
        return [Prediction(None, each.index, each.probability) for each in ranked]

    def _likeliest(self, logits: list[float], top_k: int) -> list[Prediction]:
        # Plain Python: behind an inference, whose data fill the caches, each NumPy function takes ten
        # microseconds or more to come back, and 81 classes half as long this way.
        if self._temperature != 1:
            logits = [logit / self._temperature for logit in logits]
        largest = max(logits)
        total = sum([math.exp(logit - largest) for logit in logits])
        if not math.isfinite(total) or -math.inf in logits:
            raise FailedError("the logits hold NaN or infinity: run gft-edge verify on this bundle")
        labels = self.labels
        return [
            Prediction(labels[i], i, math.exp(logits[i] - largest) / total)
            for i in heapq.nlargest(top_k, range(len(logits)), key=logits.__getitem__)
        ]


def _abandon() -> None:
    """Leave the engines that a process which was forked has copies of as they are, for good.

    Their threads are the other process's: to run one, or to take it apart, would wait for them forever,
    at exit too.
    """
    for classifier in list(_loaded):
        session, classifier._session = classifier._session, None
        if session is not None:
            classifier._is_copy = True
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon)


def check_probability(given: float) -> None:
    """Raise UsageError for a least probability that is none."""
    if not 0 <= given <= 1:
        raise UsageError(f"the least probability is {given:g}: give 0, which always answers, to 1")


def load_pixels(
    image: ImageLike, spec: Preprocessing, crop_bottom_px: int = 0
) -> npt.NDArray[np.uint8]:
    """Any supported image, less rows at its bottom -> uint8 (S,S,3). Raises ImageError."""
    return resize_and_crop(decoded_rgb(image, crop_bottom_px), spec)
