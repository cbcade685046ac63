"""Ensembles of fine fields: spectra, ranks, reliability, regions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullFormatter

from millrace.figures.style import (
    PAGE_WIDTH,
    PERSISTENCE,
    PREDICTION,
    REFERENCE_LINE,
    TRUTH,
    axis_label,
    figure,
)

_LOOKS: Mapping[str, dict[str, Any]] = {
    "model": {"color": PREDICTION},
    "block_mean": {"color": REFERENCE_LINE, "linestyle": ":"},
    "interpolation": {"color": "#009E73", "linestyle": "-."},
    "linear_regression": {"color": PERSISTENCE, "linestyle": "--"},
}
_MARKERS = {"model": "o", "block_mean": "v", "interpolation": "d", "linear_regression": "s"}


def spectra(forecasts: Mapping[str, Any], unit: str, path: str | Path) -> None:
    """Draw the angular power spectra of the ground truth and of all forecasts, and their ratios.

    ``forecasts`` are scores by forecast, each with ``spectrum_truth`` and ``spectrum_ratio`` by degree,
    from 1; ``unit`` is that of the field.
    """
    truth = np.array(forecasts["model"]["spectrum_truth"])
    degree = np.arange(1, truth.size + 1)
    with figure(path, PAGE_WIDTH, 3.0) as fig:
        left, right = fig.subplots(1, 2)
        left.plot(degree, truth, color=TRUTH, label="Ground truth")
        for name, scores in forecasts.items():
            ratio = np.array(scores["spectrum_ratio"])
            label = name.replace("_", " ").capitalize()
            left.plot(degree, truth * ratio, label=label, **_LOOKS[name])
            right.plot(degree, ratio, **_LOOKS[name])
        right.axhline(1, color=TRUTH, linewidth=1)
        left.set(xscale="log", yscale="log", ylabel=axis_label("Power", _squared(unit)))
        right.set(xscale="log", yscale="log", ylabel="Power / ground truth", ylim=(0.05, 5))
        right.yaxis.set_major_locator(FixedLocator([0.05, 0.1, 0.25, 0.5, 1, 2, 4]))
        right.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        right.yaxis.set_minor_formatter(NullFormatter())
        for axes in (left, right):
            axes.set_xlabel("Degree l (waves around the globe)")
            axes.xaxis.set_major_formatter(FormatStrFormatter("%d"))
        handles, labels = left.get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def reliability(scores: Mapping[str, Any], unit: str, path: str | Path) -> None:
    """Draw where the ground truth ranks among the members, and the error by spread.

    ``scores`` are those of an ensemble, with ``rank_histogram`` and ``reliability``.
    """
    ranks, bins = np.array(scores["rank_histogram"]), scores["reliability"]
    with figure(path, PAGE_WIDTH, 2.8) as fig:
        left, right = fig.subplots(1, 2)
        left.bar(np.arange(ranks.size), ranks * ranks.size, color=PREDICTION, width=0.9)
        left.axhline(1, color=TRUTH, linewidth=1)
        left.set(xlabel="Members below the ground truth", ylabel="Frequency over that expected")
        known = [one for one in bins if one["share"] > 1e-3]
        spread, error = (np.array([one[key] for one in known]) for key in ("spread", "rmse"))
        high = 1.1 * max(spread.max(), error.max()) if known else 1
        right.plot([0, high], [0, high], color=TRUTH, linewidth=1)
        right.plot(spread, error, color=PREDICTION, marker="o", markersize=4)
        right.set(xlim=(0, high), ylim=(0, high), xlabel=axis_label("Spread of the members", unit))
        right.set_ylabel(axis_label("RMSE of their mean", unit))
        right.set_title(f"Spread / error {scores['spread_skill']:.2f}")


def by_region(forecasts: Mapping[str, Any], unit: str, path: str | Path) -> None:
    """Draw the RMSE of all forecasts and the model's CRPS by region, with the ratio of spread to error."""
    regions = list(forecasts["model"]["regions"])
    with figure(path, PAGE_WIDTH, 1.0 + 0.34 * len(regions)) as fig:
        axes = fig.subplots()
        look: dict[str, Any] = {"linestyle": "none", "markersize": 5}
        place = np.arange(len(regions))
        for name, scores in forecasts.items():
            values = [scores["regions"][region]["rmse"] for region in regions]
            look |= {"marker": _MARKERS[name], "color": _LOOKS[name]["color"]}
            axes.plot(values, place, label=f"RMSE {name.replace('_', ' ')}", **look)
        model = [forecasts["model"]["regions"][region] for region in regions]
        look |= {"marker": "o", "markerfacecolor": "white", "color": PREDICTION}
        axes.plot([one["crps"] for one in model], place, label="CRPS model", **look)
        for at, one in zip(place, model, strict=True):
            if "spread_skill" in one:
                axes.annotate(
                    f"spread / error {one['spread_skill']:.2f}", (1, at), xytext=(-2, 0), ha="right",
                    va="center", xycoords=("axes fraction", "data"), textcoords="offset points",
                    fontsize=7.5,
                )  # fmt: skip
        axes.set_yticks(place, [region.capitalize() for region in regions])
        axes.set_ylim(len(regions) - 0.5, -0.5)
        axes.set_xlim(0, 1.3 * axes.get_xlim()[1])
        axes.set_xlabel(axis_label("RMSE and CRPS", unit))
        fig.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)


def _squared(unit: str) -> str:
    """A unit squared; in brackets if it has several parts."""
    if unit in ("", "-", "1"):
        return ""
    return f"{unit}²" if unit.isalpha() else f"({unit})²"
