"""What the first minutes on an NVIDIA GPU gave, as rows out of each command's JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
KERNELS_SHOWN = 8


def profile_rows(document: Mapping[str, Any]) -> tuple[list[Row], list[Row]]:
    """Latencies and, of --layers, kernels, out of the JSON of `gft-edge profile`."""
    latencies, kernels = [], []
    graph = document["settings"]["cuda_graph"]
    how = f"TensorRT{' CUDA graph' if graph else ''}, engine"
    for report in document["reports"]:
        name = {"network": report["network"], "precision": report["precision"]}
        engine = report["boundaries"]["engine"]
        latencies.append(
            {
                **name,
                "how": how,
                "batch": document["settings"]["batch"],
                "median_ms": engine["p50_ms"],
                "calls": sum(engine["turns"]),
                "dense_by_this": 1 / engine["ratio_to_first"],
                "stable": document["stable"],
                "engine": report["engine"],
            }
        )
        layers = report["layers"]
        kernels += [
            {**name, "how": "TensorRT", "kernel": layer["kernel"] or layer["name"],
             "ms": layer["mean_ms"], "share": layer["share"], "part": layer["part"]}
            for layer in (layers["top"] if layers else ())
        ]  # fmt: skip
    return latencies, kernels


def said_of(reads: str, document: Mapping[str, Any]) -> str:
    """What a command's JSON comes to, in a few words."""
    if reads == "build":
        engine = document["engine"]
        loads = "loads here" if document["loads_here"] else "does not load here"
        return f"{engine['flavor']} {engine['version']}, {engine['build_seconds']} s, {loads}"
    if reads == "verify":
        golden = document["golden"] or {}
        kept = golden.get("kept_overlap")
        return (
            f"{document['verdict']}; labels equal {golden.get('top1_agreement')}, "
            f"cosine {golden.get('cosine')}, kept patches {kept}; "
            + "; ".join([*document["failures"], *document["skipped"]])
        ).rstrip("; ")
    if reads == "inspect":
        engine = document["engine"]
        fused = [one["verdict"] for one in engine["attention"]]
        return (
            f"{engine['source']}: INT8 layers {engine['int8_layers']}, FP16 layers "
            f"{engine['fp16_layers']}; attention "
            + ", ".join(f"{word} {fused.count(word)}" for word in dict.fromkeys(fused))
        )
    if reads == "profile":
        return "stable" if document["stable"] else f"UNSTABLE: {'; '.join(document['causes'])}"
    return ""


def markdown(data: Mapping[str, Any]) -> str:
    """Times first, then kernels, then what was done and what was not."""
    machine = data["machine"]
    lines = [
        "# The first minutes on an NVIDIA GPU",
        "",
        f"{machine.get('gpu') or 'no NVIDIA GPU'}; Python {machine['python']}; "
        f"{data['started']} UTC, {data['seconds']:.0f} s; random weights.",
        "",
    ]
    lines += [f"- {text}" for text in data["notes"]] + [""] * bool(data["notes"])
    if data["latencies"]:
        lines += _table(
            "Times", ("network", "precision", "how", "batch", "median ms", "images/s", "dense / this"),
            [(row["network"], row["precision"], row["how"], row["batch"],
              _number(row["median_ms"], 3), _number(_rate(row), 0), _number(row["dense_by_this"], 2))
             for row in data["latencies"]],
        )  # fmt: skip
    if data["kernels"]:
        lines += _table(
            "Kernels that take longest", ("network", "precision", "how", "kernel", "ms", "share"),
            [(row["network"], row["precision"], row["how"], row["kernel"],
              _number(row["ms"], 4), f"{100 * row['share']:.0f} %")
             for row in _longest(data["kernels"])],
        )  # fmt: skip
    done = [step for step in data["steps"] if step["outcome"] != "not run"]
    lines += _table(
        "Steps", ("step", "outcome", "s", "said"),
        [(step["name"], step["outcome"], _number(step["seconds"], 1), step["said"]) for step in done],
    )  # fmt: skip
    not_run: dict[str, list[str]] = {}
    for step in data["steps"]:
        if step["outcome"] == "not run":
            not_run.setdefault(step["said"], []).append(step["name"])
    if not_run or data["left_out"]:
        lines += ["## Not run", ""]
        lines += [f"- {reason}: {'; '.join(names)}" for reason, names in not_run.items()]
        lines += [f"- left out of what was carried: {text}" for text in data["left_out"]] + [""]
    return "\n".join(lines)


def _longest(kernels: Sequence[Row]) -> list[Row]:
    shown: dict[tuple[str, str, str], list[Row]] = {}
    for row in kernels:
        shown.setdefault((row["network"], row["precision"], row["how"]), []).append(row)
    return [row for rows in shown.values() for row in rows[:KERNELS_SHOWN]]


def _rate(row: Row) -> float | None:
    median = row["median_ms"]
    return 1000 * row["batch"] / median if median else None


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    clean = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [
        f"## {title}",
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
        *(f"| {' | '.join(row)} |" for row in clean),
        "",
    ]
