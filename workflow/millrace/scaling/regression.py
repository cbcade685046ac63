"""Times of a step by commit, one file a kind of hardware, and what changed since an earlier commit."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from millrace.errors import DataError
from millrace.files import write_json
from millrace.scaling.quantity import MEASURED, Quantity
from millrace.scaling.results import Analysis, Change, LayoutResult, Study

SCHEMA = "millrace.scaling_history/1"


def hardware(study: Study) -> str:
    """Name of the hardware of a study: times are only compared on the same."""
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{study.device_kind}-{study.device_name}").strip("-")


def remember(analysis: Analysis, folder: Path) -> list[Path]:
    """Add all measured steps to the files of their hardware; a commit that is there is replaced.

    Studies whose runs come from several commits, from none, or from a checkout with local changes are left
    out: their numbers could not be measured again.

    Returns
    -------
    list of Path
        The files written.
    """
    written: dict[Path, None] = {}
    for study in analysis.studies:
        commit = _commit(study)
        if commit is None or commit.endswith("+"):
            continue
        path = folder / f"{hardware(study)}.json"
        entries = [e for e in _entries(path) if (e["commit"], e["study"]) != (commit, study.key)]
        entries += [
            {
                "commit": commit,
                "study": study.key,
                "layout": one.layout,
                **dataclasses.asdict(one.step),
            }
            for one in study.layouts
            if one.label == MEASURED
        ]
        write_json(path, {"schema": SCHEMA, "hardware": hardware(study), "entries": entries})
        written[path] = None
    return list(written)


def compare(analysis: Analysis, folder: Path, against: str | None = None) -> Analysis:
    """Give the analysis with its changes against an earlier commit.

    Parameters
    ----------
    analysis : Analysis
    folder : Path
        Of `remember`; one that is not there holds nothing.
    against : str, optional
        Beginning of the commit; None: the last remembered one that is not the present.

    Raises
    ------
    DataError
        A file of the folder is damaged.
    """
    changes = []
    for study in analysis.studies:
        now = _commit(study)
        entries = [
            entry
            for entry in _entries(folder / f"{hardware(study)}.json")
            if entry["study"] == study.key and entry["commit"] != now
        ]
        if against is not None:
            entries = [entry for entry in entries if entry["commit"].startswith(against)]
        if not entries:
            continue
        before = entries[-1]["commit"]
        steps = {entry["layout"]: entry for entry in entries if entry["commit"] == before}
        changes += [
            _change(
                study,
                one,
                steps[one.layout],
                now or "unknown",
                analysis.settings["regression_tolerance"],
            )
            for one in study.layouts
            if one.label == MEASURED and one.layout in steps
        ]
    return dataclasses.replace(analysis, changes=tuple(changes))


def _change(
    study: Study, one: LayoutResult, entry: dict[str, Any], commit: str, tolerance: float
) -> Change:
    """Slower or faster: by more than the tolerance, and with intervals that do not overlap."""
    before = Quantity(**{field.name: entry[field.name] for field in dataclasses.fields(Quantity)})
    relative = one.step.value / before.value - 1
    verdict = "unchanged"
    if relative > tolerance and _below(before, one.step):
        verdict = "slower"
    elif relative < -tolerance and _below(one.step, before):
        verdict = "faster"
    return Change(
        study.key,
        one.layout,
        hardware(study),
        entry["commit"],
        before,
        commit,
        one.step,
        relative,
        verdict,
    )


def _below(one: Quantity, other: Quantity) -> bool:
    high = one.value if one.high is None else one.high
    low = other.value if other.low is None else other.low
    return high < low


def _commit(study: Study) -> str | None:
    return study.commits[0] if len(study.commits) == 1 else None


def _entries(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r}")
        needed = {"commit", "study", "layout", "value", "unit", "label", "low", "high"}
        if any(needed - entry.keys() for entry in content["entries"]):
            raise ValueError("incomplete entries")
        return list(content["entries"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: expected the history of scaling runs, {SCHEMA} ({error}): restore or remove the file"
        ) from error
