"""What is done in the first minutes on an NVIDIA GPU, in which order, and for how long at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# What a step needs: nothing, a TensorRT that builds for this GPU, or one whose engines load here.
Needs = Literal["nothing", "builder", "engines"]
# How what it prints is read.
Reads = Literal["text", "doctor", "build", "verify", "profile", "inspect", "rows", "tests"]

TESTS_OF_ENGINES = "tests/nvidia/test_gpu.py"
FIRST_TEST = "test_an_engine_decides_and_keeps_as_onnx_runtime_does"
SIZES = ("tiny", "small", "base")
PRECISIONS = ("fp16", "int8", "fp32")


@dataclass(frozen=True)
class Step:
    """One command. `words` follow the Python of the new environment; {work} is a folder
    of the run's, {seconds} what there is time for."""

    name: str
    budget_s: float
    words: tuple[str, ...]
    needs: Needs = "nothing"
    reads: Reads = "text"


def steps(bundles: Sequence[str], on_gpu: bool = True) -> list[Step]:
    """Every step, cheapest and most worth first; `bundles` are those that are there, by name.

    A pair is a network that keeps fewer patches and its dense one, of a size and a precision. Where
    TensorRT does not run, its steps cost nothing and PyTorch's are next. Without a GPU PyTorch times one
    small pair, which shows that it runs.
    """
    pairs = _pairs(bundles)
    found = [
        Step("doctor", 40, _cli("doctor", "--json"), reads="doctor"),
        Step("tests of CUDA", 60, _pytest("tests/nvidia/test_cuda.py"), reads="tests"),
    ]
    for number, pair in enumerate(pairs):
        for name in pair:
            found += _made(name)
        found.append(_profiled(pair))
        if number == 0:
            found.append(
                Step("tests of engines, decisions", 150,
                     _pytest(f"{TESTS_OF_ENGINES}::{FIRST_TEST}"), "engines", "tests")
            )  # fmt: skip
        if pair[0].endswith("-fp16"):
            found += _named(pair)
    others = _pytest(TESTS_OF_ENGINES, "--deselect", f"{TESTS_OF_ENGINES}::{FIRST_TEST}")
    found.append(Step("tests of engines, the others", 150, others, "engines", "tests"))
    timed = ["benchmarks/first_gpu_torch.py", "--seconds", "{seconds}"]
    if not on_gpu:
        timed += ["--device", "cpu", "--sizes", "tiny", "--batches", "1", "--precisions", "fp32"]
    found.append(Step("PyTorch", 320, tuple(timed), reads="rows"))
    return found


def _pairs(bundles: Sequence[str]) -> list[list[str]]:
    """By size, small first, then by precision; the dense network last."""
    parts = [name.rpartition("-") for name in bundles]
    sizes = sorted({size_of(network) for network, _, _ in parts}, key=_rank)
    return [
        pair
        for size in sizes
        for precision in PRECISIONS
        if (pair := sorted((f"{network}-{its}" for network, _, its in parts
                            if (size_of(network), its) == (size, precision)), reverse=True))
    ]  # fmt: skip


def size_of(network: str) -> str:
    """The size in a network's name, by which it is paired with its dense one; else the name."""
    return next((size for size in SIZES if size in network.split("_")), network)


def _rank(size: str) -> int:
    return SIZES.index(size) if size in SIZES else len(SIZES)


def _made(name: str) -> list[Step]:
    bundle, budget_s = f"{{work}}/bundles/{name}", 100.0 if "tiny" in name else 150.0
    made = [Step(f"build {name}", budget_s, _cli("build", bundle, "--json"), "builder", "build")]
    if name.startswith("gft"):
        # The engine that returns the kept patches, so that verify compares them.
        words = _cli("build", bundle, "--explain", "--json")
        made.append(Step(f"build {name} --explain", budget_s, words, "builder", "build"))
    verified = _cli("verify", bundle, "--json")
    return [*made, Step(f"verify {name}", 40, verified, "engines", "verify")]


def _profiled(pair: Sequence[str]) -> Step:
    # The dense network first: times are compared with the first one's.
    bundles = [f"{{work}}/bundles/{name}" for name in reversed(pair)]
    words = _cli("profile", *bundles, "--cuda-graph", "--duration", "3", "--json")
    return Step(f"profile {' '.join(pair)}", 60, words, "engines", "profile")


def _named(pair: Sequence[str]) -> list[Step]:
    bundles = [f"{{work}}/bundles/{name}" for name in pair]
    layers = _cli("profile", *bundles, "--layers", "--duration", "0.5", "--json")
    return [
        Step(f"layers {' '.join(pair)}", 60, layers, "engines", "profile"),
        *(
            Step(f"inspect {name}", 40, _cli("inspect", bundle, "--engine", "--json"), "builder",
                 "inspect")
            for name, bundle in zip(pair, bundles, strict=True)
        ),
    ]  # fmt: skip


def _cli(*words: str) -> tuple[str, ...]:
    return ("-m", "gft_edge", *words)


def _pytest(*words: str) -> tuple[str, ...]:
    # A warning of another version of a library is no failure here.
    quiet = ("-q", "--no-header", "-p", "no:cacheprovider", "-W", "default")
    return ("-m", "pytest", "-m", "gpu", *quiet, *words)
