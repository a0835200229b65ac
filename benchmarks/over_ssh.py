"""What --on costs: on the measured latency, in seconds a contact, and in bytes after a small change.

python benchmarks/over_ssh.py --on HOST --bundle BUNDLE [--parts latency,contact,traffic] [--pairs 10]

latency: `profile --on HOST` of the bundle and the same command typed on the device, in the environment that
gft-edge made there, in alternating pairs: the ratios of their p50; the bound is 2 %.
contact: `doctor --on HOST` here less `doctor` there, a second contact; the bound is 2 s.
traffic: what goes through ssh, both ways, when labels.txt of a bundle changed that the device has. Random
bytes beside its files make the bundle as large as gft_base in FP32; the bound is 1 MB.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gft_edge.bundle.store import LABELS_FILE, read_manifest, sha256_of, write_manifest
from gft_edge.profiling.machine import summary, this_machine
from gft_edge.profiling.samples import median_interval
from gft_edge.remote.agent.environment import commands_environment
from gft_edge.remote.content import content_of
from gft_edge.remote.device import Device

PARTS = ("latency", "contact", "traffic")
LARGE_BYTES = 350_000_000
# Typed there, but for the time in which ssh connects.
TIMED = (
    "import subprocess, sys, time; started = time.perf_counter(); "
    "subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True); "
    "print(time.perf_counter() - started)"
)

Pairs = list[tuple[float, float]]


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--on", required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--duration", type=float, default=10)
    given = parser.parse_args()
    parts = given.parts.split(",")
    print(f"the desk: {summary(this_machine())}\n\n| measured | median | 95 % between | bound |")
    print("|---|---|---|---|")
    with typed_on(given.on, given.bundle) as typed:
        if "latency" in parts:
            for name, pairs in latencies(given, typed).items():
                row(f"{name}, --on over typed there", [a / b for a, b in pairs], "", "0.98 to 1.02")
        if "contact" in parts:
            row("doctor --on less doctor there", contacts(given, typed), " s", "2 s")
    if "traffic" in parts:
        first, second = traffic(given.on, given.bundle)
        print(
            f"| a bundle of {LARGE_BYTES / 1e6:.0f} MB, first contact | {first / 1e6:.2f} MB | | |"
        )
        print(f"| the same with another {LABELS_FILE} | {second / 1e6:.3f} MB | | 1 MB |")


def row(name: str, values: Sequence[float], unit: str, bound: str) -> None:
    """Print a line: the median, and an interval that holds it with 95 % or a little more."""
    interval = median_interval(sorted(values))
    between = "fewer than six" if interval is None else "{:.3f} to {:.3f}".format(*interval)
    middle = statistics.median(values)
    print(f"| {name} | {middle:.3f}{unit} | {between}, {len(values)} pairs | {bound} |", flush=True)


@contextmanager
def typed_on(host: str, bundle: Path) -> Iterator[Callable[..., str]]:
    """Give what runs gft-edge on the device by plain ssh: words, of which BUNDLE is its copy there.

    It returns what is printed.
    """
    with Device(host, lambda text, done, total: None, lambda text: None) as device:
        device.prepare({read_manifest(bundle).target})
        root = device.place(content_of({"bundle": bundle}))
        env = {**commands_environment(str(device.facts["folder"])), **device._env}
        added = [f"{k}={v}" for k, v in env.items() if os.environ.get(k) != v]

        def typed(*words: object, before: Sequence[str] = ()) -> str:
            given = [f"{root}/bundle" if word == "BUNDLE" else str(word) for word in words]
            command = shlex.join(["env", *added, *before, *device._runner, *given])
            done = subprocess.run(
                ["ssh", host, command], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            return done.stdout

        yield typed


def latencies(given: argparse.Namespace, typed: Callable[..., str]) -> dict[str, Pairs]:
    """Return pairs of p50 in ms, --on and typed, by boundary."""
    words = ("--json", "--duration", given.duration)
    found: dict[str, Pairs] = {"engine": [], "end_to_end": []}
    for number in range(given.pairs):

        def on() -> str:
            return here("profile", given.bundle, "--on", given.on, *words)

        def there() -> str:
            return typed("profile", "BUNDLE", *words)

        # Each is the first of every second pair.
        first, second = (on(), there()) if number % 2 else reversed((there(), on()))
        for name, pairs in found.items():
            pairs.append((p50(first, name), p50(second, name)))
    return found


def p50(printed: str, boundary: str) -> float:
    """Read the median of a boundary in profile's JSON."""
    report: Any = json.loads(printed)["reports"][0]
    return float(report["boundaries"][boundary]["p50_ms"])


def contacts(given: argparse.Namespace, typed: Callable[..., str]) -> list[float]:
    """Return the seconds that --on adds to doctor."""
    added = []
    for _ in range(given.pairs):
        started = time.perf_counter()
        here("doctor", "--on", given.on, "--json")
        on_s = time.perf_counter() - started
        added.append(on_s - float(typed("doctor", "--json", before=("python3", "-c", TIMED))))
    return added


def traffic(host: str, bundle: Path) -> tuple[int, int]:
    """Return the bytes through ssh of two contacts, between which the labels change."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(shutil.copytree(bundle, Path(name, "bundle")))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size < LARGE_BYTES:
            (folder / "more.bin").write_bytes(os.urandom(LARGE_BYTES - size))
        first = counted(Path(name), host, folder)
        manifest = read_manifest(folder)
        labels = tuple(f"kind of {label}" for label in manifest.model.labels)
        (folder / LABELS_FILE).write_text("".join(f"{label}\n" for label in labels), "utf-8")
        model = dataclasses.replace(manifest.model, labels=labels)
        files = {**manifest.files, LABELS_FILE: sha256_of(folder / LABELS_FILE)}
        write_manifest(folder, dataclasses.replace(manifest, model=model, files=files))
        return first, counted(Path(name), host, folder)


def counted(scratch: Path, host: str, bundle: Path) -> int:
    """Return what ssh sends and receives, by its own count, while a bundle is verified."""
    log, wrapper = scratch / "ssh.log", scratch / "bin" / "ssh"
    log.write_text("")
    wrapper.parent.mkdir(exist_ok=True)
    real = shlex.quote(str(shutil.which("ssh")))
    wrapper.write_text(f'#!/bin/sh\nexec {real} -v -E {shlex.quote(str(log))} "$@"\n')
    wrapper.chmod(0o755)
    path = f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}"
    here("verify", bundle, "--on", host, "--json", env={**os.environ, "PATH": path})
    counts = re.findall(r"Transferred: sent (\d+), received (\d+) bytes", log.read_text())
    if not counts:
        raise SystemExit(f"ssh -v counts no bytes: is {host} behind a ControlMaster?")
    return sum(int(sent) + int(received) for sent, received in counts)


def here(*words: object, env: dict[str, str] | None = None) -> str:
    """Run gft-edge on this machine; return what it prints."""
    command = [sys.executable, "-m", "gft_edge", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
