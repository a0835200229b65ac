"""A profile in the terminal."""

from __future__ import annotations

import click

from gft_edge.cli.output import show, shown
from gft_edge.profiling.machine import summary
from gft_edge.profiling.report import Profile
from gft_edge.profiling.verdict import verdicts
from gft_edge.reporting.profile_tables import (
    cost_table,
    latency_table,
    layer_tables,
    named,
    parts_table,
)


def print_profile(profile: Profile, file: str = "") -> None:
    """Everything that a profile says but its machine's conditions; `file` is where it came from."""
    settings, inputs = profile.settings, profile.inputs
    threads = "all" if settings.threads is None else settings.threads
    click.echo(
        f"{shown(file) or 'profile'}: {summary(profile.machine)}; {settings.hint}, batch "
        f"{settings.batch}, {threads} threads; {inputs.count} {inputs.kind}"
    )
    reports = named({file: profile})[file]
    show(latency_table(profile, reports, "Latency in ms a call").without("max", "calls"))
    if (parts := parts_table(reports)) is not None:
        show(parts)
    show(cost_table(reports).without("energy from"))
    for _, report in reports:
        if report.layers is not None:
            for table in layer_tables(report.layers):
                show(table)
    for line in verdicts(profile):
        click.echo(shown(line))
