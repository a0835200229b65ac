"""Runs as a training leaves them, without the training."""

from __future__ import annotations

import json
from pathlib import Path

from gft_edge.bundle.json_form import to_json

HISTORY = "epoch,lr,train_loss,val_top1,val_top5,val_loss,images_per_s,seconds\n"


def trained_on(folder: Path, data: Path, history: str = "1,1e-4,1.5,0.25,1,1.75,9,1\n") -> Path:
    """Give a run what gft-edge train leaves beside its network."""
    from gft_edge.training.recipes import Recipe
    from gft_edge.training.run_folder import RunConfig

    config = RunConfig(str(data), Recipe(epochs=2), amp=False, workers=0, device="cpu")
    (folder / "train.json").write_text(json.dumps(to_json(config)))
    (folder / "history.csv").write_text(HISTORY + history)
    return folder
