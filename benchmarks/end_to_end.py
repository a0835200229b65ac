"""From the bytes of a photograph to its label, against the usual ways of doing so, in one process.

python benchmarks/end_to_end.py [BUNDLE ...] --images FOLDER [--random gft_base] [--megapixels 12]

BUNDLEs are of --target onnx or openvino, batch 1 and uint8 input (the default). --random adds a network
of random weights in INT8 on OpenVINO: its time, not its accuracy. Every pipeline runs the same engine
file, a few photographs in turn, and their ratios, medians over rounds, are what to quote.
--megapixels scales the photographs up to a camera's size first: where their shorter side already is what
preprocessing scales to, as in the data set of the README, any resize gives timm's pixels. Where
opencv-python-headless or simplejpeg is installed, it is compared too.
"""

from __future__ import annotations

import argparse
import functools
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from torchvision import io as torchvision_io
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
from torchvision.transforms.v2 import functional

from gft_edge.bundle.specs import Preprocessing
from gft_edge.bundle.store import Bundle, read_bundle
from gft_edge.model.named_networks import spec_from_name
from gft_edge.profiling.machine import summary, this_machine
from gft_edge.runtime.classifier import Classifier
from gft_edge.runtime.preprocess import resize_and_crop, rgb_from_bytes
from gft_edge.runtime.sources.images import images_below
from random_network import GIVEN, random_bundle

Pixels = npt.NDArray[np.uint8]
Engine = Callable[[Pixels], npt.NDArray[np.float32]]

TURN = 5
INTERPOLATION = {
    "bicubic": InterpolationMode.BICUBIC,
    "bilinear": InterpolationMode.BILINEAR,
    "lanczos": InterpolationMode.LANCZOS,
    "nearest": InterpolationMode.NEAREST,
}


@dataclass(frozen=True)
class Pipeline:
    """`label` is what is timed: a photograph's bytes -> class index. `pixels` is what its network sees."""

    name: str
    label: Callable[[bytes], int]
    pixels: Callable[[bytes], Pixels]


def main() -> None:
    """Print a table a bundle as Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument(
        "--count", type=int, default=100, help="photographs, evenly over the folder"
    )
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, help="of the engine [default: all cores]")
    parser.add_argument("--random", metavar="NETWORK")
    parser.add_argument("--megapixels", type=float)
    given = parser.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    paths = images_below(given.images)
    photographs = [path.read_bytes() for path in paths[:: max(1, len(paths) // given.count)]]
    if given.megapixels:
        photographs = [scaled_up(data, given.megapixels) for data in photographs]
    print(f"{summary(this_machine())}; {len(photographs)} photographs of {given.images.name}")
    for folder in given.bundles:
        print_table(folder.name, read_bundle(folder), photographs, given)
    if given.random:
        with tempfile.TemporaryDirectory() as scratch:
            classes = tuple(f"class {number}" for number in range(10))
            spec = spec_from_name(given.random, classes)
            calibration = [rgb_from_bytes(data) for data in photographs[:8]]
            bundle = random_bundle(spec, calibration, Path(scratch))
            print_table(f"{given.random}, random weights", bundle, photographs, given)


def print_table(
    name: str, bundle: Bundle, photographs: Sequence[bytes], given: argparse.Namespace
) -> None:
    """One row a pipeline."""
    manifest = bundle.manifest
    if manifest.input != GIVEN:
        raise SystemExit(f"{name}: export it with --input uint8 --batch 1")
    spec = manifest.model.preprocessing
    with Classifier.load(bundle, threads=given.threads) as classifier:
        engine = raw_engine(bundle, given.threads)
        pipelines = [
            Pipeline(
                "gft-edge: Classifier.predict",
                lambda data: classifier.predict(data, top_k=1)[0].index,
                lambda data: resize_and_crop(rgb_from_bytes(data), spec),
            ),
            *(
                Pipeline(name, with_engine(pixels, engine), pixels)
                for name, pixels in usual_ways(spec).items()
            ),
            *in_graph_pipelines(bundle, given.threads),
        ]
        alone_ms, times_ms = measured(pipelines, engine, photographs, spec, given.rounds)
    print(f"\n{name}, {manifest.precision}, {manifest.target}\n")
    print("| pipeline | median ms | / gft-edge | / engine alone | pixels as timm's |")
    print("|---|---|---|---|---|")
    ours = times_ms[pipelines[0].name]
    for pipeline in pipelines:
        took = times_ms[pipeline.name]
        print(
            f"| {pipeline.name} | {statistics.median(took):.2f} | {ratio(took, ours):.2f} | "
            f"{ratio(took, alone_ms):.2f} | {parity(pipeline, photographs, spec)} |"
        )
    print(
        f"| engine alone | {statistics.median(alone_ms):.2f} | {ratio(alone_ms, ours):.2f} | 1.00 | |"
    )


def with_engine(pixels: Callable[[bytes], Pixels], engine: Engine) -> Callable[[bytes], int]:
    """A preprocessing and the raw engine as one call."""
    return lambda data: int(engine(pixels(data)).argmax())


def measured(
    pipelines: Sequence[Pipeline],
    engine: Engine,
    photographs: Sequence[bytes],
    spec: Preprocessing,
    rounds: int,
) -> tuple[list[float], dict[str, list[float]]]:
    """Milliseconds of the engine alone and of each pipeline: per round, the median of a turn each."""
    prepared = [resize_and_crop(rgb_from_bytes(data), spec) for data in photographs]
    calls: dict[str, list[Callable[[], object]]] = {
        "alone": [functools.partial(engine, pixels) for pixels in prepared]
    }
    for pipeline in pipelines:
        calls[pipeline.name] = [functools.partial(pipeline.label, data) for data in photographs]
    times_ms: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name, labels in calls.items():
            turn = [labels[(number * TURN + step) % len(labels)] for step in range(TURN)]
            # Twice untimed: each pipeline has an engine whose weights the others push from the cache.
            turn[0](), turn[0]()
            times_ms[name].append(statistics.median(milliseconds(call) for call in turn))
    return times_ms.pop("alone"), times_ms


def milliseconds(call: Callable[[], object]) -> float:
    """What a call takes."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def ratio(times_ms: Sequence[float], to_ms: Sequence[float]) -> float:
    """The median over rounds of the ratio within each."""
    return statistics.median(a / b for a, b in zip(times_ms, to_ms, strict=True))


