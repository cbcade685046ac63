"""Weather: scorecard, errors by lead time, maps, spectra, shares of the loss.

Shape suffixes: S lead times that are shown, I latitudes, J longitudes, M wave numbers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import (
    FixedLocator,
    FormatStrFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)
from numpy.typing import ArrayLike, NDArray

from millrace.figures.style import (
    CATEGORIES,
    DIFFERENCE_MAP,
    FIELD_MAP,
    PAGE_WIDTH,
    PERSISTENCE,
    PREDICTION,
    REFERENCE_LINE,
    TRUTH,
    figure,
)

_CARD_HOURS = (6, 24, 48, 72, 96, 120)
_LOOKS: Mapping[str, dict[str, Any]] = {
    "model": {"color": PREDICTION},
    "persistence": {"color": PERSISTENCE, "linestyle": "--"},
    "climatology": {"color": REFERENCE_LINE, "linestyle": ":"},
}
_LOSSES = {
    "mae": "mae: absolute error with Aurora's weights",
    "mse": "mse: square error in one-step changes",
    "mae_physical": "absolute error with Aurora's weights, not normalised",
}


def scorecard(
    scores: Mapping[str, Any], groups: Mapping[str, Sequence[str]], path: str | Path
) -> None:
    """Draw the skill over the better of persistence and climatology as a table of colours.

    Parameters
    ----------
    scores
        With ``lead_hours`` and ``channels``, each with ``skill`` by lead time.
    groups
        Channels of each variable. Variables of one channel share a panel.
    path
        Where to write.
    """
    leads = list(scores["lead_hours"])
    columns = [(hour, leads.index(hour)) for hour in _CARD_HOURS if hour in leads]
    columns = columns or [(leads[-1], len(leads) - 1)]
    single = [names[0] for names in groups.values() if len(names) == 1]
    panels = {"surface": single} if single else {}
    panels |= {name: list(names) for name, names in groups.items() if len(names) > 1}
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    tallest = max(map(len, panels.values()))
    with figure(path, PAGE_WIDTH, 0.9 + down * (0.45 + 0.2 * tallest)) as fig:
        axes = fig.subplots(down, across, squeeze=False).ravel()
        for one, (title, names) in zip(axes, panels.items(), strict=False):
            skill = [[scores["channels"][name]["skill"][at] for _, at in columns] for name in names]
            drawn = one.imshow(
                np.array(skill, dtype=float), cmap="RdBu", vmin=-1, vmax=1, aspect="auto"
            )
            for (row, column), value in np.ndenumerate(np.array(skill, dtype=float)):
                if np.isfinite(value):
                    one.text(
                        column, row, f"{value:.2f}", ha="center", va="center", fontsize=6.5,
                        color="white" if abs(value) > 0.65 else "black",
                    )  # fmt: skip
            one.set_title(title.capitalize() if title == "surface" else f"{title}, by hPa")
            one.set_xticks(range(len(columns)), [f"{hour:g}" for hour, _ in columns])
            one.set_yticks(range(len(names)), [name.rpartition("_")[2] for name in names])
            one.grid(visible=False)
            one.tick_params(length=0)
        for one in axes[len(panels) :]:
            one.remove()
        fig.supxlabel("Lead time (h)", fontsize=9)
        fig.colorbar(
            drawn, ax=axes[: len(panels)].tolist(), extend="min", shrink=0.8, aspect=30,
            label="Skill over the better of\npersistence and climatology",
        )  # fmt: skip


def weather_by_lead(
    scores: Mapping[str, Any],
    names: Sequence[str],
    unit: str,
    path: str | Path,
    factor: float = 1.0,
) -> None:
    """Draw the RMSE and the anomaly correlation by lead time, against persistence and climatology.

    Parameters
    ----------
    scores
        With ``lead_hours`` and ``channels``, each with ``rmse`` and ``acc`` by forecast.
    names
        Channels, one row each.
    unit
        Of the variable.
    path
        Where to write.
    factor
        To this unit from that of the scores.
    """
    days = np.array(scores["lead_hours"]) / 24
    with figure(path, PAGE_WIDTH, 0.7 + 1.7 * len(names)) as fig:
        rows = fig.subplots(len(names), 2, sharex=True, squeeze=False)
        for (left, right), name in zip(rows, names, strict=True):
            channel = scores["channels"][name]
            for axes, key, scale in ((left, "rmse", factor), (right, "acc", 1.0)):
                for forecast, values in channel[key].items():
                    axes.plot(
                        days, scale * np.array(values, dtype=float), label=forecast.capitalize(),
                        **_LOOKS[forecast],
                    )  # fmt: skip
                axes.set_title(name)
            left.set_ylim(bottom=0)
            left.set_ylabel(f"RMSE ({unit})" if unit else "RMSE")
            right.set_ylim(top=1.02)
            right.set_ylabel("ACC")
        for axes in rows[-1]:
            axes.set_xlabel("Lead time (days)")
        fig.align_ylabels()
        handles, labels = rows[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def weather_maps(
    truth_SIJ: ArrayLike,
    forecast_SIJ: ArrayLike,
    hours: Sequence[float],
    axes: tuple[ArrayLike, ArrayLike],
    variable: tuple[str, str],
    path: str | Path,
    land_IJ: ArrayLike | None = None,
) -> None:
    """Draw truth, forecast and their difference, a row for each lead time.

    Parameters
    ----------
    truth_SIJ, forecast_SIJ
        Fields by lead time.
    hours
        Lead times (h).
    axes
        Latitudes and longitudes (degrees).
    variable
        Name and unit.
    path
        Where to write.
    land_IJ
        Share of land: coasts are drawn at one half.
    """
    truth, forecast = np.asarray(truth_SIJ), np.asarray(forecast_SIJ)
    latitude, longitude = (np.asarray(axis, dtype=float) for axis in axes)
    low, high = np.quantile(truth, (0.002, 0.998))
    most = max(float(np.quantile(np.abs(forecast - truth), 0.995)), 1e-30)
    with figure(path, PAGE_WIDTH, 0.5 + 1.35 * len(hours), layout="compressed") as fig:
        rows = fig.subplots(len(hours), 3, sharex=True, sharey=True, squeeze=False)
        for row, hour, true, made in zip(rows, hours, truth, forecast, strict=True):
            fields = (("Truth", true), ("Forecast", made), ("Forecast − truth", made - true))
            for one, (title, values) in zip(row, fields, strict=True):
                difference = title == "Forecast − truth"
                mesh = one.pcolormesh(
                    longitude, latitude, values, rasterized=True,
                    cmap=DIFFERENCE_MAP if difference else FIELD_MAP,
                    vmin=-most if difference else low, vmax=most if difference else high,
                )  # fmt: skip
                _on_globe(one, f"{title}, {hour:g} h", longitude, latitude, land_IJ)
                if title == "Forecast":
                    field = mesh
        for one in rows[-1]:
            one.set_xlabel("Longitude (°)")
        for one in rows[:, 0]:
            one.set_ylabel("Latitude (°)")
        name, unit = variable
        label = f"{name} ({unit})" if unit else name
        bars: dict[str, Any] = {"location": "bottom", "extend": "both", "aspect": 40, "shrink": 0.9}
        fig.colorbar(
            field, ax=rows[:, :2].ravel().tolist(), label=label, ticks=MaxNLocator(6), **bars
        )
        bars["aspect"] = 20
        ticks = MaxNLocator(3, symmetric=True)
        fig.colorbar(
            mesh, ax=rows[:, 2].tolist(), label=f"Difference ({unit})", ticks=ticks, **bars
        )


def zonal_spectra(
    truth: Mapping[str, NDArray[np.float64]],
    forecast: Mapping[str, NDArray[np.float64]],
    hours: Sequence[float],
    unit: str,
    path: str | Path,
) -> None:
    """Draw the power by zonal wave number of truth and forecasts, and their ratios.

    Parameters
    ----------
    truth, forecast
        Channel -> power [S, M] from wave number 0; two columns, a row for each channel.
    hours
        Lead times (h).
    unit
        Of the variable.
    path
        Where to write.
    """
    with figure(path, PAGE_WIDTH, 0.7 + 1.8 * len(truth)) as fig:
        rows = fig.subplots(len(truth), 2, sharex=True, squeeze=False)
        for (left, right), name in zip(rows, truth, strict=True):
            wave = np.arange(1, truth[name].shape[1])
            left.plot(wave, truth[name].mean(axis=0)[1:], color=TRUTH, label="Truth")
            for hour, colour, true, made in zip(
                hours, CATEGORIES, truth[name], forecast[name], strict=False
            ):
                left.plot(wave, made[1:], color=colour, label=f"Forecast, {hour:g} h")
                right.plot(wave, made[1:] / np.maximum(true[1:], 1e-300), color=colour)
            right.axhline(1, color=TRUTH, linewidth=1)
            left.set(xscale="log", yscale="log", title=name, ylabel=f"Power ({_squared(unit)})")
            right.set(xscale="log", yscale="log", title=name, ylabel="Power over truth")
            right.set_ylim(0.05, 20)
            right.yaxis.set_major_locator(FixedLocator([0.1, 1, 10]))
            # What is below is rounding.
            left.set_ylim(1e-9 * float(truth[name][:, 1:].max()), None)
            for axes in (left, right):
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.xaxis.set_major_formatter(FormatStrFormatter("%d"))
                axes.xaxis.set_minor_formatter(NullFormatter())
            right.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        for axes in rows[-1]:
            axes.set_xlabel("Zonal wave number")
        fig.align_ylabels()
        handles, labels = rows[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def loss_share(shares: Mapping[str, Mapping[str, float]], path: str | Path) -> None:
    """Draw what each variable adds to the loss of the first step.

    Parameters
    ----------
    shares
        Loss (``mae``, ``mse``, ``mae_physical``) -> variable -> share, adding up to 1.
    path
        Where to write.
    """
    variables = list(next(iter(shares.values())))
    place, height = np.arange(len(variables)), 0.8 / len(shares)
    with figure(path, PAGE_WIDTH, 1.0 + 0.34 * len(variables)) as fig:
        axes = fig.subplots()
        for number, (kind, values) in enumerate(shares.items()):
            at = place + (number - (len(shares) - 1) / 2) * height
            axes.barh(
                at, [100 * values[name] for name in variables], height, label=_LOSSES[kind],
                color=(PREDICTION, CATEGORIES[2], PERSISTENCE)[number],
            )  # fmt: skip
        axes.set_yticks(place, variables)
        axes.set_ylim(len(variables) - 0.5, -0.5)
        axes.set_xlabel("Share of the loss of a 6 h forecast (%)")
        axes.grid(axis="y", visible=False)
        handles, labels = axes.get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper center", ncols=1)


def _squared(unit: str) -> str:
    if unit == "m²/s²":
        return "m⁴/s⁴"
    return f"({unit})²" if "/" in unit else f"{unit}²"


def _on_globe(
    axes: Axes,
    title: str,
    longitude: NDArray[np.float64],
    latitude: NDArray[np.float64],
    land_IJ: ArrayLike | None,
) -> None:
    axes.set_title(title)
    axes.set(xticks=[0, 90, 180, 270], yticks=[-60, 0, 60], aspect="equal")
    axes.grid(visible=False)
    if land_IJ is not None:
        axes.contour(longitude, latitude, land_IJ, levels=[0.5], colors="black", linewidths=0.4)
