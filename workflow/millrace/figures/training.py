"""Learning curves, and the skill of all experiments and seeds."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from millrace.figures.style import (
    PAGE_WIDTH,
    PERSISTENCE,
    PREDICTION,
    REFERENCE_LINE,
    TRUTH,
    WARNING,
    axis_label,
    figure,
    log_if_wide,
)

_MAX_COLUMNS = 6
"""Largest number of panels in a row."""


def training_curves(
    histories: Sequence[Mapping[str, Any]], path: str | Path, problems: Sequence[str] = ()
) -> None:
    """Draw training and validation loss and the learning rate by epoch.

    Parameters
    ----------
    histories
        Records in chronological order, each with ``epoch``, ``train_loss``, ``validation_loss`` (or None),
        ``learning_rate`` and ``session``; ``roll_backs`` before the epoch, if there were any. A vertical
        line marks the last epoch of each session, and the one before each roll-back.
    path
        File to write.
    problems
        Why the run does not learn, for the title.
    """
    epoch, train, validation, rate = (
        np.array([record[key] for record in histories], dtype=kind)
        for key, kind in (
            ("epoch", int), ("train_loss", float), ("validation_loss", float), ("learning_rate", float)
        )
    )  # fmt: skip
    with figure(path, PAGE_WIDTH, 4.2) as fig:
        top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
        top.plot(epoch, train, color=TRUTH, label="Training")
        known = np.isfinite(validation)
        if known.any():
            known_epoch = epoch[known]
            top.plot(known_epoch, validation[known], color=PREDICTION, label="Validation")
            best = int(np.argmin(validation[known]))
            top.plot(
                known_epoch[best], validation[known][best], color=PREDICTION, marker="o",
                linestyle="none", markerfacecolor="white",
                label=f"Best validation (epoch {known_epoch[best]})",
            )  # fmt: skip
        bottom.plot(epoch, rate, color=PERSISTENCE, drawstyle="steps-mid")
        # Last epoch before each change of session; epochs that were repeated do not count.
        resumed = [
            min(before["epoch"], after["epoch"] - 1)
            for before, after in pairwise(histories)
            if before["session"] != after["session"]
        ]
        counts = [0, *(record.get("roll_backs", 0) for record in histories)]
        rolled_back = [
            e - 1 for e, (before, now) in zip(epoch, pairwise(counts), strict=True) if now > before
        ]
        for places, gid, style in (resumed, "resumed", ":"), (rolled_back, "rolled back", "-."):
            for i, at in enumerate(places):
                for axes in (top, bottom):
                    axes.axvline(
                        at, color=REFERENCE_LINE, linewidth=0.9, linestyle=style, gid=gid,
                        label=gid.capitalize() if i == 0 and axes is top else None,
                    )  # fmt: skip
        start = histories[0].get("initial_validation_loss")
        if start:
            top.plot(
                0, start, color=PREDICTION, marker="_", linestyle="none", label="Before training"
            )
        for problem in problems[:1]:
            top.set_title(
                textwrap.fill(f"Does not learn: {problem}", 95),
                color=WARNING,
                fontsize=8,
                loc="left",
            )
        log_if_wide(top, [*train, *validation[known], *([start] if start else [])])
        log_if_wide(bottom, rate)
        top.set(ylabel="Loss")
        bottom.set(ylabel="Learning rate", xlabel="Epoch")
        bottom.xaxis.get_major_locator().set_params(integer=True)
        bottom.margins(x=0.01)
        fig.align_ylabels()
        handles, labels = top.get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4))


def skill_summary(table: Any, path: str | Path, baseline: str = "persistence") -> None:
    """Draw the test skill over a baseline of every seed, by experiment and variable.

    Parameters
    ----------
    table
        Data frame, or mapping of columns, with ``experiment``, ``variable`` and ``skill`` (1 is
        perfect, 0 no better than the baseline, None or NaN undefined); one row per experiment,
        variable and seed. Seeds are stacked in the order of the rows; a bar marks the mean of several.
    path
        File to write.
    baseline
        Name of the baseline, for the axis.
    """
    rows = pd.DataFrame(table)
    experiments, variables = rows["experiment"].unique(), rows["variable"].unique()
    across = min(len(variables), _MAX_COLUMNS)
    down = -(-len(variables) // across)
    with figure(path, PAGE_WIDTH, 0.5 + down * (0.6 + 0.55 * len(experiments))) as fig:
        grid = fig.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        panels, several = grid.ravel(), False
        for axes in panels[len(variables) :]:
            axes.remove()
        for axes, name in zip(panels, variables, strict=False):
            axes.axvline(0, color=REFERENCE_LINE, linewidth=1.2)
            for row, label in enumerate(experiments):
                mine = rows[(rows["experiment"] == label) & (rows["variable"] == name)]
                seeds = mine["skill"].to_numpy(dtype=float)
                seeds = seeds[np.isfinite(seeds)]
                if not seeds.size:
                    text = "no skill defined" if len(mine) else "not predicted"
                    axes.annotate(
                        text, (0, row), xytext=(4, 0), textcoords="offset points",
                        va="center", color=REFERENCE_LINE, fontsize=8,
                    )  # fmt: skip
                    continue
                # Spread over the height of the row: equal skills stay apart.
                height = row + np.linspace(-0.36, 0.36, seeds.size + 2)[1:-1]
                axes.plot(
                    seeds, height, color=PREDICTION, marker="o", markersize=5, linestyle="none",
                    markeredgecolor="white", markeredgewidth=0.4,
                )  # fmt: skip
                if seeds.size == 1:
                    continue
                mean, several = [seeds.mean()] * 2, True
                axes.plot(mean, [row - 0.38, row + 0.38], color=TRUTH, linewidth=1.4, zorder=1.9)
            axes.set_title(axis_label(name, ""))
            axes.set_xmargin(0.08)
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
        panels[0].set_yticks(range(len(experiments)), experiments)
        panels[0].set_ylim(len(experiments) - 0.5, -0.5)
        marks = "dots: seeds, bar: mean" if several else "one seed"
        fig.supxlabel(f"Skill over {baseline} ({marks})", fontsize=9)