def parity(pipeline: Pipeline, photographs: Sequence[bytes], spec: Preprocessing) -> str:
    """How the pixels that the network sees differ from those of timm's evaluation transform."""
    transform = timm_transform(spec)
    differ, pixels, largest = 0, 0, 0
    for data in photographs:
        with Image.open(io.BytesIO(data)) as image:
            expected = transform(ImageOps.exif_transpose(image).convert("RGB"))
        difference = np.abs(pipeline.pixels(data).astype(np.int16) - expected.transpose(1, 2, 0))
        differ += bool(difference.any())
        pixels += int(difference.any(axis=-1).sum())
        largest = max(largest, int(difference.max()))
    if not differ:
        return "yes, all"
    share = pixels / (len(photographs) * spec.image_size_px**2)
    return (
        f"no: {differ / len(photographs):.0%} of photographs, {share:.2%} of pixels, by up to "
        f"{largest}"
    )


def timm_transform(spec: Preprocessing) -> Callable[[Image.Image], npt.NDArray[Any]]:
    """timm's evaluation transform up to uint8 (3,S,S), which the graph goes on from."""
    transform: Callable[[Image.Image], npt.NDArray[Any]] = create_transform(
        (3, spec.image_size_px, spec.image_size_px),
        is_training=False,
        interpolation=spec.interpolation,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
        mean=spec.mean,
        std=spec.std,
        use_prefetcher=True,
    )
    return lambda image: np.asarray(transform(image))


def usual_ways(spec: Preprocessing) -> dict[str, Callable[[bytes], Pixels]]:
    """What people write: the bytes of a photograph -> uint8 (S,S,3), none of it turned by EXIF."""
    size, scale = spec.image_size_px, int(spec.image_size_px / spec.crop_pct)
    transform = timm_transform(spec)
    mode = INTERPOLATION[spec.interpolation]
    resize = Compose([Resize(scale, mode), CenterCrop(size)])

    def timm(data: bytes) -> Pixels:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return np.ascontiguousarray(transform(image).transpose(1, 2, 0))

    def torchvision(data: bytes) -> Pixels:
        return np.asarray(resize(Image.open(io.BytesIO(data)).convert("RGB")))

    def torchvision_v2(data: bytes) -> Pixels:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        image = torchvision_io.decode_jpeg(encoded, torchvision_io.ImageReadMode.RGB)
        resized = functional.resize(image, [scale], mode, antialias=True)
        pixels: Pixels = functional.center_crop(resized, [size]).permute(1, 2, 0).numpy()
        return np.ascontiguousarray(pixels)

    ways: dict[str, Callable[[bytes], Pixels]] = {
        "timm transform + engine": timm,
        "torchvision transform + engine": torchvision,
        "torchvision v2 on tensors + engine": torchvision_v2,
    }
    if find_spec("cv2"):
        ways["OpenCV decode and cubic resize + engine"] = opencv_way(size, scale)
    if find_spec("simplejpeg"):
        simplejpeg = import_module("simplejpeg")
        ways["simplejpeg, Pillow resize + engine"] = lambda data: resize_and_crop(
            Image.fromarray(simplejpeg.decode_jpeg(data, "RGB")), spec
        )
    return ways


