"""Argoverse 2 motion forecasting: a parquet of tracks and a JSON map for each scenario.

Tracks have the columns of `millrace.systems.traffic.tracks` at 10 Hz, but no sizes: each class gets a usual
one. Of the 110 steps the last 91 are taken, which end with the scenario. Needs ``pyarrow``.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from millrace.errors import ConfigError, DataError
from millrace.systems.base import Progress
from millrace.systems.traffic.formats.recordings import files_like
from millrace.systems.traffic.tracks import (
    CLASSES,
    PRESENT,
    STEPS,
    Polyline,
    Scene,
    write_recording,
)

_SIZES = {
    "vehicle": ("vehicle", 4.7, 2.0),
    "bus": ("vehicle", 11.5, 2.7),
    "pedestrian": ("pedestrian", 0.7, 0.7),
    "cyclist": ("cyclist", 1.9, 0.7),
    "motorcyclist": ("cyclist", 2.1, 0.8),
}
_COLUMNS = [
    "track_id",
    "object_type",
    "timestep",
    "position_x",
    "position_y",
    "heading",
    "velocity_x",
    "velocity_y",
]


def convert(source: Path, output: Path, progress: Progress | None = None) -> int:
    """Convert all scenarios of a directory; returns their number."""
    files, count = files_like(source, "scenario_*.parquet", "scenarios of Argoverse 2"), 0
    for number, path in enumerate(files):
        name = path.stem.removeprefix("scenario_")
        road = read_map(path.with_name(f"log_map_archive_{name}.json"))
        scene = _scene(name, _read(path), road)
        if scene is not None:
            write_recording(output, name, [scene])
            count += 1
        if progress is not None:
            progress(number + 1, len(files))
    return count


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, columns=_COLUMNS)
    except ImportError:
        raise ConfigError(f"{path}: reading parquet needs pyarrow; pip install pyarrow") from None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a scenario of Argoverse 2 ({reason})") from error


def _scene(name: str, frame: pd.DataFrame, road: tuple[Polyline, ...]) -> Scene | None:
    frame = frame[frame["object_type"].isin(_SIZES)]
    if not len(frame):
        return None
    first = max(0, int(frame["timestep"].max()) + 1 - STEPS)
    frame = frame[frame["timestep"] >= first]
    tracks = list(frame.groupby("track_id", sort=True))
    pose = np.full((len(tracks), STEPS, 3), np.nan)
    velocity = np.full((len(tracks), STEPS, 2), np.nan)
    kinds = []
    for a, (_, rows) in enumerate(tracks):
        step = rows["timestep"].to_numpy() - first
        pose[a, step] = rows[["position_x", "position_y", "heading"]].to_numpy()
        velocity[a, step] = rows[["velocity_x", "velocity_y"]].to_numpy()
        kinds.append(_SIZES[str(rows["object_type"].iloc[0])])
    if not np.isfinite(pose[:, PRESENT, 0]).any():
        return None
    return Scene(
        name=name,
        track_A=tuple(str(track) for track, _ in tracks),
        kind_A=np.array([CLASSES.index(kind) for kind, _, _ in kinds], dtype=np.int8),
        size_A2=np.array([[length, width] for _, length, width in kinds]),
        pose_AT3=pose,
        velocity_AT2=velocity,
        road=road,
        lights={},
    )


def read_map(path: Path) -> tuple[Polyline, ...]:
    """Lines of a map: lanes, markings, crosswalks, and the outlines of the drivable areas.

    Raises
    ------
    DataError
        The file is missing or not such a map.
    """
    try:
        content: Mapping[str, Any] = json.loads(path.read_text())
        lines = []
        for name, lane in content["lane_segments"].items():
            left, right = (_points(lane[f"{s}_lane_boundary"]) for s in ("left", "right"))
            middle = (
                _points(lane["centerline"]) if lane.get("centerline") else _between(left, right)
            )
            kind = "bike_lane" if lane.get("lane_type") == "BIKE" else "lane"
            lines.append(Polyline(f"lane{name}", kind, middle))
            for side, points in (("left", left), ("right", right)):
                if lane.get(f"{side}_lane_mark_type", "NONE") not in ("NONE", "UNKNOWN"):
                    lines.append(Polyline(f"{side}{name}", "road_line", points))
        for name, crossing in content["pedestrian_crossings"].items():
            middle = _between(_points(crossing["edge1"]), _points(crossing["edge2"]))
            lines.append(Polyline(f"crossing{name}", "crosswalk", middle))
        for name, area in content["drivable_areas"].items():
            outline = _points(area["area_boundary"])
            closed = np.concatenate([outline, outline[:1]])
            lines.append(Polyline(f"area{name}", "road_edge", _counter_clockwise(closed)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a map of Argoverse 2 ({error!r})") from error
    return tuple(line for line in lines if len(line.points_P2) > 1)


def _points(values: Sequence[Mapping[str, float]]) -> np.ndarray:
    return np.array([[point["x"], point["y"]] for point in values], dtype=float)


def _between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Middle of two lines, by equal shares of their lengths."""
    share = np.linspace(0, 1, max(len(one), len(other), 3))
    both = []
    for points in (one, other):
        along = np.concatenate([[0], np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()])
        along = along / max(along[-1], 1e-9)
        both.append(np.stack([np.interp(share, along, points[:, i]) for i in (0, 1)], axis=1))
    return (both[0] + both[1]) / 2


def _counter_clockwise(closed: np.ndarray) -> np.ndarray:
    """So that the area is on the left."""
    x, y = closed.T
    return closed if float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) > 0 else closed[::-1]
