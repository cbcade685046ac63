"""The analysis as CSV, as text for Extra-P and as a table in Markdown."""

import csv
import dataclasses
from collections import defaultdict
from pathlib import Path

from millrace.files import atomic_write
from millrace.scaling.quantity import MEASURED, Quantity
from millrace.scaling.results import Analysis, Cost, LayoutResult, Study, by_ranks

_QUANTITIES = {
    "step_s": "step", "throughput_per_s": "throughput", "speed_up": "speed_up", "mfu": "mfu",
    "roofline": "roofline", "all_reduce_s": "all_reduce", "crossover_batch": "crossover",
    "memory_bytes": "memory", "energy_j_per_sample": "energy", "queue_h": "queue_hours",
    "loss_deviation": "loss_deviation",
}  # fmt: skip
_PARTS = (
    "forward", "backward", "optimiser", "computing", "other", "imbalance", "data", "communication",
)  # fmt: skip


def write_csv(analysis: Analysis, path: Path) -> None:
    """Write one row for each study and layout; beside every number are its label and its interval."""
    rows = [_row(study, one) for study in analysis.studies for one in study.layouts]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_write(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def extrap_text(analysis: Analysis) -> str:
    """Return all step times as text for Extra-P (its "text file format").

    The format has one set of numbers of ranks for a file. Studies with the most common set are written, one
    region each, and for each number of ranks the layout on the fewest nodes; other studies are named in a
    comment.
    """
    measured = {
        study.key: by_ranks([one for one in study.layouts if one.label == MEASURED])
        for study in analysis.studies
    }
    keys_by_ranks: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for key, layouts in measured.items():
        keys_by_ranks[tuple(layouts)].append(key)
    ranks, kept = max(keys_by_ranks.items(), key=lambda item: (len(item[1]), len(item[0])))
    lines = ["# Measured seconds of an optimiser step by number of ranks p, one value for each run"]
    lines += [f"# left out, measured at other p: {key}" for key in measured if key not in kept]
    lines += ["PARAMETER p", "POINTS " + " ".join(f"( {p} )" for p in ranks), "METRIC time"]
    for key in kept:
        lines.append(f"REGION {key}")
        for one in measured[key].values():
            # The grammar has no exponents.
            lines.append("DATA " + " ".join(f"{seconds:.9f}" for seconds in one.run_seconds))
    return "\n".join(lines) + "\n"


def readme_table(analysis: Analysis) -> str:
    """Return throughput and efficiency as a table in Markdown, one row for each study and layout."""
    lines = [
        "| device | experiment | scaling | layout | samples/s | efficiency | |",
        "|---|---|---|---|---|---|---|",
    ]
    for study in analysis.studies:
        device = f"{study.device_kind.upper()}: {study.device_name}"
        for one in study.layouts:
            efficiency = one.factors.efficiency
            text = f"{efficiency.value:.1%}"
            if efficiency.low is not None and efficiency.low != efficiency.high:
                text += f" ({efficiency.low:.1%} to {efficiency.high:.1%})"
            lines.append(
                f"| {device} | `{study.experiment}` | {study.mode} | `{one.layout}` | "
                f"{one.throughput.value:.4g} | {text} | {one.label} |"
            )
    return "\n".join(lines) + "\n"


def _row(study: Study, one: LayoutResult) -> dict[str, object]:
    of_study = ("device_kind", "device_name", "experiment", "mode", "precision", "base")
    of_layout = ("layout", "label", "nodes", "ranks", "rank_batch", "repeats", "steps")
    row: dict[str, object] = {name: getattr(study, name) for name in of_study}
    row |= {name: getattr(one, name) for name in of_layout}
    for column, name in _QUANTITIES.items():
        row |= _cells(column, getattr(one, name))
    for field in dataclasses.fields(one.factors):
        row |= _cells(field.name, getattr(one.factors, field.name))
    for part in _PARTS:
        row |= _cells(f"{part}_part_s", one.parts.get(part))
    for name in ("epoch", "target"):
        for field in dataclasses.fields(Cost):
            row |= _cells(f"{name}_{field.name}", getattr(getattr(one, name), field.name, None))
    row["diagnosis"] = one.diagnosis.kind if one.diagnosis else ""
    row["claim"] = one.claim.verdict if one.claim else ""
    row["basis"] = one.basis
    return row


def _cells(name: str, quantity: Quantity | None) -> dict[str, object]:
    if quantity is None:
        return {name: "", f"{name}_label": ""}
    cells: dict[str, object] = {name: quantity.value, f"{name}_label": quantity.label}
    if quantity.low is not None:
        cells |= {f"{name}_low": quantity.low, f"{name}_high": quantity.high}
    return cells
