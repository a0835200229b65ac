"""An OpenVINO model that a full disk does not take."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

# A disk of so many bytes, and a model whose weights are 3 MiB in FP32: OpenVINO writes what fits, removes it
# again, and says basic_ios::clear.
_SAVE = """
import resource, sys
from pathlib import Path
import numpy as np
import openvino as ov
from openvino import opset13 as ops
from gft_edge.runtime.openvino_model import save_ir
weights = np.random.default_rng(0).standard_normal((3, 1 << 18)).astype(np.float32)
given = ops.parameter([1 << 18, 1], np.float32)
model = ov.Model([ops.matmul(ops.constant(weights), given, False, False)], [given])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
save_ir(model, Path(sys.argv[1]) / "model.xml", compress_to_fp16=sys.argv[3] == "fp16")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a file's size are POSIX")
@pytest.mark.parametrize(
    ("room", "weights"), [(100_000, "fp32"), (2 << 20, "fp32"), (5 << 18, "fp16")]
)
def test_a_full_disk_is_called_by_its_name_whatever_it_still_takes(
    tmp_path: Path, room: int, weights: str
) -> None:
    command = [sys.executable, "-c", _SAVE, str(tmp_path), str(room), weights]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith(f"OSError: [Errno {errno.EFBIG}]")
