"""Darcy flow as a system of Millrace: what the raw files hold, how they are read, and the models."""

from pathlib import Path
from typing import Any

import numpy as np

from millrace.systems.arrays import Samples, array_kind
from millrace.systems.base import Model, RawFormat, System


def read(source: Path, settings: Any) -> Samples:
    """Read ``darcy.nc``: the logarithm of the permeability is given, the pressure is predicted."""
    import xarray as xr  # not for planning, which reads this file in every job

    with xr.open_dataset(source / "darcy.nc") as file:
        field = {name: (file[name].values, file[name].attrs["units"]) for name in file.variables}
    return Samples(
        inputs={"log_permeability": (np.log(field["permeability"][0]), "1")},
        targets={"pressure": field["pressure"]},
        coordinates={name: field[name] for name in ("y", "x")},
    )


DARCY = RawFormat(
    name="darcy",
    holds="darcy.nc",
    read_into="darcy.h5",
    simulate="millrace_darcy.generator:write_darcy",
    simulation="millrace_darcy.generator:DarcyConfig",
)
SMALL = {
    "dataset": {
        "source": "demo",
        "format": "darcy",
        "demo": {"samples": 40, "cells": 12},
        "split": {"train": 0.6, "validation": 0.2},
    },
    "data": {},
}
SYSTEM = System(
    name="darcy",
    formats=(DARCY,),
    kinds=(array_kind("darcy", formats=["darcy"], read=read, example=SMALL),),
    models=(
        Model(
            name="fno",
            kind="darcy",
            spec="millrace_darcy.fno:SPEC",
            example={"modes": [4, 4], "hidden": 8, "layers": 2},
        ),
    ),
)
