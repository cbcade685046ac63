"""Scores of weather forecasts by channel and lead time, against persistence and climatology.

They are those of WeatherBench 2 (Rasp et al. 2024, arXiv:2308.15560): cells count by their area.

Shape suffixes: S starts, L lead times, C channels, I latitudes, J longitudes, K cells,
R regions, M wave numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

from millrace.systems.weather.grids import goes_round

Floats = NDArray[np.float64]

FORECASTS = ("model", "persistence", "climatology")
METRICS = ("mse", "bias", "acc", "mae")
"""Of one start, by the names of WeatherBench 2; they are means over starts."""


def latitude_weights(latitude_I: Floats) -> Floats:
    """Area of the rows of a grid over its mean, [I]; they add up to I.

    A row reaches halfway to its neighbours, the first and last one as far outwards as inwards, at most to
    the pole.
    """
    latitude = np.asarray(latitude_I, dtype=np.float64)
    between = (latitude[1:] + latitude[:-1]) / 2
    first, last = 2 * latitude[0] - between[0], 2 * latitude[-1] - between[-1]
    bounds = np.clip(np.concatenate([[first], between, [last]]), -90, 90)
    area = np.abs(np.diff(np.sin(np.deg2rad(bounds))))
    return area / area.mean()


def weights_to_the_poles(latitude_I: Floats) -> Floats:
    """The same as WeatherBench 2 has it: the first and the last row reach to the poles."""
    latitude = np.asarray(latitude_I, dtype=np.float64)
    pole = np.sign(latitude[-1] - latitude[0]) * 90.0
    bounds = np.concatenate([[-pole], (latitude[1:] + latitude[:-1]) / 2, [pole]])
    area = np.abs(np.diff(np.sin(np.deg2rad(bounds))))
    return area / area.mean()


def area_mean(field_IJ: Floats, weight_I: Floats) -> Floats:
    """Mean over the sphere of the last two axes."""
    return (field_IJ * weight_I[:, None]).mean(axis=(-2, -1)) / weight_I.mean()


def anomaly_correlation(
    forecast_IJ: Floats, truth_IJ: Floats, climatology_IJ: Floats, weight_I: Floats
) -> Floats:
    """Correlation of the departures from climatology over the sphere, not centred; NaN without any."""
    one, other = forecast_IJ - climatology_IJ, truth_IJ - climatology_IJ
    norm = np.sqrt(area_mean(one**2, weight_I) * area_mean(other**2, weight_I))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(norm > 0, area_mean(one * other, weight_I) / norm, np.nan)


@dataclass
class WeatherScores:
    """Scores of forecasts that are added one start at a time."""

    channels: Sequence[str]
    lead_hours: Floats
    latitude_I: Floats
    climatology_CIJ: Floats
    """Mean state of the training period, in physical units."""
    regions: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Cells of regions that are scored by themselves, [I, J] each."""
    weight_I: Floats | None = None
    """Of the rows in means; None: `latitude_weights`."""
    _sums: dict[str, Floats] = field(default_factory=dict)
    """By forecast: `METRICS` of the globe and of each region, [4, L, C, 1 + R]."""
    _squares: list[Floats] = field(default_factory=list)
    """Mean square of the model's error of each start, [L, C]."""

    def add(
        self,
        truth_LCIJ: Floats,
        forecast_LCIJ: Floats,
        initial_CIJ: Floats,
        climatology_LCIJ: Floats | None = None,
    ) -> None:
        """Add the forecast of one start, in physical units; the last given state is that of persistence.

        The climatology of each lead time is by default the mean state.
        """
        given = self.weight_I
        weight = latitude_weights(self.latitude_I) if given is None else given
        usual = (
            [self.climatology_CIJ] * len(truth_LCIJ)
            if climatology_LCIJ is None
            else [*climatology_LCIJ]
        )
        made = ([*forecast_LCIJ], [initial_CIJ] * len(truth_LCIJ), usual)
        for name, of_leads in zip(FORECASTS, made, strict=True):
            # One lead time after the other: those of a fine grid are many gigabytes.
            fields = zip(of_leads, truth_LCIJ, usual, strict=True)
            of_start = np.array([self._of(*one, weight) for one in fields]).swapaxes(0, 1)
            self._sums[name] = self._sums.get(name, 0.0) + of_start
            if name == "model":
                self._squares.append(of_start[0, ..., 0])

    def _of(
        self, forecast_CIJ: Floats, truth_CIJ: Floats, usual_CIJ: Floats, weight_I: Floats
    ) -> list[Floats]:
        """`METRICS` of one lead time, [C, 1 + R] each."""
        error = forecast_CIJ - truth_CIJ
        one, other = forecast_CIJ - usual_CIJ, truth_CIJ - usual_CIJ
        correlation = anomaly_correlation(forecast_CIJ, truth_CIJ, usual_CIJ, weight_I)
        globe = [
            area_mean(error**2, weight_I),
            area_mean(error, weight_I),
            correlation,
            area_mean(np.abs(error), weight_I),
        ]
        weight_RK = self._weights(weight_I)

        def means(values_CIJ: Floats) -> Floats:
            return values_CIJ.reshape(len(values_CIJ), -1) @ weight_RK.T

        norm = np.sqrt(means(one**2) * means(other**2))
        with np.errstate(invalid="ignore", divide="ignore"):
            correlation_CR = np.where(norm > 0, means(one * other) / norm, np.nan)
        regions = [means(error**2), means(error), correlation_CR, means(np.abs(error))]
        return [np.column_stack(both) for both in zip(globe, regions, strict=True)]

    def _weights(self, weight_I: Floats) -> Floats:
        """Share of each cell in the area of each region, [R, I * J]."""
        cells = self.climatology_CIJ[0].size
        weight_RK = np.empty((len(self.regions), cells))
        for row, of_region in enumerate(self.regions.values()):
            area = (of_region * weight_I[:, None]).ravel()
            weight_RK[row] = area / area.sum()
        return weight_RK

    def by_region(self) -> dict[str, dict[str, Floats]]:
        """Means over starts by forecast and metric, [L, C, 1 + R]: of the globe, then of each region.

        ``rmse`` is the root of the mean of ``mse``; ``acc`` of climatology is not defined.
        """
        found = {}
        for name, total in self._sums.items():
            metrics = dict(zip(METRICS, total / len(self._squares), strict=True))
            found[name] = {"rmse": np.sqrt(metrics["mse"]), **metrics}
        return found

    def result(self) -> dict[str, Any]:
        """Scores by channel: lists by lead time for the model, persistence and climatology.

        ``rmse`` is the root of the mean over starts of the mean squares, ``acc`` the mean of the anomaly
        correlations, ``skill`` 1 - rmse / rmse of the better of the two baselines. ``regions`` has the same
        of each region, to six digits, as they are many.
        """
        means, starts = self.by_region(), len(self._squares)
        names = enumerate(self.regions, start=1)
        return {
            "lead_hours": _plain(self.lead_hours),
            "starts": starts,
            "channels": self._plainly(means, 0, _plain),
            "regions": {name: self._plainly(means, at, _short) for at, name in names},
        }

    def by_start(self, lead_hours: Sequence[float]) -> dict[str, dict[str, Floats]]:
        """RMSE of each start by channel and lead time, `rmse_h24` and so on, of those that are forecast."""
        at = {f"rmse_h{h:g}": i for i, h in enumerate(self.lead_hours.tolist()) if h in lead_hours}
        at = at or {f"rmse_h{self.lead_hours[-1]:g}": -1}
        rmse_SLC = np.sqrt(np.array(self._squares))
        return {
            channel: {key: rmse_SLC[:, place, c] for key, place in at.items()}
            for c, channel in enumerate(self.channels)
        }

    def _plainly(
        self,
        means: Mapping[str, Mapping[str, Floats]],
        at: int,
        plain: Callable[[Any], list[float | None]],
    ) -> dict[str, Any]:
        of = {
            name: {key: values[..., at] for key, values in one.items()}
            for name, one in means.items()
        }
        best = np.minimum(of["persistence"]["rmse"], of["climatology"]["rmse"])
        return {
            channel: {
                "rmse": {name: plain(of[name]["rmse"][:, index]) for name in FORECASTS},
                "acc": {name: plain(of[name]["acc"][:, index]) for name in FORECASTS[:2]},
                "bias": plain(of["model"]["bias"][:, index]),
                "skill": plain(1 - of["model"]["rmse"][:, index] / best[:, index]),
            }
            for index, channel in enumerate(self.channels)
        }


