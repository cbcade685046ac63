"""Two runs side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from millrace.figures.style import (
    PAGE_WIDTH,
    PERSISTENCE,
    PREDICTION,
    REFERENCE_LINE,
    figure,
    log_if_wide,
)

_MOST = 60
"""Rows that can be read."""


def losses_of_two(
    a: tuple[str, Sequence[Mapping[str, Any]]],
    b: tuple[str, Sequence[Mapping[str, Any]]],
    path: str | Path,
) -> None:
    """Draw the validation loss by epoch of two runs, (name, records of epochs) each."""
    with figure(path, PAGE_WIDTH, 3.0) as fig:
        axes: Any = fig.subplots()
        shown: list[float] = []
        for side, (name, history), colour in (("A", a, PREDICTION), ("B", b, PERSISTENCE)):
            known = [r for r in history if r.get("validation_loss") is not None]
            loss = np.array([r["validation_loss"] for r in known], dtype=float)
            marker = "o" if len(known) == 1 else None
            axes.plot(
                [r["epoch"] for r in known],
                loss,
                color=colour,
                marker=marker,
                label=f"{side}: {name}",
            )
            shown += loss.tolist()
        log_if_wide(axes, shown)
        axes.set(xlabel="Epoch", ylabel="Validation loss")
        axes.xaxis.get_major_locator().set_params(integer=True)
        fig.legend(loc="outside upper left")


def relative_differences(rows: Sequence[Any], path: str | Path) -> None:
    """Draw differences of two runs (`millrace.evaluation.paired.Difference`) over the mean error of B.

    Bars are their intervals; of more than 60 rows the first are shown.
    """
    shown = [one for one in rows if one.mean_b > 0][:_MOST]
    with figure(path, PAGE_WIDTH, 0.9 + 0.19 * max(len(shown), 1)) as fig:
        axes = fig.subplots()
        axes.axvline(0, color=REFERENCE_LINE, linewidth=1.2)
        for row, one in enumerate(shown):
            colour = {"A": PREDICTION, "B": PERSISTENCE}.get(one.better, REFERENCE_LINE)
            if one.low is not None:
                ends = [100 * one.low / one.mean_b, 100 * one.high / one.mean_b]
                axes.plot(ends, [row, row], color=colour)
            axes.plot(
                100 * one.difference / one.mean_b, row, color=colour, marker="o", markersize=4
            )
        axes.set_yticks(range(len(shown)), [f"{one.variable}, {one.score}" for one in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("A − B (% of B); left of 0: A is better")
