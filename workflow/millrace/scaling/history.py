"""History of step times by commit, one file for each kind of hardware, and changes between commits."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from millrace.errors import DataError
from millrace.scaling.quantity import MEASURED, Quantity
from millrace.scaling.results import Analysis, Change, LayoutResult, Study
from millrace.sealed import read_sealed, write_sealed

SCHEMA = "millrace.scaling_history/1"


def hardware(study: Study) -> str:
    """Return the name of a study's hardware; times are compared on the same hardware only."""
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{study.device_kind}-{study.device_name}").strip("-")


def remember(analysis: Analysis, folder: Path) -> list[Path]:
    """Add all measured step times to the files of their hardware, and return these files.

    Earlier entries of the same commit are replaced. Studies whose runs are of several commits, of an
    unknown one or of a checkout with local changes are left out, because they cannot be reproduced.
    """
    written: dict[Path, None] = {}
    for study in analysis.studies:
        commit = _commit(study)
        if commit is None or commit.endswith("+"):
            continue
        path = folder / f"{hardware(study)}.json"
        entries = [e for e in _entries(path) if (e["commit"], e["study"]) != (commit, study.key)]
        for one in study.layouts:
            if one.label == MEASURED:
                entry = {"commit": commit, "study": study.key, "layout": one.layout}
                entries.append(entry | dataclasses.asdict(one.step))
        write_sealed(path, {"schema": SCHEMA, "hardware": hardware(study), "entries": entries})
        written[path] = None
    return list(written)


def compare(analysis: Analysis, folder: Path) -> Analysis:
    """Return the analysis with its changes since the last other commit that `remember` added to a folder.

    Raises `DataError` if a file of the folder is damaged.
    """
    tolerance = analysis.settings["regression_tolerance"]
    changes = []
    for study in analysis.studies:
        now = _commit(study)
        entries = [
            entry
            for entry in _entries(folder / f"{hardware(study)}.json")
            if entry["study"] == study.key and entry["commit"] != now
        ]
        steps = {e["layout"]: e for e in entries if e["commit"] == entries[-1]["commit"]}
        changes += [
            _change(study, one, steps[one.layout], now or "unknown", tolerance)
            for one in study.layouts
            if one.label == MEASURED and one.layout in steps
        ]
    return dataclasses.replace(analysis, changes=tuple(changes))


def _change(
    study: Study, one: LayoutResult, entry: dict[str, Any], commit: str, tolerance: float
) -> Change:
    """A step is slower or faster if it changed by more than the tolerance and intervals do not overlap."""
    before = Quantity(**{field.name: entry[field.name] for field in dataclasses.fields(Quantity)})
    relative = one.step.value / before.value - 1
    verdict = "unchanged"
    if relative > tolerance and _is_below(before, one.step):
        verdict = "slower"
    elif relative < -tolerance and _is_below(one.step, before):
        verdict = "faster"
    return Change(
        study=study.key,
        layout=one.layout,
        hardware=hardware(study),
        before_commit=entry["commit"],
        before=before,
        now_commit=commit,
        now=one.step,
        change=relative,
        verdict=verdict,
    )


def _is_below(one: Quantity, other: Quantity) -> bool:
    high = one.value if one.high is None else one.high
    low = other.value if other.low is None else other.low
    return high < low


def _commit(study: Study) -> str | None:
    """The commit of all runs; None: not known, or several."""
    return study.commits[0] if len(study.commits) == 1 else None


def _entries(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    what, remedy = f"the history of scaling runs, {SCHEMA}", "restore or remove the file"
    content = read_sealed(path, what, remedy, remedy)
    try:
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r}")
        needed = {"commit", "study", "layout", *(f.name for f in dataclasses.fields(Quantity))}
        if any(needed - entry.keys() for entry in content["entries"]):
            raise ValueError("incomplete entries")
        return list(content["entries"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: expected {what} ({error}): {remedy}") from error
