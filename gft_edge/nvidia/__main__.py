"""python -m gft_edge.nvidia BUNDLE: what gft-edge build does, where only numpy and TensorRT are.

For a device whose Python has neither click nor rich. Same exit codes.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import sys
from pathlib import Path

from gft_edge.bundle.manifest import EngineSettings
from gft_edge.bundle.store import read_manifest
from gft_edge.errors import GftEdgeError
from gft_edge.nvidia.build import build_engine


def main() -> None:
    """Build the engine of a bundle for this machine."""
    parser = argparse.ArgumentParser(prog="python -m gft_edge.nvidia", description=main.__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--explain", action="store_true", help="return the kept patches too")
    parser.add_argument(
        "--fresh", action="store_true", help="build although an engine of this graph is there"
    )
    parser.add_argument("--workspace", type=float, metavar="GIB", help="scratch memory")
    given = parser.parse_args()
    try:
        settings = read_manifest(given.bundle).engine_settings or EngineSettings()
        changed = dataclasses.replace(settings, workspace_gib=given.workspace)
        built = build_engine(
            given.bundle,
            None if given.workspace is None else changed,
            given.explain,
            fresh=given.fresh,
            say=lambda text: print(text, file=sys.stderr),
        )
    except GftEdgeError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    print(given.bundle / built.engine.path)


if __name__ == "__main__":
    main()
