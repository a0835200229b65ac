"""The temperature of a run: what its logits are divided by to become probabilities, fitted on val."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gft_edge.bundle.json_form import from_json, to_json
from gft_edge.bundle.manifest import Confidence
from gft_edge.bundle.specs import Say
from gft_edge.bundle.store import sha256_of, write_whole
from gft_edge.errors import CheckpointError, SpecError
from gft_edge.model.checkpoint import WEIGHTS_FILE

TEMPERATURE_FILE = "temperature.json"


@dataclass(frozen=True)
class FittedTemperature:
    """A temperature, the split and number of images it was fitted on, and what it did to their ECE.

    `weights_sha256` is of the weights it was fitted for: with others it is none.
    """

    temperature: float
    split: str
    images: int
    ece: float
    ece_uncalibrated: float
    weights_sha256: str


def read_temperature(run: Path, say: Say = lambda text: None) -> FittedTemperature | None:
    """The temperature of a run's weights; None where none was fitted for these, which is said.

    Raises CheckpointError for a file that holds none.
    """
    path = run / TEMPERATURE_FILE
    if not path.exists():
        return None
    try:
        found = from_json(FittedTemperature, json.loads(path.read_bytes()), "it")
        Confidence(found.temperature)
    except (ValueError, OSError, RecursionError, SpecError) as error:
        raise CheckpointError(
            f"{path} holds no temperature ({error}): remove it, gft-edge evaluate {run} --fit-temperature "
            "fits another"
        ) from error
    if found.weights_sha256 == sha256_of(run / WEIGHTS_FILE):
        return found
    say(
        f"the temperature in {run} is of other weights, and is not used: gft-edge evaluate {run} "
        "--fit-temperature fits another"
    )
    return None


def temperature_of(run: Path, say: Say = lambda text: None) -> float:
    """What a run's logits are divided by: 1.0 where no temperature was fitted."""
    found = read_temperature(run, say)
    return 1.0 if found is None else found.temperature


def write_temperature(run: Path, found: FittedTemperature) -> None:
    """Write it whole or not at all."""
    write_whole(run / TEMPERATURE_FILE, (json.dumps(to_json(found), indent=2) + "\n").encode())
