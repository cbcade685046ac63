"""Forecasts of several models, or from several initial states, as members of one ensemble."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from millrace.errors import ConfigError
from millrace.evaluation.application import Piece
from millrace.evaluation.forecast_file import axis_of
from millrace.evaluation.loaded import LoadedModel

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
