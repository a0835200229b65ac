"""A profile as tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import click

from gft_edge.cli.output import print_table, shown
from gft_edge.profiling.layers import Breakdown
from gft_edge.profiling.machine import summary
from gft_edge.profiling.report import Boundary, Profile, Report
from gft_edge.profiling.verdict import energy_text, named_boundaries, verdicts, why_unstable


def print_profile(profile: Profile, title: str = "") -> None:
    """Everything a profile says; `title` names the file it came from."""
    click.echo(f"{title or 'profile'}: {_conditions(profile)}")
    print_table(
        "Latency in ms a call",
        ("bundle", "boundary", *_percentile_names(profile), "mean", "cv", "images/s",
         "time / first", "verdict"),
        [
            _latency_row(name, report, boundary, profile)
            for report in profile.reports
            for name, boundary in named_boundaries(report)
        ],
    )  # fmt: skip
    _print_parts(profile)
    print_table(
        "Cost",
        ("bundle", "files MiB", "load ms", "first ms", "peak RSS MiB", "GPU MiB", "energy"),
        [
            (shown(r.bundle), f"{r.files_mb:.1f}", f"{r.load_ms:.0f}", f"{r.first_ms:.1f}",
             f"{r.peak_rss_mb:.0f}", _mib(r.device_memory_mb), energy_text(r))
            for r in profile.reports
        ],
    )  # fmt: skip
    for report in profile.reports:
        if report.layers is not None:
            _print_layers(report.bundle, report.layers)
    for line in verdicts(profile):
        click.echo(shown(line))


def print_across(profiles: Mapping[str, Profile]) -> None:
    """Profiles of different times or machines side by side: ratios of medians, no pairs."""
    rows = []
    first: dict[str, float] = {}
    for name, profile in profiles.items():
        for report in profile.reports:
            for boundary_name, boundary in named_boundaries(report):
                median_ms = boundary.p50_ms or boundary.mean_ms
                first.setdefault(boundary_name, median_ms)
                rows.append(
                    (shown(name), shown(report.bundle), summary(profile.machine), boundary_name,
                     f"{median_ms:.3f}", f"{median_ms / first[boundary_name]:.3f}",
                     "stable" if boundary.stable else "UNSTABLE")
                )  # fmt: skip
    print_table(
        "Measured apart: a drift of the machine is in these ratios",
        ("profile", "bundle", "machine", "boundary", "median ms", "time / first", "verdict"),
        rows,
    )


def _conditions(profile: Profile) -> str:
    settings, inputs = profile.settings, profile.inputs
    threads = "all" if settings.threads is None else settings.threads
    return (
        f"{summary(profile.machine)}; {settings.hint}, batch {settings.batch}, {threads} threads; "
        f"{inputs.count} {inputs.kind}"
    )


def _percentile_names(profile: Profile) -> list[str]:
    return [f"p{percentile:g}" for percentile in profile.settings.percentiles]


def _latency_row(name: str, report: Report, boundary: Boundary, profile: Profile) -> list[str]:
    label = f"{report.bundle} (baseline)" if report.role == "baseline" else report.bundle
    interval = boundary.ratio_interval
    ratio = f"{boundary.ratio_to_first:.3f}"
    return [
        shown(label),
        name,
        *(_ms(boundary.percentiles_ms[f"{p}_ms"]) for p in _percentile_names(profile)),
        f"{boundary.mean_ms:.3f}",
        f"{boundary.cv:.1%}",
        f"{boundary.images_per_s:.1f}",
        f"{ratio} [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ratio,
        "stable" if boundary.stable else why_unstable(boundary),
    ]


def _ms(value: float | None) -> str:
    return "withheld" if value is None else f"{value:.3f}"


def _mib(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _print_parts(profile: Profile) -> None:
    rows = [
        (shown(report.bundle), *(f"{part:.3f}" for part in dataclasses.astuple(end.split_ms)))
        for report in profile.reports
        if (end := report.boundaries.end_to_end) is not None and end.split_ms is not None
    ]
    if rows:
        print_table(
            "End to end, mean ms of each part",
            ("bundle", "decode", "preprocess", "host to device", "compute", "device to host",
             "postprocess"),
            rows,
        )  # fmt: skip


def _print_layers(bundle: str, found: Breakdown) -> None:
    print_table(
        f"{shown(bundle)}: where the time goes, {found.runs} instrumented inferences",
        ("part", "ms", "share", "layers"),
        [(p.name, f"{p.mean_ms:.3f}", f"{p.share:.1%}", p.layers) for p in found.parts],
    )
    print_table(
        "The layers that take longest",
        ("layer", "part", "operator", "kernel", "precision", "ms", "share"),
        [
            (layer.name, layer.part, layer.kind, layer.kernel, layer.precision,
             f"{layer.mean_ms:.3f}", f"{layer.share:.1%}")
            for layer in found.top
        ],
    )  # fmt: skip
    for verdict in ("fused", "not fused", "unknown"):
        where = [one for one in found.attention if one.verdict == verdict]
        if where:
            names = ", ".join(one.where for one in where)
            click.echo(f"attention {verdict}: {names} ({where[0].reason})")
    click.echo(
        f"instrumented {found.instrumented_ms:.3f} ms, plain {found.plain_ms:.3f} ms in turn: "
        f"instrumentation costs {found.overhead:+.1%}"
    )
