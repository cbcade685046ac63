"""Table and figure of a sweep: a column for each setting, ranked by validation."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from millrace.evaluation.training_record import read_scores
from millrace.figures.style import (
    CATEGORIES,
    PAGE_WIDTH,
    PREDICTION,
    REFERENCE_LINE,
    figure,
    log_ticks,
)
from millrace.files import atomic_write
from millrace.sweeps.choosing import ranked, read_chosen
from millrace.sweeps.outcome import Outcome, read_outcomes
from millrace.sweeps.parameter import Range
from millrace.sweeps.sweep import Sweep
from millrace.systems.registry import get_kind

_STYLE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Sweep</title><style>
body { font: 14px/1.45 system-ui, sans-serif; color: #222; margin: 1.2rem; }
table { border-collapse: collapse; } caption { text-align: left; margin-bottom: .6rem; max-width: 60rem; }
th, td { padding: .25rem .5rem; text-align: right; border-bottom: 1px solid #ddd;
  font-variant-numeric: tabular-nums; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
.chosen { font-weight: 600; background: #eef5fb; } .text { text-align: left; }
</style>"""
_MAX_COLUMNS = 3
_WIDE = 3.0
"""Ratio of losses from which on their axis is logarithmic."""


def summarise_sweep(
    sweep: Sweep,
    receipts: Sequence[str],
    metrics: Sequence[str],
    chosen: Path,
    table: Path,
    csv: Path,
    figure: Path,
) -> None:
    """Write all trials as an HTML table, as CSV and as a figure.

    ``receipts`` are those of the trials at the milestones where they ended, ``metrics`` the files
    `metrics.json` of the chosen trial, the only one that is scored on test data.
    """
    name = read_chosen(chosen)
    outcomes = ranked(read_outcomes(receipts))
    last_epoch = max(one.epoch for one in outcomes)
    rows = [_row(sweep, one, last_epoch, one.trial == name) for one in outcomes]
    frame = pd.DataFrame({"rank": range(1, len(rows) + 1)}).join(pd.DataFrame(rows))
    scores = _test_skill(metrics)
    for variable, skill in scores.items():
        frame[f"test skill {variable}"] = [
            skill if one.trial == name else math.nan for one in outcomes
        ]
    with atomic_write(csv) as partial:
        frame.to_csv(partial, index=False)
    with atomic_write(table) as partial:
        partial.write_text(_html(sweep, frame, name, len(outcomes[0].histories)))
    _draw(sweep, outcomes, name, last_epoch, figure)


def state(outcome: Outcome, last_epoch: int, chosen: bool = False) -> str:
    """Return what became of a trial, in words."""
    if outcome.loss() == math.inf:
        return f"failed: {outcome.failure or 'no finite validation loss'}"
    if outcome.epoch < last_epoch:
        return f"stopped after epoch {outcome.epoch}: above the median"
    return "chosen" if chosen else "complete"


def _row(sweep: Sweep, outcome: Outcome, last_epoch: int, chosen: bool) -> dict[str, Any]:
    values, loss = sweep.values(outcome.trial) or {}, outcome.loss()
    shown = {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in values.items()}
    return {
        **shown,
        "validation loss": loss if loss < math.inf else math.nan,
        "epochs": max((len(records) for records in outcome.histories), default=0),
        "state": state(outcome, last_epoch, chosen),
        "trial": outcome.trial,
    }


def _test_skill(metrics: Sequence[str]) -> dict[str, float]:
    """Skill on test data by variable, the mean of all runs of the chosen trial."""
    rows = []
    for path in metrics:
        scores = read_scores(Path(path))
        rows += get_kind(scores.get("samples", "patches")).table.rows(scores)
    skill = pd.DataFrame([{key: row[key] for key in ("variable", "skill")} for row in rows])
    return dict(pd.to_numeric(skill["skill"]).groupby(skill["variable"], sort=False).mean())


def _html(sweep: Sweep, frame: pd.DataFrame, chosen: str, seeds: int) -> str:
    mean = f" (mean of {seeds} seeds)" if seeds > 1 else ""
    states = frame["state"]
    stopped, failed = (int(states.str.startswith(one).sum()) for one in ("stopped", "failed"))
    caption = (
        f"{len(frame)} trials of the sweep of {escape(sweep.experiment)}, of which {stopped} were stopped "
        f"and {failed} failed. They are ranked by their lowest validation loss{mean}; those that were "
        "stopped come after those that were trained longer. Only the chosen trial is scored on test data: "
        "skill is 1 for perfect forecasts, 0 for those no better than the best simple forecast."
    )
    head = "".join(f"<th>{escape(str(name))}</th>" for name in frame)
    body = "".join(
        f"<tr{' class=chosen' if row['trial'] == chosen else ''}>"
        + "".join(f"<td>{escape(_text(value))}</td>" for value in row)
        + "</tr>"
        for _, row in frame.astype(object).iterrows()
    )
    return (
        f"{_STYLE}<table><caption>{caption}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></html>\n"
    )


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return "" if value is None else str(value)


def _draw(
    sweep: Sweep, outcomes: Sequence[Outcome], chosen: str, last_epoch: int, path: Path
) -> None:
    """A panel for each setting: the validation loss of the trials over its values."""
    kinds = {"complete": PREDICTION, "stopped": CATEGORIES[1], "chosen": CATEGORIES[6]}
    across = min(len(sweep.parameters), _MAX_COLUMNS)
    down = -(-len(sweep.parameters) // across)
    known = [one for one in outcomes if one.loss() < math.inf]
    with figure(path, PAGE_WIDTH, 0.6 + 2.3 * down) as fig:
        panels = fig.subplots(down, across, sharey=True, squeeze=False).ravel()
        for axes in panels[len(sweep.parameters) :]:
            axes.remove()
        for axes, parameter in zip(panels, sweep.parameters, strict=False):
            place = _axis(axes, parameter.values)
            for kind, colour in kinds.items():
                mine = [
                    o for o in known if state(o, last_epoch, o.trial == chosen).split()[0] == kind
                ]
                axes.plot(
                    [place((sweep.values(one.trial) or {})[parameter.key]) for one in mine],
                    [one.loss() for one in mine],
                    color=colour, marker="*" if kind == "chosen" else "o", linestyle="none",
                    markersize=11 if kind == "chosen" else 5, markeredgecolor="white",
                    markeredgewidth=0.4, label=kind,
                )  # fmt: skip
            axes.set_xlabel(parameter.key)
            if isinstance(parameter.values, Range) and parameter.values.log:
                log_ticks(axes.xaxis, *axes.get_xlim())
        panels[0].set_ylabel("Validation loss")
        losses = [one.loss() for one in known]
        if losses and max(losses) > _WIDE * min(losses):
            panels[0].set_yscale("log")  # shared by all panels
            log_ticks(panels[0].yaxis, *panels[0].get_ylim())
        handles, labels = panels[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        if len(known) < len(outcomes):
            note = f"{len(outcomes) - len(known)} failed trials are not shown"
            fig.supxlabel(note, fontsize=8, color=REFERENCE_LINE)


def _axis(axes: Any, values: Range | Mapping[str, Any]) -> Any:
    """Prepare the axis of a setting; returns where a value stands on it."""
    if isinstance(values, Range):
        axes.set_xscale("log" if values.log else "linear")
        return lambda value: value
    listed = list(values.values())
    axes.set_xticks(range(len(listed)), [_text(value) for value in listed])
    axes.set_xmargin(0.15)
    return listed.index
