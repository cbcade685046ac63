"""Regions that scores are given for: those of WeatherBench 2, by its names.

Source: `scripts/evaluate.py` of github.com/google-research/weatherbench2. Edges belong to a region.

Shape suffixes: I latitudes, J longitudes.
"""

import numpy as np
from numpy.typing import NDArray

from millrace.systems.weather.grids import Floats, goes_round

_ALL = (0.0, 360.0)
_NORTH, _SOUTH = (20.0, 90.0), (-90.0, -20.0)
REGIONS = {
    "tropics": ([(-20.0, 20.0)], [_ALL]),
    "extra-tropics": ([_NORTH, _SOUTH], [_ALL]),
    "northern-hemisphere": ([_NORTH], [_ALL]),
    "southern-hemisphere": ([_SOUTH], [_ALL]),
    "europe": ([(35.0, 75.0)], [(347.5, 360.0), (0.0, 42.5)]),
    "north-america": ([(25.0, 60.0)], [(240.0, 285.0)]),
    "north-atlantic": ([(25.0, 65.0)], [(290.0, 350.0)]),
    "north-pacific": ([(25.0, 60.0)], [(145.0, 230.0)]),
    "east-asia": ([(25.0, 60.0)], [(102.5, 150.0)]),
    "ausnz": ([(-45.0, -12.5)], [(120.0, 175.0)]),
    "arctic": ([(60.0, 90.0)], [_ALL]),
    "antarctic": ([(-90.0, -60.0)], [_ALL]),
}
"""Ranges of latitude and of longitude from 0, in degrees, of which a cell is in one of each."""


def cells_of_regions(latitude_I: Floats, longitude_J: Floats) -> dict[str, NDArray[np.bool_]]:
    """Which cells are in which region, [I, J], of those that have any.

    There are none in a grid that is not of the whole globe: it would hold a part of a region only.
    """
    if not goes_round(longitude_J):
        return {}
    east = np.mod(longitude_J, 360.0)
    found = {}
    for name, (rows, columns) in REGIONS.items():
        in_rows = np.any([(low <= latitude_I) & (latitude_I <= high) for low, high in rows], axis=0)
        in_columns = np.any([(low <= east) & (east <= high) for low, high in columns], axis=0)
        if in_rows.any() and in_columns.any():
            found[name] = in_rows[:, None] & in_columns
    return found
