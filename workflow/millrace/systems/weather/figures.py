"""Weather: scorecard, errors by lead time, maps, spectra, shares of the loss.

Shape suffixes: S lead times that are shown, I latitudes, J longitudes, M wave numbers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
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
from millrace.systems.weather.grids import goes_round

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

    ``scores`` have ``lead_hours`` and ``channels``, each with ``skill`` by lead time; ``groups`` are the
    channels of each variable. Variables of one channel share a panel.
    """
    leads = list(scores["lead_hours"])
    columns = [(hour, leads.index(hour)) for hour in _CARD_HOURS if hour in leads]
    columns = columns or [(leads[-1], len(leads) - 1)]
    single = {names[0]: name for name, names in groups.items() if len(names) == 1}
    title = "Surface" if all(channel == name for channel, name in single.items()) else "One level"
    panels = {title: list(single)} if single else {}
    panels |= {name: list(names) for name, names in groups.items() if len(names) > 1}
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    tallest = max(map(len, panels.values()))
    # Not less than the label of the colour bar takes.
    with figure(path, PAGE_WIDTH, max(2.3, 0.9 + down * (0.45 + 0.2 * tallest))) as fig:
        axes = fig.subplots(down, across, squeeze=False).ravel()
        for one, (title, names) in zip(axes, panels.items(), strict=False):
            of_names = [[scores["channels"][n]["skill"][at] for _, at in columns] for n in names]
            skill = np.array(of_names, dtype=float)
            drawn = one.imshow(skill, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
            for (row, column), value in np.ndenumerate(skill):
                if np.isfinite(value):
                    one.text(
                        column, row, f"{value:.2f}", ha="center", va="center", fontsize=6.5,
                        color="white" if abs(value) > 0.65 else "black",
                    )  # fmt: skip
            one.set_title(title)
            if title in groups and len(groups[title]) > 1:
                one.set_ylabel("Level (hPa)")
                labels = [name.rpartition("_")[2] for name in names]
            else:
                labels = names
            one.set_xticks(range(len(columns)), [f"{hour:g}" for hour, _ in columns])
            one.set_yticks(range(len(names)), labels)
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

    ``scores`` have ``lead_hours`` and ``channels``, each with ``rmse`` and ``acc`` by forecast; each of the
    channels ``names`` has a row. ``factor`` leads to this unit from that of the scores.
    """
    hours = np.array(scores["lead_hours"])
    with figure(path, PAGE_WIDTH, 0.7 + 1.7 * len(names)) as fig:
        rows = fig.subplots(len(names), 2, sharex=True, squeeze=False)
        for (left, right), name in zip(rows, names, strict=True):
            channel = scores["channels"][name]
            for axes, key, scale in ((left, "rmse", factor), (right, "acc", 1.0)):
                for forecast, values in channel[key].items():
                    line = scale * np.array(values, dtype=float)
                    axes.plot(hours, line, label=forecast.capitalize(), **_LOOKS[forecast])
                axes.set_title(name)
            left.set_ylim(bottom=0)
            left.set_ylabel(f"RMSE ({unit})" if unit else "RMSE")
            right.set_ylim(top=1.02)
            right.set_ylabel("ACC")
            left.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 1.2, 2.4, 3, 6, 10]))
        _finish(rows, "Lead time (h)")


def weather_maps(
    truth_SIJ: ArrayLike,
    forecast_SIJ: ArrayLike,
    hours: Sequence[float],
    axes: tuple[ArrayLike, ArrayLike],
    variable: tuple[str, str],
    path: str | Path,
    land_IJ: ArrayLike | None = None,
    issued: float | None = None,
) -> None:
    """Draw ground truth, forecast and their difference, a row for each lead time (h).

    ``axes`` are latitudes and longitudes (degrees), ``variable`` is its name and unit. ``land_IJ`` is the
    share of land: coasts are drawn at one half. ``issued`` is the time of the last given state, days since
    1970.
    """
    truth, forecast = np.asarray(truth_SIJ), np.asarray(forecast_SIJ)
    latitude, longitude = (np.asarray(axis, dtype=float) for axis in axes)
    low, high = np.quantile(truth, (0.002, 0.998))
    most = max(float(np.quantile(np.abs(forecast - truth), 0.995)), 1e-30)
    round_ = goes_round(longitude)
    # Three maps side by side, of a globe twice as wide as high.
    shape = np.ptp(latitude) / np.ptp(longitude)
    height = 1.35 if round_ else float(np.clip(2.7 * shape, 0.9, 4.0))
    with figure(path, PAGE_WIDTH, 0.5 + height * len(hours), layout="compressed") as fig:
        if issued is not None:
            when = np.datetime64("1970-01-01") + np.timedelta64(round(issued * 1440), "m")
            fig.suptitle(f"Forecast issued {str(when).replace('T', ' ')} UTC", fontsize=9)
        rows = fig.subplots(len(hours), 3, sharex=True, sharey=True, squeeze=False)
        for row, hour, true, made in zip(rows, hours, truth, forecast, strict=True):
            fields = (("Ground truth", true), ("Forecast", made), ("Difference", made - true))
            for one, (title, values) in zip(row, fields, strict=True):
                is_field = title != "Difference"
                cmap, least, top = (
                    (FIELD_MAP, low, high) if is_field else (DIFFERENCE_MAP, -most, most)
                )
                mesh = one.pcolormesh(
                    longitude, latitude, values, cmap=cmap, vmin=least, vmax=top, rasterized=True
                )
                one.set_title(f"{title}, {hour:g} h")
                one.set_aspect("equal")
                if round_:
                    one.set(xticks=[0, 90, 180, 270], yticks=[-60, 0, 60])
                one.grid(visible=False)
                if land_IJ is not None:
                    coast: dict[str, Any] = {"levels": [0.5], "colors": "black", "linewidths": 0.4}
                    one.contour(longitude, latitude, land_IJ, **coast)
                if title == "Forecast":
                    field = mesh
        for one in rows[-1]:
            one.set_xlabel("Longitude (°)")
        for one in rows[:, 0]:
            one.set_ylabel("Latitude (°)")
        name, unit = variable
        label = f"{name} ({unit})" if unit else name
        bars: dict[str, Any] = {"location": "bottom", "extend": "both", "shrink": 0.9}
        beside, ticks = rows[:, :2].ravel().tolist(), MaxNLocator(6)
        fig.colorbar(field, ax=beside, label=label, ticks=ticks, aspect=40, **bars)
        beside, ticks = rows[:, 2].tolist(), MaxNLocator(3, symmetric=True)
        label = f"Difference ({unit})" if unit else "Difference"
        fig.colorbar(mesh, ax=beside, label=label, ticks=ticks, aspect=20, **bars)


def zonal_spectra(
    truth: Mapping[str, NDArray[np.float64]],
    forecast: Mapping[str, NDArray[np.float64]],
    hours: Sequence[float],
    unit: str,
    path: str | Path,
    waves_M: ArrayLike | None = None,
) -> None:
    """Draw the power by zonal wave number of ground truth and forecasts, and their ratios.

    Both are channel -> power [S, M], by lead time (h); each channel has a row. ``waves_M`` are the wave
    numbers from 0 on, by default the whole ones.
    """
    power = f"Power ({_squared(unit)})" if unit else "Power"
    with figure(path, PAGE_WIDTH, 0.7 + 1.8 * len(truth)) as fig:
        rows = fig.subplots(len(truth), 2, sharex=True, squeeze=False)
        for (left, right), name in zip(rows, truth, strict=True):
            every = np.arange(truth[name].shape[1]) if waves_M is None else np.asarray(waves_M)
            wave = every[1:]
            left.plot(wave, truth[name].mean(axis=0)[1:], color=TRUTH, label="Ground truth")
            for hour, colour, true, made in zip(
                hours, CATEGORIES, truth[name], forecast[name], strict=False
            ):
                left.plot(wave, made[1:], color=colour, label=f"Forecast, {hour:g} h")
                right.plot(wave, made[1:] / np.maximum(true[1:], 1e-300), color=colour)
            right.axhline(1, color=TRUTH, linewidth=1)
            left.set(xscale="log", yscale="log", title=name, ylabel=power)
            right.set(xscale="log", yscale="log", title=name, ylabel="Power over ground truth")
            right.set_ylim(0.05, 20)
            right.yaxis.set_major_locator(FixedLocator([0.1, 1, 10]))
            # What is below is rounding.
            left.set_ylim(1e-9 * float(truth[name][:, 1:].max()), None)
            for axes in (left, right):
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.xaxis.set_major_formatter(FormatStrFormatter("%d"))
                axes.xaxis.set_minor_formatter(NullFormatter())
            right.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        _finish(rows, "Zonal wave number")


def loss_share(shares: Mapping[str, Mapping[str, float]], hours: float, path: str | Path) -> None:
    """Draw what each variable adds to the loss of the first step, of ``hours``.

    ``shares``: loss (``mae``, ``mse``, ``mae_physical``) -> variable -> share, adding up to 1.
    """
    variables = list(next(iter(shares.values())))
    place, height = np.arange(len(variables)), 0.8 / len(shares)
    with figure(path, PAGE_WIDTH, 1.0 + 0.34 * len(variables)) as fig:
        axes = fig.subplots()
        colours = (PREDICTION, CATEGORIES[2], PERSISTENCE)
        for number, (kind, values) in enumerate(shares.items()):
            at = place + (number - (len(shares) - 1) / 2) * height
            share = [100 * values[name] for name in variables]
            axes.barh(at, share, height, label=_LOSSES[kind], color=colours[number])
        axes.set_yticks(place, variables)
        axes.set_ylim(len(variables) - 0.5, -0.5)
        axes.set_xlabel(f"Share of the loss of a forecast of {hours:g} h (%)")
        axes.grid(axis="y", visible=False)
        fig.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=1)


def _squared(unit: str) -> str:
    if unit == "m²/s²":
        return "m⁴/s⁴"
    return f"({unit})²" if "/" in unit else f"{unit}²"


def _finish(rows: NDArray[Any], label: str) -> None:
    """Label the horizontal axes of the last row, and put one legend above all panels."""
    for axes in rows[-1]:
        axes.set_xlabel(label)
    fig = rows[0, 0].figure
    fig.align_ylabels()
    handles, labels = rows[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=len(labels))
