"""How far probabilities can be believed, as tables and sentences."""

from __future__ import annotations

from gft_edge.fidelity.confidence import BY_CHANCE, Acceptance, CalibrationError
from gft_edge.reporting.table import Table, percent


def calibration_sentence(found: CalibrationError) -> str:
    """The calibration error, and what it would be without a temperature."""
    if found.temperature == 1:
        return (
            f"Probabilities are off by {percent(found.ece)} on average (expected calibration error); no "
            "temperature was fitted."
        )
    return (
        f"Probabilities are off by {percent(found.ece)} on average (expected calibration error) at the "
        f"temperature {found.temperature:.3g}, and by {percent(found.ece_uncalibrated)} without it."
    )


def acceptance_table(title: str, found: Acceptance) -> Table:
    """What has a label at each least probability, of the network's own photographs and of the others."""
    rows = [
        (f"{at.min_probability:.2f}", percent(at.known), percent(at.right), percent(at.unknown))
        for at in found.curve
    ]
    best = found.proposed
    notes = [
        f"AUROC {found.auroc:.3f}: how often the network is surer of a photograph of its own than of another",
        f"where 95 % of its own have a label, {percent(found.unknown_at_95)} of the others have one",
        "no least probability tells them apart"
        if found.auroc <= BY_CHANCE
        else f"proposed: --min-probability {best.min_probability:.4f}, at which {percent(best.known)} of its "
        f"own and {percent(best.unknown)} of the others have a label",
    ]
    heads = (
        "least probability",
        "its own with a label",
        "with the right one",
        "others with a label",
    )
    return Table(title, heads, rows, notes)
