"""A stand-in for trtexec, and a machine that has it and little else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

# All that check.sh may use besides trtexec.
TOOLS = (
    "awk", "cat", "dirname", "head", "mktemp", "mv", "od", "paste", "readlink", "rm", "sha256sum",
    "tail", "wc",
)  # fmt: skip

# Takes the flags that trtexec of its major version takes, and no other. An engine is a copy of the
# graph. {fault} is what it does wrong.
STAND_IN = '''#!{python}
import hashlib, os, shutil, sys
import numpy as np

MAJOR, FAULT = {major}, {fault!r}
HELP = {{
    "--onnx": "ONNX model", "--saveEngine": "Save", "--loadEngine": "Load", "--noTF32": "Disable",
    "--skipInference": "Exit after the build", "--loadInputs": "Load input values",
    "--exportOutput": "Write the output tensors", "--iterations": "Run at least N",
    "--warmUp": "milliseconds", "--duration": "seconds", "--help": "Print this message",
    "--versionCompatible": "Mark the engine as version compatible",
}}
if MAJOR == 10:
    HELP |= {{"--stronglyTyped": "Create a strongly typed network. (default = disabled)"}}
if MAJOR == 11:
    HELP |= {{
        "--stronglyTyped": "[Deprecated] This flag is a no-op.",
        "--includeDataTransfers": "Enable DMA transfers", "--noCudaGraph": "Disable CUDA graph",
    }}


def help():
    for flag, text in HELP.items():
        print(f"  {{flag:34}} {{text}}")


def fail(*lines):
    for line in lines:
        print(f"[11/05/2026-09:00:00] [E] {{line}}", file=sys.stderr)
    print("&&&& FAILED TensorRT.trtexec", file=sys.stderr)
    sys.exit(1)


print(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{{MAJOR}}0300]")
options = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
unknown = options.keys() - HELP.keys()
if unknown:
    print(f"[E] Unknown option: {{unknown}}", file=sys.stderr)
    help()
    sys.exit(1)
if "--help" in options:
    help()
    sys.exit(0)
if "--onnx" in options:
    assert "--skipInference" in options and ("--stronglyTyped" in options) == (MAJOR == 10)
    if FAULT == "build":
        fail("ModelImporter.cpp:836: While parsing node number 3", "Failed to parse onnx file")
    if FAULT != "no engine":
        shutil.copyfile(options["--onnx"], options["--saveEngine"])
    sys.exit(0)
if FAULT == "run":
    print("a line long before the end")
    for number in range(20):
        print(f"line {{number}}")
    sys.exit(139)

assert options["--iterations"] == "1"
name, _, path = options["--loadInputs"].rpartition(":")
fed = open(path, "rb").read()
if MAJOR == 11 and "--includeDataTransfers" not in options:
    fed = bytes(len(fed))
# Loading ONNX Runtime takes longer than all else: what it answered once is kept.
key = hashlib.sha256(open(options["--loadEngine"], "rb").read() + fed + name.encode()).hexdigest()
answer = f"{answers}/{{key}}.npy"
if not os.path.exists(answer):
    import onnxruntime

    session = onnxruntime.InferenceSession(options["--loadEngine"])
    given = session.get_inputs()[0]
    if name != given.name:
        fail(f"Cannot find input tensor with name {{name}}")
    values = np.frombuffer(fed, np.uint8 if given.type == "tensor(uint8)" else np.float32)
    if values.size not in (np.prod(given.shape), 2 * np.prod(given.shape)):
        fail(f"Unexpected file size for input file: {{path}}")
    values = values[: np.prod(given.shape)].reshape(given.shape)
    np.save(answer, session.run(["logits"], {{name: values}})[0])
logits = np.load(answer)
dimensions = "x".join(map(str, logits.shape))
numbers = [f"{{value:.6g}}" for value in logits.ravel()]
if FAULT == "short":
    numbers.pop()
text = f"""[
  {{{{ "name" : "logits"
  , "dimensions" : "{{dimensions}}"
  , "values" : [ {{', '.join(numbers)}} ]
  }}}}
]
"""
if FAULT == "one line":
    text = text.replace("\\n", "").replace(" ", "")
if FAULT == "many lines":
    text = text.replace(" ", "\\r\\n")
if FAULT != "no outputs":
    open(options["--exportOutput"], "w").write("[\\n]\\n" if FAULT == "no logits" else text)
print("&&&& PASSED TensorRT.trtexec")
'''


@dataclass(frozen=True)
class Device:
    """A machine with check.sh's tools and a trtexec, and nowhere to write but `temporary`."""

    tools: Path
    temporary: Path
    answers: Path

    def trtexec(self, major: int = 10, fault: str = "", name: str = "trtexec") -> Path:
        """Install a stand-in for trtexec."""
        path = self.tools / name
        script = STAND_IN.format(
            python=sys.executable, major=major, fault=fault, answers=self.answers
        )
        path.write_text(script)
        path.chmod(0o755)
        return path

    def run(
        self, *command: str | Path, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here and see that it leaves nothing behind."""
        done = subprocess.run(
            list(map(str, command)),
            cwd=cwd or self.tools,
            env={"PATH": str(self.tools), "TMPDIR": str(self.temporary), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        # ONNX Runtime leaves a file of its own there.
        assert list(self.temporary.glob("gft-edge*")) == []
        return done

    def check(self, bundle: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """golden/check.sh, by the machine's sh."""
        return self.run(shell("sh"), bundle / "golden" / "check.sh", *arguments)


def shell(name: str) -> str:
    """Return the path of one of this machine's tools; skip the test where it has none."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name} on this machine")
    return path
