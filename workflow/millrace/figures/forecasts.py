"""Errors of forecasts for raw files that no training has seen."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from millrace.figures.style import (
    PAGE_WIDTH,
    PERSISTENCE,
    PREDICTION,
    Thousands,
    axis_label,
    figure,
)


def error_over_time(
    time: ArrayLike,
    errors: Mapping[str, Mapping[str, ArrayLike]],
    units: Mapping[str, str],
    label: str,
    path: str | Path,
) -> None:
    """Draw the RMSE of forecasts in their order, one panel per variable.

    ``errors`` are by variable and forecast, of which ``model`` is drawn first; NaN leaves a gap. ``time``
    is what the forecasts are of, such as the time of issue, and ``label`` says so.
    """
    look = {"color": PERSISTENCE, "linewidth": 0.9, "linestyle": "--"}
    with figure(path, PAGE_WIDTH, 0.9 + 1.6 * max(1, len(errors))) as fig:
        panels = fig.subplots(max(1, len(errors)), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (variable, by_forecast) in zip(panels, errors.items(), strict=False):
            axes.plot(time, np.asarray(by_forecast["model"]), color=PREDICTION, label="Model")
            for name, values in by_forecast.items():
                if name != "model":
                    label = name.replace("_", " ").capitalize()
                    axes.plot(time, np.asarray(values), label=label, **look)
            axes.set_title(axis_label(variable, ""))
            axes.set_ylabel(axis_label("RMSE", units[variable]))
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(Thousands())
            axes.margins(x=0.01)
        panels[-1].set_xlabel(label[:1].upper() + label[1:])
        if errors:
            handles, labels = panels[0].get_legend_handles_labels()
            fig.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        else:
            panels[0].set_title("The raw files do not hold what was forecast")