def opencv_way(size: int, scale: int) -> Callable[[bytes], Pixels]:
    """Decoding and resizing of OpenCV, which takes no mean of the pixels it drops."""
    cv2 = import_module("cv2")

    def opencv(data: bytes) -> Pixels:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        height, width = image.shape[:2]
        shorter = min(height, width)
        target = (int(scale * width / shorter), int(scale * height / shorter))
        image = cv2.resize(image, target, interpolation=cv2.INTER_CUBIC)
        return cropped(image, size)

    return opencv


def cropped(image: Pixels, size: int) -> Pixels:
    """The centre of (H,W,3)."""
    top, left = round((image.shape[0] - size) / 2), round((image.shape[1] - size) / 2)
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def raw_engine(bundle: Bundle, threads: int | None) -> Engine:
    """The engine as its own documentation calls it, told the same as the classifier tells it."""
    run = compiled(bundle.artifact_path, bundle.manifest.runtime_precision, threads)
    return lambda pixels: run(pixels[None])


def in_graph_pipelines(bundle: Bundle, threads: int | None) -> list[Pipeline]:
    """Decoding in Pillow, resizing in the graph: the square that the crop keeps, straight to (S,S)."""
    spec = bundle.manifest.model.preprocessing
    if spec.interpolation != "bicubic" or spec.crop_mode != "center":
        return []
    run, resize = with_resize_in_graph(bundle, threads)
    size, scale = spec.image_size_px, int(spec.image_size_px / spec.crop_pct)

    def square(data: bytes) -> Pixels:
        image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        return cropped(image, round(min(image.shape[:2]) * size / scale))

    return [
        Pipeline(
            "resize in the graph",
            lambda data: int(run(square(data)[None]).argmax()),
            lambda data: resize(square(data)[None])[0].astype(np.uint8),
        )
    ]


def with_resize_in_graph(bundle: Bundle, threads: int | None) -> tuple[Any, Any]:
    """The bundle's graph behind a resize from any size, and the resize alone."""
    size = bundle.manifest.model.preprocessing.image_size_px
    precision = bundle.manifest.runtime_precision
    if bundle.manifest.target == "onnx":
        import onnx

        graph = resize_graph(size)
        whole = onnx.compose.merge_models(
            onnx.compose.add_prefix(graph, "resize_"),
            onnx.load(bundle.artifact_path),
            [("resize_resized", "images")],
        )
        return (
            compiled(whole.SerializeToString(), precision, threads),
            compiled(graph.SerializeToString(), precision, threads),
        )
    import openvino
    from openvino import opset13
    from openvino.preprocess import PrePostProcessor, ResizeAlgorithm

    image = opset13.parameter([1, size, size, 3], np.uint8)
    nothing = openvino.Model([opset13.result(opset13.convert(image, np.uint8))], [image])
    models = []
    for model in (openvino.Core().read_model(bundle.artifact_path), nothing):
        steps = PrePostProcessor(model)
        tensor = steps.input().tensor()
        tensor.set_shape([1, -1, -1, 3]).set_layout(openvino.Layout("NHWC"))
        steps.input().model().set_layout(openvino.Layout("NHWC"))
        steps.input().preprocess().resize(ResizeAlgorithm.RESIZE_BICUBIC_PILLOW, size, size)
        models.append(compiled(steps.build(), precision, threads))
    return models[0], models[1]


def resize_graph(size: int) -> Any:
    """ONNX: uint8 (1,H,W,3) -> uint8 (1,size,size,3) by the antialiased cubic Resize."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Resize", ["nchw", "", "", "sizes"], ["values"], mode="cubic",
                         antialias=1, cubic_coeff_a=-0.5),
        helper.make_node("Round", ["values"], ["rounded"]),
        helper.make_node("Clip", ["rounded", "low", "high"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["bytes"], ["resized"], perm=[0, 2, 3, 1]),
    ]  # fmt: skip
    constants = {
        "sizes": np.array([1, 3, size, size], np.int64),
        "low": np.float32(0),
        "high": np.float32(255),
    }
    graph = helper.make_graph(
        nodes,
        "resize",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, "h", "w", 3])],
        [helper.make_tensor_value_info("resized", TensorProto.UINT8, [1, size, size, 3])],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def compiled(model: Any, precision: str, threads: int | None) -> Any:
    """A call from an array to the first output: ONNX as a path or bytes, else OpenVINO's."""
    if isinstance(model, bytes) or getattr(model, "suffix", "") == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda array: session.run(None, {name: array})[0]
    import openvino

    told = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        told["INFERENCE_NUM_THREADS"] = str(threads)
    request = openvino.Core().compile_model(model, "CPU", told).create_infer_request()
    return lambda array: request.infer({0: array})[0]


def scaled_up(data: bytes, megapixels: float) -> bytes:
    """The photograph as a JPEG of a camera's size."""
    image = rgb_from_bytes(data)
    scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
    file = io.BytesIO()
    size = (round(image.width * scale), round(image.height * scale))
    image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


if __name__ == "__main__":
    main()
