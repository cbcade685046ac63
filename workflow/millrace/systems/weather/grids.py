"""Rows and columns of a grid: of the whole globe, or of an area of it.

Longitudes of the whole globe ascend from 0. Those of an area ascend from its west without a jump: they
begin below 0 if they cross 0, and exceed 180 if they cross the date line.

Shape suffixes: I latitudes, J longitudes.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from millrace.errors import DataError
from millrace.systems.weather.settings import AreaConfig

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MULTIPLE = 4
"""Rows and columns of an area are cut to a multiple of this, the usual size of a patch."""
_SAME = 1e-3
"""Degrees by which steps between columns may differ."""
_AT_EDGE = 1e-4
"""Degrees by which cells may be outside of an area: coordinates are rounded."""
_NEEDED = (
    "rows from pole to pole and columns all round are needed: give files of the whole globe, or say by "
    "weather.area what part of it is wanted"
)


def goes_round(longitude_J: Floats) -> bool:
    """Whether columns, in degrees and evenly spaced, go once around the globe."""
    columns = len(longitude_J)
    step = (longitude_J[-1] - longitude_J[0]) / max(1, columns - 1)
    return bool(abs(columns * step - 360.0) < step / 2)


def rows_of(path: Path, latitude: Floats, area: AreaConfig | None) -> tuple[Ints, int]:
    """Rows of a file from north to south, of an ``area`` its own, and how many there are before the cut.

    Of a globe with both poles the last row is left out; rows of an area are cut to a `MULTIPLE`. Raises
    `DataError` if rows are missing.
    """
    rows = np.argsort(-latitude)
    latitude_I = latitude[rows]
    steps = -np.diff(latitude_I)
    if len(steps) < 1 or steps.min() < 1e-6:
        raise DataError(f"{path}: expected at least two latitudes, each once")
    step = float(np.median(steps))
    if steps.max() > 1.5 * step:
        after = int(np.argmax(steps))
        raise DataError(
            f"{path}: no latitude between {latitude_I[after]:g} and {latitude_I[after + 1]:g}, where "
            f"others are {step:g} degrees apart; add the rows that are missing"
        )
    reach = f"{path}: latitudes reach from {latitude_I[-1]:g} to {latitude_I[0]:g}"
    if not _reaches_poles(latitude_I, step):
        if area is None:
            raise DataError(f"{reach}; {_NEEDED}")
        if max(area.north - latitude_I[0], latitude_I[-1] - area.south) > step + _AT_EDGE:
            raise DataError(
                f"{reach}, but weather.area from {area.south:g} to {area.north:g}; make it smaller, or "
                "give files that cover it"
            )
    if area is not None:
        inside = (latitude_I < area.north + _AT_EDGE) & (latitude_I > area.south - _AT_EDGE)
        rows = rows[inside]
    whole = len(rows) > 1 and _reaches_poles(latitude[rows], step)
    multiple = 2 if whole else MULTIPLE
    return rows[: len(rows) // multiple * multiple], len(rows)


def _reaches_poles(latitude_I: Floats, step: float) -> bool:
    # Of a grid with both poles that of the south may be cut off: it is not used.
    north, south = 90.0 - latitude_I[0], 90.0 + latitude_I[-1]
    reach = 1.01 if north < 1e-3 else 0.8
    return bool(north <= 0.8 * step and south <= reach * step)


def columns_of(path: Path, longitude: Floats, area: AreaConfig | None) -> tuple[Ints, Floats, int]:
    """Columns of a file from west to east, their degrees, and how many there are before the cut.

    Those of an ``area`` that does not go around are cut to a `MULTIPLE`. Raises `DataError` if columns are
    missing or there twice.
    """
    east = longitude % 360.0
    east = np.where(east > 360.0 - _AT_EDGE, east - 360.0, east)
    columns = np.argsort(east)
    east_J = east[columns]
    gaps = np.diff(np.append(east_J, east_J[:1] + 360.0))
    if len(east_J) > 1 and gaps.min() < _SAME:
        raise DataError(
            f"{path}: longitude {east_J[int(np.argmin(gaps))]:g} is there twice (0 and 360 are one); "
            "expected each column once"
        )
    all_round = len(east_J) > 1 and np.allclose(gaps, 360.0 / len(east_J), atol=_SAME)
    if area is None or area.width == 360.0:
        if not all_round:
            after = int(np.argmax(gaps))
            raise DataError(
                f"{path}: longitudes do not go once around the globe in equal steps, as there are none "
                f"between {east_J[after]:g} and {east_J[after] + gaps[after]:g}; {_NEEDED}"
            )
        return columns, east_J, len(columns)
    along = (east_J - area.west) % 360.0
    along = np.where(along > 360.0 - _AT_EDGE, along - 360.0, along)
    order = np.argsort(along)
    order = order[along[order] < area.width + _AT_EDGE]
    if all_round and len(order) == len(columns):
        return columns, east_J, len(columns)
    edges = np.concatenate([[0.0], along[order], [area.width]])
    steps = np.diff(edges)
    step = float(np.median(gaps))
    if steps.max() > step + _SAME or not np.allclose(steps[1:-1], step, atol=_SAME):
        after = int(np.argmax(steps))
        begin, end = area.west + edges[after : after + 2]
        raise DataError(
            f"{path}: longitudes do not cover weather.area from {area.west:g} to "
            f"{area.west + area.width:g} in equal steps, as there are none between {begin:g} and {end:g}; "
            "make it smaller, or give files that cover it"
        )
    columns, east_J = columns[order], east_J[order]
    east_J = np.where(east_J < east_J[:1], east_J + 360.0, east_J)
    if len(east_J) and east_J[-1] >= 360.0:
        east_J = east_J - 360.0
    cut = len(columns) // MULTIPLE * MULTIPLE
    return columns[:cut], east_J[:cut], len(columns)
