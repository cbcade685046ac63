"""Errors of forecasts against the ground truth in the same raw files, beside those of baselines."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scoringrules
import xarray as xr

from millrace.evaluation.application import Piece
from millrace.evaluation.forecast_file import axis_of

LEADS = ("lead", "lead_time")
"""Axes of steps ahead."""


class ForecastScores:
    """Sums of errors over all pieces, of each variable of the ground truth."""

    def __init__(self) -> None:
        self._square: dict[str, dict[str, list[xr.DataArray]]] = {}
        self._absolute: dict[str, dict[str, list[xr.DataArray]]] = {}
        self._crps: dict[str, list[xr.DataArray]] = {}
        self._variance: dict[str, list[xr.DataArray]] = {}
        self._members = 0
        self._unit: dict[str, str] = {}

    def add(self, piece: Piece) -> None:
        """Add a piece; one without ground truth adds nothing."""
        if piece.truth is None:
            return
        axis = axis_of(piece.forecast)
        for name, truth in piece.truth.data_vars.items():
            if truth.dtype.kind != "f" or axis not in truth.dims:
                continue  # of the mesh
            forecast = piece.forecast[name]
            self._unit[str(name)] = str(truth.attrs.get("units", "1"))
            members = [one for one in forecast.dims if one not in truth.dims]
            rivals = {key: data[name] for key, data in piece.baselines.items()}
            if members and forecast.sizes[members[0]] > 1:
                self._add_crps(str(name), forecast, truth, str(members[0]), axis, piece.weight)
                self._members = forecast.sizes[members[0]]
                variance = forecast.astype(np.float64).var(str(members[0]), ddof=1)
                self._variance.setdefault(str(name), []).append(
                    _reduced(variance.where(truth.notnull()), axis, piece.weight)
                )
            means = {"model": forecast.mean(members) if members else forecast, **rivals}
            for key, values in means.items():
                error = values.astype(np.float64) - truth.astype(np.float64)
                self._add(self._square, str(name), key, error**2, axis, piece.weight)
                self._add(self._absolute, str(name), key, abs(error), axis, piece.weight)

    def result(self) -> dict[str, Any]:
        """By variable ``unit``, ``rmse``, ``mae``, ``rmse_by_lead``, ``baselines``, ``skill`` and so on.

        With several members RMSE and MAE are those of their mean, and the CRPS is the fair one [1]_;
        ``spread`` is the root of the mean variance of M members, and ``spread_skill`` sqrt(1 + 1 / M) times
        it over the RMSE: 1 for members that are drawn like the truth. ``spread_factor`` is by lead what the
        deviations of members from their mean are to be multiplied with for that, 1 if there are none, or if
        it is not known. The skill is 1 - RMSE / RMSE of the
        best baseline. A number that is not defined is None.

        .. [1] Ferro (2014), Fair scores for ensemble forecasts, QJRMS 140, doi:10.1002/qj.2270.
        """
        found = {}
        for name, square in self._square.items():
            rmse = {key: _root(_mean(parts)) for key, parts in square.items()}
            best = min((v for k, v in rmse.items() if k != "model" and v is not None), default=None)
            ratio = rmse["model"] / best if best and rmse["model"] is not None else None
            absolute = {key: _mean(parts) for key, parts in self._absolute[name].items()}
            record: dict[str, Any] = {
                "unit": self._unit[name],
                "rmse": rmse["model"],
                "mae": absolute["model"],
                "skill": None if ratio is None else 1 - ratio,
                "baselines": {
                    key: {"rmse": value, "mae": absolute[key]}
                    for key, value in rmse.items()
                    if key != "model"
                },
            }
            for axis in LEADS:
                if axis in square["model"][0].dims:
                    record["rmse_by_lead"] = [_root(one) for one in _by(square["model"], axis)]
            if name in self._crps:
                record["crps"] = _mean(self._crps[name])
                record["spread"] = spread = _root(_mean(self._variance[name]))
                inflated = None if spread is None else np.sqrt(1 + 1 / self._members) * spread
                error = record["rmse"]
                record["spread_skill"] = (
                    None if inflated is None or not error else float(inflated / error)
                )
                by_lead = record.get("rmse_by_lead", [error])
                record["spread_factor"] = self._factors(self._variance[name], by_lead)
            found[name] = record
        return found

    def _factors(self, variance: list[xr.DataArray], rmse: list[float | None]) -> list[float]:
        lead = next((axis for axis in variance[0].dims if axis in LEADS), None)
        spread = [_root(one) for one in (_by(variance, str(lead)) if lead else [_mean(variance)])]
        pairs = zip(rmse, spread, strict=True)
        whole = np.sqrt(1 + 1 / self._members)
        return [float(error / (whole * own)) if error and own else 1.0 for error, own in pairs]

    def over_time(self) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]], dict[str, str], str]:
        """First axis of the pieces, RMSE along it by variable and forecast, units by variable, and a label.

        The label is that of the first axis.
        """
        label = "number of the forecast"
        series: dict[str, dict[str, np.ndarray]] = {}
        axis_values: np.ndarray = np.empty(0)
        for name, square in self._square.items():
            for key, parts in square.items():
                joined = xr.concat([one.mean(one.dims[1:]) for one in parts], parts[0].dims[0])
                series.setdefault(name, {})[key] = np.sqrt(joined.values)
                axis_values = np.arange(joined.size)
                if joined.dims[0] in joined.coords:
                    coordinate = joined[joined.dims[0]]
                    about, axis_values = coordinate.attrs, coordinate.values
                    label = f"{about.get('long_name', coordinate.name)} ({about.get('units', '1')})"
        return axis_values, series, self._unit, label.replace(" (1)", "")

    @staticmethod
    def _add(
        sums: dict[str, dict[str, list[xr.DataArray]]],
        name: str,
        key: str,
        values: xr.DataArray,
        axis: str,
        weight: xr.DataArray | None,
    ) -> None:
        sums.setdefault(name, {}).setdefault(key, []).append(_reduced(values, axis, weight))

    def _add_crps(
        self,
        name: str,
        forecast: xr.DataArray,
        truth: xr.DataArray,
        members: str,
        axis: str,
        weight: xr.DataArray | None,
    ) -> None:
        ensemble = forecast.transpose(*truth.dims, members).values.astype(np.float64)
        values = scoringrules.crps_ensemble(
            truth.values.astype(np.float64), ensemble, estimator="fair", backend="numpy"
        )
        self._crps.setdefault(name, []).append(
            _reduced(truth.copy(data=np.asarray(values)), axis, weight)
        )


def _reduced(values: xr.DataArray, axis: str, weight: xr.DataArray | None) -> xr.DataArray:
    """Mean over all axes but the first one and that of lead times; what is not known does not count."""
    over = [one for one in values.dims if one != axis and one not in LEADS]
    kept = values.weighted(weight).mean(over) if weight is not None else values.mean(over)
    return kept.transpose(axis, ...)


def _mean(parts: list[xr.DataArray]) -> float | None:
    values = np.concatenate([np.asarray(one.values, dtype=np.float64).ravel() for one in parts])
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _by(parts: list[xr.DataArray], axis: str) -> list[float | None]:
    return [_mean([one.isel({axis: n}) for one in parts]) for n in range(parts[0].sizes[axis])]


def _root(value: float | None) -> float | None:
    return None if value is None else float(np.sqrt(value))


def sentences(scores: Mapping[str, Any]) -> list[str]:
    """What the command says of the errors, a line for each variable."""
    found = []
    for name, one in scores.items():
        unit = "" if one["unit"] == "1" else f" {one['unit']}"
        parts = [f"RMSE {_shown(one['rmse'])}{unit}"]
        parts += [
            f"{key.replace('_', ' ')} {_shown(rival['rmse'])}{unit}"
            for key, rival in one["baselines"].items()
        ]
        if "crps" in one:
            before = one.get("uncalibrated")
            for key, of, text in (("crps", unit, "CRPS"), ("spread_skill", "", "spread / error")):
                told = f" (before calibration {_shown(before[key])}{of})" if before else ""
                parts.append(f"{text} {_shown(one[key])}{of}{told}")
        if one["baselines"]:
            parts.append("skill undefined" if one["skill"] is None else f"skill {one['skill']:.3f}")
        found.append(f"{name}: {', '.join(parts)}")
    return found


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"
