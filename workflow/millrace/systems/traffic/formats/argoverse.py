"""Argoverse 2 motion forecasting: a parquet of tracks and a JSON map for each scenario.

Tracks have the columns of `millrace.systems.traffic.tracks` at 10 Hz, but no sizes: each type of agent gets
a typical one. Of the 110 steps the last 91 are taken. Needs the package ``pyarrow``.
"""

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from millrace.data.account import Account
from millrace.errors import ConfigError, DataError, first_line
from millrace.input_files import check_file, read_file
from millrace.systems.traffic.formats.recordings import (
    WITHOUT_FUTURE,
    Converted,
    make_scenario,
)
from millrace.systems.traffic.geometry import Floats, midline
from millrace.systems.traffic.tracks import CLASS_OF, CURRENT_STEP, STEPS, Polyline

_SIZES = {
    "vehicle": ("vehicle", 4.7, 2.0),
    "bus": ("vehicle", 11.5, 2.7),
    "pedestrian": ("pedestrian", 0.7, 0.7),
    "cyclist": ("cyclist", 1.9, 0.7),
    "motorcyclist": ("cyclist", 2.1, 0.8),
}
_OBSERVED = 50  # steps of the test set
_MOST_ROWS = 10_000_000
_LEFT_OUT = [name for name, kind in CLASS_OF.items() if kind is None]
_STATE = ["position_x", "position_y", "heading", "velocity_x", "velocity_y"]


def map_of(path: Path) -> Path:
    """The file with the map of a scenario."""
    name = path.stem.removeprefix("scenario_")
    return path.with_name(f"log_map_archive_{name}.json")


def read(path: Path, source: Path, account: Account) -> Iterator[Converted]:
    """Read a scenario, see `millrace.systems.traffic.formats.Adapter`."""
    name = path.stem.removeprefix("scenario_")
    map_file = map_of(path)
    road = read_map(map_file)
    frame = _read_tracks(path)
    for track, kind in frame[["track_id", "object_type"]].drop_duplicates().to_numpy():
        if kind not in _SIZES and CLASS_OF.get(kind, kind) is not None:
            raise DataError(
                f"{path}: track {track!r} is of the type {kind!r}; expected one of "
                f"{', '.join(_SIZES)}, or one that is left out: {', '.join(_LEFT_OUT)}"
            )
        if kind not in _SIZES:
            account.leave_out("tracks", f"of the type {kind!r}, no road users")
    frame = frame[frame["object_type"].isin(list(_SIZES))]
    if len(frame) and frame["timestep"].max() < _OBSERVED:
        account.leave_out("scenarios", WITHOUT_FUTURE)
        account.leave_out("tracks", "in no scenario", frame["track_id"].nunique())
        yield Converted(name, map_file, [])
        return
    if frame.duplicated(["track_id", "timestep"]).any():
        raise DataError(
            f"{path}: a track has a timestep twice; expected it once, copy the file again"
        )
    first = max(0, int(frame["timestep"].max()) + 1 - STEPS) if len(frame) else 0
    frame = frame[frame["timestep"] >= first]
    tracks = list(frame.groupby("track_id", sort=True))
    state = np.full((len(tracks), STEPS, 5), np.nan)
    for agent, (_, rows) in enumerate(tracks):
        state[agent, rows["timestep"].to_numpy() - first] = rows[_STATE].to_numpy()
    agents = [(str(track), *_SIZES[rows["object_type"].iloc[0]]) for track, rows in tracks]
    made = make_scenario(name, agents, state, road, {})
    account.keep("tracks", len(agents) if made else 0)
    if not made:
        account.leave_out("tracks", "in no scenario", len(agents))
        account.leave_out("scenarios", f"without an agent at step {CURRENT_STEP}")
    yield Converted(name, map_file, made)


def _read_tracks(path: Path) -> pd.DataFrame:
    check_file(path)
    try:
        rows = importlib.import_module("pyarrow.parquet").read_metadata(path).num_rows
        if rows > _MOST_ROWS:
            raise DataError(
                f"{path}: declares {rows:,} rows; expected a scenario of Argoverse 2, of "
                f"{_MOST_ROWS:,} at most"
            )
        frame = pd.read_parquet(path, columns=["track_id", "object_type", "timestep", *_STATE])
        if frame["timestep"].dtype.kind not in "iu":
            raise ValueError("column timestep: expected whole numbers")
        rows, columns = np.nonzero(~np.isfinite(frame[_STATE].to_numpy(float)))
        if len(rows):
            raise ValueError(f"column {_STATE[columns[0]]}, row {rows[0]}: not a finite number")
        return frame
    except ImportError:
        raise ConfigError(f"{path}: reading parquet needs pyarrow; pip install pyarrow") from None
    except DataError:
        raise
    except Exception as error:  # of many kinds
        raise DataError(f"{path}: not a scenario of Argoverse 2 ({first_line(error)})") from error


def read_map(path: Path) -> tuple[Polyline, ...]:
    """Read the polylines of a map: lanes, markings, crosswalks, and outlines of the drivable areas.

    Raises
    ------
    DataError
        The file is missing or not such a map.
    """
    try:
        content: Mapping[str, Any] = json.loads(read_file(path))
        lines = []
        for name, lane in content["lane_segments"].items():
            left, right = (_points(lane[f"{s}_lane_boundary"]) for s in ("left", "right"))
            middle = _points(lane["centerline"]) if lane.get("centerline") else midline(left, right)
            kind = "bike_lane" if lane.get("lane_type") == "BIKE" else "lane"
            lines.append(Polyline(f"lane{name}", kind, middle))
            for side, points in (("left", left), ("right", right)):
                if lane.get(f"{side}_lane_mark_type", "NONE") not in ("NONE", "UNKNOWN"):
                    lines.append(Polyline(f"{side}{name}", "road_line", points))
        for name, crossing in content["pedestrian_crossings"].items():
            middle = midline(_points(crossing["edge1"]), _points(crossing["edge2"]))
            lines.append(Polyline(f"crossing{name}", "crosswalk", middle))
        for name, area in content["drivable_areas"].items():
            outline = _points(area["area_boundary"])
            closed = np.concatenate([outline, outline[:1]])
            lines.append(Polyline(f"area{name}", "road_edge", _counter_clockwise(closed)))
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise DataError(f"{path}: not a map of Argoverse 2 ({error!r})") from error
    return tuple(line for line in lines if len(line.points_P2) > 1)


def _points(values: Sequence[Mapping[str, float]]) -> Floats:
    points = np.array([[point["x"], point["y"]] for point in values], dtype=float)
    if not np.isfinite(points).all():
        raise ValueError("a point without a place")
    return points


def _counter_clockwise(closed: Floats) -> Floats:
    """The outline of an area in the direction in which the area is on its left."""
    x, y = closed.T
    return closed if float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) > 0 else closed[::-1]
