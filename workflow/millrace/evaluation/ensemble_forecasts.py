"""Forecasts of several models, or from several initial states, as members of one ensemble."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xarray as xr

from millrace.errors import ConfigError
from millrace.evaluation.application import Piece
from millrace.evaluation.forecast_file import axis_of
from millrace.evaluation.forecast_scores import LEADS
from millrace.evaluation.loaded import LoadedModel
from millrace.sealed import read_sealed

MEMBER = {"standard_name": "realization", "long_name": "member", "units": "1"}


def check_alike(models: Sequence[LoadedModel]) -> None:
    """Raise `ConfigError` unless models take the same samples, so that they forecast together."""
    first = models[0].recipe
    for model in models[1:]:
        same = all(model.recipe[key] == first[key] for key in ("kind", "preparation"))
        if not same or model.recipe["definition"]["data"] != first["definition"]["data"]:
            raise ConfigError(
                f"{model.about['checkpoint']} takes other samples than {models[0].about['checkpoint']}; an "
                "ensemble is of models on the same `data`, of one dataset"
            )


def together(pieces: Sequence[Iterator[Piece]]) -> Iterator[Piece]:
    """Pieces of several models as those of one ensemble."""
    for parts in zip(*pieces, strict=True):
        yield replace(parts[0], forecast=joined_members([part.forecast for part in parts]))


def joined_members(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Forecasts with all their members along ``member``, the axis after the first; one stays as it is."""
    if len(parts) == 1:
        return parts[0]
    axis, made = axis_of(parts[0]), parts[0]
    for name, one in parts[0].data_vars.items():
        if one.dtype.kind == "f" and axis in one.dims:
            fields = [part[name] for part in parts]
            joined = xr.concat(fields, "member", coords="minimal", compat="override")
            made = made.drop_vars(str(name)).assign({name: joined.transpose(axis, "member", ...)})
    number = np.arange(made.sizes["member"], dtype=np.int32)
    return made.assign_coords(member=("member", number, MEMBER))


@dataclass(frozen=True)
class Calibration:
    """Factors on the deviations of members from their mean, fitted on validation data of the training."""

    path: Path
    factors: Mapping[str, Sequence[float]]
    """By variable and step ahead."""
    about: Mapping[str, str]
    """What was done, for attributes of files."""

    def __call__(self, forecast: xr.Dataset) -> xr.Dataset:
        """Forecasts whose members are spread by the factors; raises `ConfigError` for other variables."""
        for name, factors in self.factors.items():
            if name not in forecast or "member" not in forecast[name].dims:
                raise ConfigError(f"--calibration {self.path}: there are no members of {name!r}")
            one = forecast[name]
            lead = next((axis for axis in one.dims if axis in LEADS), None)
            if lead is None or one.sizes[lead] != len(factors):
                raise ConfigError(
                    f"--calibration {self.path}: {len(factors)} factors of {name!r}, one for each step "
                    f"ahead; the forecasts have {one.sizes.get(lead, 0)} steps"
                )
            mean, factor = one.mean("member", dtype=np.float64), xr.DataArray([*factors], dims=lead)
            spread = (mean + factor * (one - mean)).transpose(*one.dims)
            forecast = forecast.assign({name: one.copy(data=spread.values.astype(one.dtype))})
        return forecast


def read_calibration(path: Path, models: Sequence[LoadedModel]) -> Calibration:
    """Calibration of an ensemble of these models, from the scores of the same seeds in the workflow.

    Parameters
    ----------
    path : Path
        ``results/evaluate/<experiment>/<layout>/ensemble/metrics.json``. Its factors are those of the
        validation period; what it says of the test period is not used.
    models : sequence of LoadedModel

    Raises
    ------
    DataError
        The file is missing or damaged.
    ConfigError
        It is of other models, or holds no factors.
    """
    record = read_sealed(
        path,
        "the scores of an ensemble, results/evaluate/<experiment>/<layout>/ensemble/metrics.json",
        "run the workflow with two seeds or more, which writes it, or leave --calibration out",
        "delete it and run the workflow again",
    )
    factors = {
        name: scores["calibrated"]["factor"]
        for name, scores in record.get("test", {}).items()
        if isinstance(scores, Mapping) and "calibrated" in scores
    }
    if record.get("schema") != "millrace.ensemble_metrics/1" or not factors:
        raise ConfigError(
            f"--calibration {path}: holds no factors of calibrated members; expected the scores of an "
            "ensemble of groundwater, evaluated by this version or a later one: evaluate it again"
        )
    scored = zip(record["identities"], map(str, record["epochs"]), strict=True)
    given = [(one.about["run_hash"], one.about["epoch"]) for one in models]
    if sorted(scored) != sorted(given):
        raise ConfigError(
            f"--calibration {path}: is of seeds {', '.join(map(str, record['seeds']))} of "
            f"{record['experiment']} at epoch {', '.join(sorted({*map(str, record['epochs'])}))}; give "
            "exactly their checkpoints, or evaluate the ensemble of yours"
        )
    told = (
        "deviations of members from their mean times the factors of their variable and step ahead, with "
        "which spread is error on the validation period of the training"
    )
    return Calibration(
        path, factors, {"calibration": told, "calibration_factors": json.dumps(factors)}
    )
