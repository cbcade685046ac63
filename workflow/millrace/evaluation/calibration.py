"""Ensembles that differ as much as they err: what validation data of the training say of their members.

Deviations of members from their mean are multiplied, for each variable and step ahead, with the factor at
which the spread of M members is the error of their mean, sqrt((M + 1) / M) spread = RMSE, on the validation
period (Johnson & Bowler 2009, Mon. Weather Rev. 137, pp. 1717-1720). The mean stays, and so does what is
linear in the members, such as the means of blocks of a downscaler. Where a model says probabilities
instead, as that of traffic does, its temperature is what validation data ask for.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from millrace.config import Settings
from millrace.errors import ConfigError
from millrace.evaluation.forecast_scores import LEADS
from millrace.evaluation.loaded import LoadedModel
from millrace.sealed import read_sealed

PERIOD = "validation"
_TOLD = (
    "deviations of members from their mean times the factors of their variable and step ahead, with "
    "which spread is error on the validation period of the training"
)


@dataclass(frozen=True)
class Calibration:
    """What is changed in forecasts, fitted on validation data of the training."""

    path: Path
    factors: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By variable and step ahead; one number for forecasts without such steps."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of forecasts that are replaced."""
    about: Mapping[str, str] = field(default_factory=dict)
    """What was done, for attributes of files."""

    def __call__(self, forecast: xr.Dataset) -> xr.Dataset:
        """Forecasts whose members are spread by the factors; raises `ConfigError` for other variables."""
        for name, factors in self.factors.items():
            if name not in forecast or "member" not in forecast[name].dims:
                raise ConfigError(f"--calibration {self.path}: there are no members of {name!r}")
            one = forecast[name]
            lead = next((axis for axis in one.dims if axis in LEADS), None)
            steps = 1 if lead is None else one.sizes[lead]
            if steps > len(factors):
                raise ConfigError(
                    f"--calibration {self.path}: {len(factors)} factors of {name!r}, one for each step "
                    f"ahead; the forecasts have {steps} steps"
                )
            factor = xr.DataArray([*factors[:steps]], dims=lead or "one")
            mean = one.mean("member", dtype=np.float64)
            spread = mean + (factor if lead else float(factor[0])) * (one - mean)
            values = spread.transpose(*one.dims).values.astype(one.dtype)
            forecast = forecast.assign({name: one.copy(data=values)})
        return forecast


def read_calibration(path: Path, models: Sequence[LoadedModel], options: Settings) -> Calibration:
    """Calibration of forecasts of these models.

    Parameters
    ----------
    path : Path
        Scores on validation data: ``--metrics`` of `millrace predict` with ``--times validation``, or
        ``metrics.json`` of the workflow's evaluation, of the ensemble over seeds or, of traffic, of the
        run. What it says of other data is not used.
    models : sequence of LoadedModel
    options : Settings
        Of the forecasts.

    Raises
    ------
    DataError
        The file is missing or damaged.
    ConfigError
        It is of other models, forecasts or data, or holds nothing to calibrate with.
    """
    record = read_sealed(
        path,
        "scores of forecasts",
        "make it by predict --times validation --metrics, see docs/howto/predict.md",
        "make it again",
    )
    schema, where = str(record.get("schema")), f"--calibration {path}"
    readers = {
        "millrace.prediction_metrics/2": _of_forecasts,
        "millrace.ensemble_metrics/1": _of_seeds,
        "millrace.metrics/1": _of_run,
    }
    if schema not in readers:
        raise ConfigError(
            f"{where}: holds no scores of forecasts; expected what predict --times {PERIOD} --metrics "
            "writes"
        )
    factors, changed, scored = readers[schema](record, where, models, options)
    given = [(one.about["run_hash"], one.about["epoch"]) for one in models]
    if sorted(scored) != sorted(given):
        of_seeds = f" of seeds {', '.join(map(str, record['seeds']))}" if "seeds" in record else ""
        of = f" of {record['experiment']}" if "experiment" in record else ""
        epochs = ", ".join(sorted({epoch for _, epoch in scored}))
        raise ConfigError(
            f"{where}: is{of_seeds}{of} at epoch {epochs}; give exactly these checkpoints, or make one of "
            "yours"
        )
    if changed:
        told = "options that fit the validation scenarios of the training best"
        about = {"calibration": told, "calibration_options": json.dumps(changed)}
    else:
        about = {"calibration": _TOLD, "calibration_factors": json.dumps(factors)}
    return Calibration(path, factors, changed, about)


_Read = tuple[dict[str, list[float]], dict[str, Any], list[tuple[str, str]]]
"""Factors by variable, options, and run hash and epoch of each model."""


def _of_forecasts(
    record: Mapping[str, Any], where: str, models: Sequence[LoadedModel], options: Settings
) -> _Read:
    application = models[0].application
    if not application.spreads:
        raise ConfigError(
            f"{where}: members of {models[0].recipe['kind']} cannot be spread about their mean, where they "
            "would not be possible any more; give metrics.json of the evaluation of the run, which has the "
            "temperature that fits its validation data"
        )
    if record["options"].get("times") != PERIOD:
        raise ConfigError(
            f"{where}: is of {record['options'].get('times') or 'all times'}, which may hold training or "
            f"test data; make it by predict --times {PERIOD}"
        )
    if "calibration" in record:
        raise ConfigError(
            f"{where}: is of members that were calibrated already; make it without --calibration"
        )
    # Members of one model are alike: how far all are apart depends on how many it has.
    same = (*application.of_spread, *(["members"] if len(models) > 1 else []))
    for name in same:
        if not hasattr(options, name):
            continue
        asked, was = getattr(options, name), record["options"].get(name)
        if asked != was:
            raise ConfigError(
                f"{where}: is of members with {name} = {was}, these have {asked}; the factors hold for the "
                "same alone"
            )
    scores: Mapping[str, Any] = record["variables"]
    factors = {name: one["spread_factor"] for name, one in scores.items() if "spread_factor" in one}
    if not factors:
        raise ConfigError(
            f"{where}: is of forecasts without members, or without their ground truth"
        )
    hashes, epochs = (record[key].split(", ") for key in ("run_hash", "epoch"))
    return factors, {}, [*zip(hashes, epochs, strict=True)]


def _of_seeds(
    record: Mapping[str, Any], where: str, models: Sequence[LoadedModel], options: Settings
) -> _Read:
    del models, options
    factors = {
        name: scores["calibrated"]["factor"]
        for name, scores in record.get("test", {}).items()
        if isinstance(scores, Mapping) and "calibrated" in scores
    }
    if not factors:
        raise ConfigError(
            f"{where}: holds no factors of calibrated members; expected the scores of an ensemble that was "
            "evaluated by this version or a later one: evaluate it again"
        )
    return factors, {}, [*zip(record["identities"], map(str, record["epochs"]), strict=True)]


def _of_run(
    record: Mapping[str, Any], where: str, models: Sequence[LoadedModel], options: Settings
) -> _Read:
    del options
    found = models[0].application.calibrated_options(record[PERIOD])
    if not found:
        raise ConfigError(
            f"{where}: holds nothing to calibrate members with; make one by predict --times {PERIOD} "
            "--metrics, or, of traffic, evaluate the run with this version or a later one"
        )
    return {}, found, [(record["identity"], str(record["epoch"]))] * len(models)
