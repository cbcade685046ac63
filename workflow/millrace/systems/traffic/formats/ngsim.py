"""NGSIM trajectories (US DOT): feet, at 10 Hz, of stretches of road without a map.

``Local_X`` is measured from the left edge of the road to the right, ``Local_Y`` along the road; both are of
the middle of the *front* of a vehicle. There is no heading: it is that of the path. Lanes are drawn where
their vehicles are.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from millrace.systems.base import Progress
from millrace.systems.traffic.formats.recordings import (
    Track,
    cut_scenes,
    files_like,
    heading_of,
    read_columns,
)
from millrace.systems.traffic.tracks import Polyline, write_recording

FOOT = 0.3048  # m
_LANE = 3.66  # m, 12 feet
_COLUMNS = (
    "Vehicle_ID",
    "Global_Time",
    "Local_X",
    "Local_Y",
    "v_Length",
    "v_Width",
    "v_Class",
    "Lane_ID",
)
_CLASS = {1: "cyclist", 2: "vehicle", 3: "vehicle"}  # motorcycles count as in Argoverse
_SMOOTH = 5  # observations: positions are rough, headings must not be


def convert(source: Path, output: Path, progress: Progress | None = None) -> int:
    """Convert all files of a directory; returns the number of scenarios."""
    files, count = files_like(source, "*.csv", "trajectories of NGSIM as CSV"), 0
    for number, path in enumerate(files):
        frame = read_columns(path, _COLUMNS)
        frame["x"] = frame["Local_Y"] * FOOT
        frame["y"] = -frame["Local_X"] * FOOT
        tracks = []
        ordered = frame.sort_values("Global_Time").drop_duplicates(["Vehicle_ID", "Global_Time"])
        for name, rows in ordered.groupby("Vehicle_ID"):
            # A number is given again once its vehicle has left.
            time = rows["Global_Time"].to_numpy(dtype=float) / 1000
            parts = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(time) > 10) + 1)
            for visit, part in enumerate(parts):
                tracks.append(_track(f"{name}_{visit}", rows.iloc[part], time[part]))
        scenes = cut_scenes(path.stem, tracks, _road(frame))
        if scenes:
            write_recording(output, path.stem, scenes)
        count += len(scenes)
        if progress is not None:
            progress(number + 1, len(files))
    return count


def _track(name: str, rows: pd.DataFrame, time_N: np.ndarray) -> Track:
    front = rows[["x", "y"]].to_numpy(dtype=float)
    length, width = (float(rows[c].median()) * FOOT for c in ("v_Length", "v_Width"))
    smooth = pd.DataFrame(front).rolling(_SMOOTH, center=True, min_periods=1).mean().to_numpy()
    heading = heading_of(smooth, time_N)
    middle = front - length / 2 * np.column_stack([np.cos(heading), np.sin(heading)])
    velocity = np.gradient(smooth, time_N, axis=0) if len(time_N) > 1 else np.zeros_like(middle)
    return Track(
        name=name,
        kind=_CLASS.get(int(rows["v_Class"].iloc[0]), "vehicle"),
        length=length,
        width=width,
        time_N=time_N,
        pose_N3=np.column_stack([middle, heading]),
        velocity_N2=velocity,
    )


def _road(frame: pd.DataFrame) -> tuple[Polyline, ...]:
    """Lanes at the median of their vehicles, every 20 m, and edges beside the outer ones."""
    lines = []
    reach = (frame["x"].min() - 10, frame["x"].max() + 10)
    x = np.arange(*reach, 20.0)
    middle = {}
    for lane, rows in frame.groupby("Lane_ID"):
        bins = np.round((rows["x"] - reach[0]) / 20).astype(int)
        medians = rows["y"].groupby(bins).median()
        y = np.interp(np.arange(len(x)), medians.index, medians.to_numpy())
        middle[lane] = y
        lines.append(Polyline(f"lane{lane}", "lane", np.column_stack([x, y])))
    order = sorted(middle, key=lambda lane: float(np.mean(middle[lane])))
    right, left = middle[order[0]] - _LANE / 2, middle[order[-1]] + _LANE / 2
    lines.append(Polyline("right", "road_edge", np.column_stack([x, right])))
    lines.append(Polyline("left", "road_edge", np.column_stack([x, left])[::-1]))
    return tuple(lines)
