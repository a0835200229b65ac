"""A network as a static ONNX graph: `images` -> `logits`, with the kept patches as outputs to verify."""

from __future__ import annotations

import ast
import copy
import io
import logging
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout

import onnx
import torch
from torch import Tensor, nn

from gft_edge.bundle.specs import InputSpec, ModelSpec
from gft_edge.errors import SpecError, UsageError
from gft_edge.export.graph import kept_names
from gft_edge.model.network import Network

# TensorRT 10.3, the oldest engine served, parses up to opset 20; 20 is the first with Gelu.
OPSET_RANGE = (18, 20)

# Pixels over this less 1 are -1..127/128: INT8 with zero point 0 holds every one, a step a grey level.
# Not plain pixels less 128: the folded weights, and their INT8 scales, would be FP16 subnormals.
PIXEL_CENTRE = 128


def onnx_from_torch(
    model: Network, spec: ModelSpec, given: InputSpec, opset: int, centred: bool = False
) -> onnx.ModelProto:
    """Return `model` as a graph whose outputs are `logits` and kept_names.

    The graph computes in the dtype of the model's weights and gives float32 logits. With `centred`
    a first convolution that takes pixels (see folds_normalisation) reads pixels / 128 - 1, which INT8
    holds without loss. Node names are module
    paths; nothing in the graph depends on where it was made. Raises UsageError for an opset out of
    OPSET_RANGE.
    """
    check_opset(opset)
    shape = given.shape(spec.preprocessing.image_size_px)
    if given.dtype == "uint8":
        network: nn.Module = FromPixels(model, spec, centred)
        example = torch.zeros(shape, dtype=torch.uint8)
    else:
        network, example = FromNormalised(model), torch.zeros(shape)
    # The exporter prints its steps and logs missing optional packages: noise between our own lines.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.eval(),
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=["images"],
            output_names=["logits", *kept_names(spec)],
            external_data=False,
        )
    assert program is not None
    graph = _anonymous(program.model_proto)
    if spec.family != "gft":
        _name_tensors(graph.graph)
    return graph


def check_opset(opset: int) -> None:
    """Raise UsageError for an opset out of OPSET_RANGE."""
    if not OPSET_RANGE[0] <= opset <= OPSET_RANGE[1]:
        raise UsageError(f"--opset {opset} is not from {OPSET_RANGE[0]} to {OPSET_RANGE[1]}")


class FromNormalised(nn.Module):
    """float32 (B,3,S,S), normalised -> (logits, kept ...)."""

    def __init__(self, model: Network):
        super().__init__()
        self.network = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        logits, kept = self.network.forward_with_kept(images.to(dtype_of(self.network)))
        return (logits.float(), *kept)


class FromPixels(nn.Module):
    """uint8 RGB (B,S,S,3) -> (logits, kept ...); the graph normalises.

    Where folds_normalisation holds, (x/255 - mean)/std goes into the weights and bias of the first
    convolution exactly; elsewhere it is computed, and `centred` means nothing. Cast comes before
    Transpose: TensorRT refuses a UINT8 Transpose.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Network, spec: ModelSpec, centred: bool = False):
        super().__init__()
        self.network = copy.deepcopy(model)
        self.folded = folds_normalisation(model)
        self.centred = centred and self.folded
        if self.folded:
            _, convolution = self.network.first_convolution()
            assert isinstance(convolution, nn.Conv2d)
            fold_normalisation(convolution, spec, centred)
        else:
            mean, std = _mean_and_std(spec)
            self.register_buffer("scale", (1 / (255 * std)).to(dtype_of(model)))
            self.register_buffer("shift", (mean / std).to(dtype_of(model)))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        pixels = images.to(dtype_of(self.network))
        if self.centred:
            pixels = pixels * (1 / PIXEL_CENTRE) - 1
        pixels = pixels.permute(0, 3, 1, 2)
        if not self.folded:
            # In this order: a simplifier moves a last factor into the convolution, whose input
            # would no longer be what calibration measured.
            pixels = pixels * self.scale - self.shift
        logits, kept = self.network.forward_with_kept(pixels)
        return (logits.float(), *kept)


def dtype_of(model: Network) -> torch.dtype:
    """What the network computes in: float32, or float16 when cast by fp16.half."""
    parameter: Tensor = next(model.backbone.parameters())
    return parameter.dtype


def folds_normalisation(model: Network) -> bool:
    """Whether a first convolution can take pixels in place of normalised images, exactly.

    It must be a plain one, read the images as they are, and pad nothing: a border of zeros is
    a border of mean grey to the network, and no pixel value of its own to its normalisation.
    """
    try:
        _, convolution = model.first_convolution()
    except SpecError:
        return False
    if type(convolution) is not nn.Conv2d or convolution.padding not in ((0, 0), "valid"):
        return False
    size = model.image_size_px
    images = torch.rand(1, 3, size, size, dtype=dtype_of(model))
    read: list[Tensor] = []

    def stop(_: nn.Module, given: tuple[Tensor]) -> None:
        read.append(given[0])
        raise _ReachedError

    try:
        with convolution.register_forward_pre_hook(stop), torch.inference_mode():
            model(images)
    except _ReachedError:
        return torch.equal(read[0], images)
    return False


class _ReachedError(Exception):
    """Ends a forward pass that has shown what it was run for."""


def _mean_and_std(spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """(1,3,1,1) each, float64."""
    given = spec.preprocessing
    mean, std = (
        torch.tensor(values, dtype=torch.float64).reshape(1, 3, 1, 1)
        for values in (given.mean, given.std)
    )
    return mean, std


def fold_normalisation(projection: nn.Conv2d, spec: ModelSpec, centred: bool = False) -> None:
    """Make a convolution of normalised images take pixels p, 0..255, in place.

    With `centred` it takes p / PIXEL_CENTRE - 1.
    """
    mean, std = _mean_and_std(spec)
    unit, zero = (PIXEL_CENTRE, PIXEL_CENTRE / 255) if centred else (1, 0.0)
    with torch.no_grad():
        weight = projection.weight.double() / std
        shift = (weight * (mean - zero)).sum(dim=(1, 2, 3))
        bias = projection.bias.double() if projection.bias is not None else torch.zeros_like(shift)
        dtype = projection.weight.dtype
        projection.weight.copy_(weight * unit / 255)
        projection.bias = nn.Parameter((bias - shift).to(dtype))


def _name_tensors(graph: onnx.GraphProto) -> None:
    """Name what a node writes after the node: ONNX Runtime names a convolution it fuses by its output."""
    outside = {value.name for value in (*graph.input, *graph.output)}
    names = {
        written: node.name if number == 0 else f"{node.name}:{number}"
        for node in graph.node
        for number, written in enumerate(node.output)
        if written and written not in outside
    }
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)


def _anonymous(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name nodes by module path and drop the stack traces, which hold the paths of this machine.

    A convolution that a BatchNorm was fused into comes named after that: its weights tell its own.
    """
    seen: Counter[str] = Counter()
    weights = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        properties = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(properties.get("pkg.torch.onnx.name_scopes", "['']"))
        module = next((scope for scope in reversed(scopes[:-1]) if scope), "")
        if node.op_type == "Conv" and node.input[1] in weights:
            module = node.input[1].removesuffix(".weight")
        module = module.removeprefix("network.").removeprefix("network")
        name = f"{module}/{node.op_type}".lstrip("/")
        seen[name] += 1
        node.name = f"{name}_{seen[name]}" if seen[name] > 1 else name
        del node.metadata_props[:]
        node.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    return model
