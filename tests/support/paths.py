"""Where the tree lies, and beside it the photographs and weights that some machines have."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SHARED = ROOT.parent / "shared"
