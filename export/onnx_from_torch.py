"""A GFT as a static ONNX graph: `images` -> `logits`, with the kept patches as outputs to verify."""

from __future__ import annotations

import ast
import copy
import io
import logging
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from gft_edge.errors import UsageError
from gft_edge.model.gft import GFT
from gft_edge.specs import InputSpec, ModelSpec

# TensorRT 10.3, the oldest engine served, parses up to opset 20; 20 is the first with Gelu.
OPSET_RANGE = (18, 20)

# Pixels over this less 1 are -1..127/128: INT8 with zero point 0 holds every one, a step a grey level.
# Not plain pixels less 128: the folded weights, and their INT8 scales, would be FP16 subnormals.
PIXEL_CENTRE = 128


def onnx_from_torch(
    model: GFT, spec: ModelSpec, given: InputSpec, opset: int, path: Path, centred: bool = False
) -> tuple[str, ...]:
    """Write `model` to `path` and return the names of its kept-patch outputs, one a stage.

    The graph computes in the dtype of the model's weights and gives float32 logits. With `centred`
    the patch embedding reads pixels / 128 - 1, which INT8 holds without loss. Node names are module
    paths; nothing in the file depends on where it was written. Raises UsageError for an opset out of
    OPSET_RANGE.
    """
    check_opset(opset)
    shape = given.shape(spec.preprocessing.image_size_px)
    if given.dtype == "uint8":
        network: nn.Module = FromPixels(model, spec, centred)
        example = torch.zeros(shape, dtype=torch.uint8)
    else:
        network, example = FromNormalised(model), torch.zeros(shape)
    kept = tuple(f"kept_{number}" for number in range(1, len(spec.stages) + 1))
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
            output_names=["logits", *kept],
            external_data=False,
        )
    assert program is not None
    onnx.save(_anonymous(program.model_proto), path)
    return kept


def check_opset(opset: int) -> None:
    """Raise UsageError for an opset out of OPSET_RANGE."""
    if not OPSET_RANGE[0] <= opset <= OPSET_RANGE[1]:
        raise UsageError(f"--opset {opset} is not from {OPSET_RANGE[0]} to {OPSET_RANGE[1]}")


class FromNormalised(nn.Module):
    """float32 (B,3,S,S), normalised -> (logits, kept ...)."""

    def __init__(self, model: GFT):
        super().__init__()
        self.gft = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        logits, kept = self.gft.forward_with_kept(images.to(dtype_of(self.gft)))
        return (logits.float(), *kept)


class FromPixels(nn.Module):
    """uint8 RGB (B,S,S,3) -> (logits, kept ...); the normalisation is folded into the network.

    The patch convolution has stride = kernel and no padding, so (x/255 - mean)/std goes into its
    weights and bias exactly. Cast comes before Transpose: TensorRT refuses a UINT8 Transpose.
    """

    def __init__(self, model: GFT, spec: ModelSpec, centred: bool = False):
        super().__init__()
        self.gft = copy.deepcopy(model)
        self.centred = centred
        fold_normalisation(self.gft.backbone.patch_embed.proj, spec, centred)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        pixels = images.to(dtype_of(self.gft))
        if self.centred:
            pixels = pixels * (1 / PIXEL_CENTRE) - 1
        logits, kept = self.gft.forward_with_kept(pixels.permute(0, 3, 1, 2))
        return (logits.float(), *kept)


def dtype_of(model: GFT) -> torch.dtype:
    """What the network computes in: float32, or float16 when cast by fp16.half."""
    weight: Tensor = model.backbone.patch_embed.proj.weight
    return weight.dtype


def fold_normalisation(projection: nn.Conv2d, spec: ModelSpec, centred: bool = False) -> None:
    """Make a patch convolution of normalised images take pixels p, 0..255, in place.

    With `centred` it takes p / PIXEL_CENTRE - 1.
    """
    mean = torch.tensor(spec.preprocessing.mean, dtype=torch.float64).reshape(1, 3, 1, 1)
    std = torch.tensor(spec.preprocessing.std, dtype=torch.float64).reshape(1, 3, 1, 1)
    unit, zero = (PIXEL_CENTRE, PIXEL_CENTRE / 255) if centred else (1, 0.0)
    with torch.no_grad():
        weight = projection.weight.double() / std
        shift = (weight * (mean - zero)).sum(dim=(1, 2, 3))
        bias = projection.bias.double() if projection.bias is not None else torch.zeros_like(shift)
        dtype = projection.weight.dtype
        projection.weight.copy_(weight * unit / 255)
        projection.bias = nn.Parameter((bias - shift).to(dtype))


def _anonymous(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name nodes by module path and drop the stack traces, which hold the paths of this machine."""
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        properties = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(properties.get("pkg.torch.onnx.name_scopes", "['']"))
        module = next((scope for scope in reversed(scopes[:-1]) if scope), "")
        name = f"{module.removeprefix('gft.').removeprefix('gft')}/{node.op_type}".lstrip("/")
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
