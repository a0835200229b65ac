"""What a profile says in words: whether to trust it, whether selecting patches pays, what it cost."""

from __future__ import annotations

from collections.abc import Sequence

from gft_edge.profiling.report import Boundary, Profile, Report
from gft_edge.profiling.samples import paired_ratio
from gft_edge.runtime.backends import Hint

# What a ratio must differ by from 1 to be worth a word, whatever its interval says.
WORTH_SAYING = 0.02


def verdicts(profile: Profile) -> list[str]:
    """What the numbers say: stable or why not, and whether selecting patches pays."""
    lines = []
    if not profile.complete:
        lines.append("PARTIAL: interrupted, percentiles are of the samples so far")
    if not profile.stable:
        lines.append(unstable(profile.causes))
    baseline = next((r for r in profile.reports if r.role == "baseline"), None)
    if baseline is not None:
        lines += [
            _pays(report, baseline, profile.settings.hint)
            for report in profile.reports
            if report.role == "bundle"
        ]
    return lines


def unstable(causes: Sequence[str]) -> str:
    """The warning of latencies that are not to be trusted, with what may have disturbed them."""
    likely = "; ".join(causes) or "unknown, nothing was recorded that explains it"
    return f"UNSTABLE: do not decide on these numbers. Likely cause: {likely}"


def why_unstable(boundary: Boundary) -> str:
    """Which bound was missed."""
    return f"UNSTABLE: cv {boundary.cv_of_one_input:.1%}, windows {boundary.spread:.1%} apart" + (
        f", {boundary.lost} calls lost to the clock" if boundary.lost else ""
    )


def energy_text(report: Report) -> str:
    """Millijoules an image, net of idling where that is known; or why there are none."""
    energy = report.energy
    if energy.gross_mj_per_image is None:
        return f"not available: {energy.why}"
    net = energy.net_mj_per_image
    text = f"{energy.gross_mj_per_image:.1f} mJ an image"
    return text if net is None else f"{text}, {net:.1f} over idle"


def _pays(report: Report, baseline: Report, hint: Hint) -> str:
    """How many times as fast a bundle is as the dense network, in turns paired with it."""
    if (report.target, report.precision) != (baseline.target, baseline.precision):
        return (
            f"{report.bundle}: the baseline is {baseline.target} {baseline.precision} and this is "
            f"{report.target} {report.precision}: their ratio says nothing of selection"
        )
    said = []
    dense_boundaries = baseline.boundaries.named()
    for name, ours in report.boundaries.named().items():
        dense = dense_boundaries.get(name)
        if dense is None:
            continue
        ratio, interval = paired_ratio(dense.pace(hint), ours.pace(hint))
        sure = interval is not None and not interval[0] <= 1 <= interval[1]
        if not sure or abs(ratio - 1) < WORTH_SAYING:
            verdict = f"makes no difference here (x {ratio:.2f})"
        elif ratio > 1:
            verdict = f"pays x {ratio:.2f} here"
        else:
            verdict = f"does not pay here (x {ratio:.2f})"
        between = f", 95 % between {interval[0]:.2f} and {interval[1]:.2f}" if interval else ""
        said.append(f"{name}: {verdict}{between}")
    return f"{report.bundle}: selection against {baseline.network}: " + "; ".join(said)
