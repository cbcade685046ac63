"""NGSIM trajectories (US DOT): feet, at 10 Hz, of stretches of road without a map.

``Local_X`` is measured from the left edge of the road to the right, ``Local_Y`` along the road; both refer
to the middle of the *front* of a vehicle. There is no heading: it is the direction of the path. Lanes are
drawn where their vehicles are.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from millrace.systems.traffic.formats.recordings import (
    Track,
    cut_scenarios,
    heading_of,
    read_columns,
)
from millrace.systems.traffic.geometry import Floats, unit
from millrace.systems.traffic.tracks import Polyline, Scenario

_FOOT = 0.3048  # m
_LANE = 3.66  # m, 12 feet
_COLUMNS: tuple[str, ...] = ("Vehicle_ID", "Global_Time", "Local_X", "Local_Y")
_COLUMNS += ("v_Length", "v_Width", "v_Class", "Lane_ID")
_CLASS = {1: "cyclist", 2: "vehicle", 3: "vehicle"}  # 1 are motorcycles, as in Argoverse 2
_SMOOTH = 5  # observations: positions are rough, headings must not be


def read(path: Path, source: Path) -> Iterator[tuple[str, list[Scenario]]]:
    """Read a recording, see `millrace.systems.traffic.formats.Adapter`."""
    frame = read_columns(path, _COLUMNS)
    frame["x"] = frame["Local_Y"] * _FOOT
    frame["y"] = -frame["Local_X"] * _FOOT
    tracks = []
    ordered = frame.sort_values("Global_Time").drop_duplicates(["Vehicle_ID", "Global_Time"])
    for name, rows in ordered.groupby("Vehicle_ID"):
        # A number is given to another vehicle once its vehicle has left.
        time = rows["Global_Time"].to_numpy(dtype=float) / 1000
        parts = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(time) > 10) + 1)
        for visit, part in enumerate(parts):
            tracks.append(_track(f"{name}_{visit}", rows.iloc[part], time[part]))
    yield path.stem, cut_scenarios(path.stem, tracks, _road(frame))


def _track(name: str, rows: pd.DataFrame, time_N: Floats) -> Track:
    front = rows[["x", "y"]].to_numpy(dtype=float)
    length, width = (float(rows[c].median()) * _FOOT for c in ("v_Length", "v_Width"))
    smooth = pd.DataFrame(front).rolling(_SMOOTH, center=True, min_periods=1).mean().to_numpy()
    heading = heading_of(smooth, time_N)
    middle = front - length / 2 * unit(heading)
    velocity = np.gradient(smooth, time_N, axis=0) if len(time_N) > 1 else np.zeros_like(middle)
    kind = _CLASS.get(int(rows["v_Class"].iloc[0]), "vehicle")
    state_N5 = np.column_stack([middle, heading, velocity])
    return Track(name, kind, length, width, time_N, state_N5)


def _road(frame: pd.DataFrame) -> tuple[Polyline, ...]:
    """Lanes at the median of their vehicles, every 20 m, and road edges beside the outer ones."""
    low, high = frame["x"].min() - 10, frame["x"].max() + 10
    x = np.arange(low, high, 20.0)
    middle = {}
    for lane, rows in frame.groupby("Lane_ID"):
        bins = np.round((rows["x"] - low) / 20).astype(int)
        medians = rows["y"].groupby(bins).median()
        middle[lane] = np.interp(np.arange(len(x)), medians.index, medians.to_numpy())
    outer = sorted(middle.values(), key=lambda y: float(np.mean(y)))
    right, left = outer[0] - _LANE / 2, outer[-1] + _LANE / 2
    lanes = [Polyline(f"lane{n}", "lane", np.column_stack([x, y])) for n, y in middle.items()]
    return (
        *lanes,
        Polyline("right", "road_edge", np.column_stack([x, right])),
        Polyline("left", "road_edge", np.column_stack([x, left])[::-1]),
    )