def zonal_spectrum(
    field_IJ: Floats, latitude_I: Floats, longitude_J: Floats, within: float = 60.0
) -> Floats:
    """Mean power at each of the `wave_numbers`, [..., M], over the latitudes within a limit.

    The powers add up to the mean square of the field (Parseval), weighted with the cosine of latitude.
    Rows nearer to the poles are left out, as their circles are short, unless there are no others. Fields of
    an area end at its borders, where waves of a Fourier transform would jump: theirs are those of a cosine
    transform (Denis et al. 2002, Mon. Weather Rev. 130).
    """
    rows = np.abs(latitude_I) <= within
    rows = rows if rows.any() else ~rows
    columns = field_IJ.shape[-1]
    if goes_round(longitude_J):
        power = np.abs(np.fft.rfft(field_IJ[..., rows, :], axis=-1) / columns) ** 2
        twice = np.full(power.shape[-1], 2.0)
        twice[[0, -1] if columns % 2 == 0 else 0] = 1.0
        power = power * twice
    else:
        power = dct(field_IJ[..., rows, :], norm="ortho", axis=-1) ** 2 / columns
    weight = np.cos(np.deg2rad(latitude_I[rows]))
    return (power * weight[:, None]).sum(axis=-2) / weight.sum()


def wave_numbers(longitude_J: Floats) -> Floats:
    """Waves around the globe that the powers of `zonal_spectrum` are of, [M]; in an area also fractions."""
    columns = len(longitude_J)
    if goes_round(longitude_J):
        return np.arange(columns // 2 + 1.0)
    width = columns * (longitude_J[-1] - longitude_J[0]) / (columns - 1)
    return np.arange(columns) * 180.0 / width


def _plain(values: Any) -> list[float | None]:
    """For JSON, which knows no NaN."""
    return [float(v) if np.isfinite(v) else None for v in np.asarray(values)]


def _short(values: Any) -> list[float | None]:
    return [None if v is None else float(f"{v:.6g}") for v in _plain(values)]
