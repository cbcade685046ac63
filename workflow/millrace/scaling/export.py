"""The analysis as CSV, JSON, text for Extra-P and a table for a README."""

import csv
import dataclasses
import io
from collections import defaultdict
from pathlib import Path

from millrace.files import atomic_write, write_json
from millrace.scaling.quantity import MEASURED, Quantity
from millrace.scaling.results import PARTS, Analysis, LayoutResult, Study

_QUANTITIES = {
    "step_s": "step", "throughput_per_s": "throughput", "speed_up": "speed_up", "mfu": "mfu",
    "roofline": "roofline", "all_reduce_s": "all_reduce", "crossover_batch": "crossover",
    "memory_bytes": "memory", "energy_j_per_sample": "energy", "queue_h": "queue_hours",
    "loss_deviation": "loss_deviation",
}  # fmt: skip
_COSTS = ("seconds", "device_hours", "node_hours", "money")


def write_json_file(analysis: Analysis, path: Path) -> None:
    """Write all of the analysis."""
    write_json(path, analysis.as_json())


def write_csv(analysis: Analysis, path: Path) -> None:
    """Write one row a study and layout; every number has its label beside it, and its interval."""
    rows = [_row(study, one) for study in analysis.studies for one in study.layouts]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_write(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def extrap_text(analysis: Analysis) -> str:
    """Times of all steps as text for Extra-P (text file format of its documentation).

    The format has one set of points for a file. Studies with the most common set are written, one region
    each, for each number of ranks the layout on the fewest nodes; the others are named in a comment.
    """
    points = {study.key: _densest(study) for study in analysis.studies}
    sets: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for key, layouts in points.items():
        sets[tuple(layouts)].append(key)
    ranks, kept = max(sets.items(), key=lambda item: (len(item[1]), len(item[0])))
    text = io.StringIO()
    text.write("# Measured seconds of an optimiser step by number of ranks p, one value a run\n")
    for key in points:
        if key not in kept:
            text.write(f"# left out, measured at other p: {key}\n")
    text.write("PARAMETER p\n")
    text.write("POINTS " + " ".join(f"( {p} )" for p in ranks) + "\n")
    text.write("METRIC time\n")
    for key in kept:
        text.write(f"REGION {key}\n")
        for one in points[key].values():
            # The grammar has no exponents.
            text.write("DATA " + " ".join(f"{v:.9f}" for v in one.run_seconds) + "\n")
    return text.getvalue()


def readme_table(analysis: Analysis) -> str:
    """Table in Markdown of throughput and efficiency, one row a study and layout, with labels."""
    lines = [
        "| device | experiment | scaling | layout | samples/s | efficiency | |",
        "|---|---|---|---|---|---|---|",
    ]
    for study in analysis.studies:
        for one in study.layouts:
            efficiency = _band(one.factors.efficiency)
            lines.append(
                f"| {study.device_kind.upper()}: {study.device_name} | `{study.experiment}` | "
                f"{study.mode} | `{one.layout}` | {one.throughput.value:.4g} | {efficiency} | {one.label} |"
            )
    return "\n".join(lines) + "\n"


def _band(efficiency: Quantity) -> str:
    text = f"{efficiency.value:.1%}"
    if efficiency.low is None or efficiency.low == efficiency.high:
        return text
    return f"{text} ({efficiency.low:.1%} to {efficiency.high:.1%})"


def _densest(study: Study) -> dict[int, LayoutResult]:
    chosen: dict[int, LayoutResult] = {}
    for one in study.layouts:  # in the order of ranks and nodes
        if one.label == MEASURED:
            chosen.setdefault(one.ranks, one)
    return chosen


def _row(study: Study, one: LayoutResult) -> dict[str, object]:
    row: dict[str, object] = {
        name: getattr(study, name)
        for name in ("device_kind", "device_name", "experiment", "mode", "precision", "base")
    }
    row |= {
        name: getattr(one, name)
        for name in ("layout", "label", "nodes", "ranks", "rank_batch", "repeats", "steps")
    }
    for column, name in _QUANTITIES.items():
        row |= _cells(column, getattr(one, name))
    for field in dataclasses.fields(one.factors):
        row |= _cells(field.name, getattr(one.factors, field.name))
    for part in PARTS:
        row |= _cells(f"{part}_part_s", one.parts.get(part))
    for name in ("epoch", "target"):
        cost = getattr(one, name)
        for part in _COSTS:
            row |= _cells(f"{name}_{part}", None if cost is None else getattr(cost, part))
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
