"""The files that a benchmark leaves beside its bundles."""

from __future__ import annotations

from pathlib import Path

from gft_edge.profiling.report import Profile, write_profile
from gft_edge.studies.benchmark_page import write_page
from gft_edge.studies.benchmark_table import write_markdown
from gft_edge.studies.memory import CSV_FILE, HTML_FILE, JSON_FILE, MARKDOWN_FILE, PROFILE_FILE
from gft_edge.studies.results import Benchmark, write_csv, write_json


def write_results(benchmark: Benchmark, profile: Profile | None, out: Path) -> list[Path]:
    """CSV, JSON, Markdown and HTML, and the profile with its samples; each whole. Raises BundleError."""
    write_csv(benchmark, out / CSV_FILE)
    write_json(benchmark, out / JSON_FILE)
    write_markdown(benchmark, out / MARKDOWN_FILE)
    write_page(benchmark, profile, out / HTML_FILE)
    written = [out / name for name in (CSV_FILE, JSON_FILE, MARKDOWN_FILE, HTML_FILE)]
    if profile is not None:
        write_profile(profile, out / PROFILE_FILE)
        written.append(out / PROFILE_FILE)
    else:
        # An earlier one is of other bundles.
        (out / PROFILE_FILE).unlink(missing_ok=True)
    return written
