"""What the formats have in common: tracks of any rate and length become scenarios of 9.1 s at 10 Hz.

Shape suffixes: N observations, T steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from millrace.errors import DataError
from millrace.systems.traffic.tracks import CLASSES, PRESENT, STEP_S, STEPS, Polyline, Scene

Floats = NDArray[np.float64]

GAP_S = 0.25
"""Observations farther apart are not joined (s)."""

_STANDING = 0.5  # m/s, below which a path has no direction


@dataclass(frozen=True, eq=False)
class Track:
    """A road user in SI units, at the times at which it was observed."""

    name: str
    kind: str
    """Of `CLASSES`."""
    length: float
    width: float
    time_N: Floats
    pose_N3: Floats
    velocity_N2: Floats


def read_columns(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Columns of a CSV file as they are.

    Raises
    ------
    DataError
        It cannot be read, or lacks a column.
    """
    try:
        frame = pd.read_csv(path, skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}:1:1: cannot be read as CSV ({error})") from error
    frame.columns = frame.columns.str.strip()
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise DataError(
            f"{path}:1:1: no column {missing[0]!r}; expected {', '.join(columns)} among the columns"
        )
    return frame


def files_like(source: Path, pattern: str, what: str) -> list[Path]:
    """Files below a directory, sorted.

    Raises
    ------
    DataError
        There are none.
    """
    found = sorted(path for path in Path(source).rglob(pattern) if path.is_file())
    if not found:
        raise DataError(f"{source}: no file {pattern}; expected {what}")
    return found


def heading_of(path_N2: Floats, time_N: Floats, given: float = 0.0) -> Floats:
    """Direction of a path; while standing that of the last motion, and before it that of the next."""
    if len(time_N) < 2:
        return np.full(len(time_N), given)
    velocity_N2 = np.gradient(path_N2, time_N, axis=0)
    moving = np.flatnonzero(np.hypot(*velocity_N2.T) > _STANDING)
    if not len(moving):
        return np.full(len(time_N), given)
    last = np.searchsorted(moving, np.arange(len(time_N)), side="right") - 1
    row = moving[np.maximum(last, 0)]
    return np.arctan2(velocity_N2[row, 1], velocity_N2[row, 0])


def cut_scenes(
    name: str,
    tracks: Sequence[Track],
    road: tuple[Polyline, ...],
    every: float = 9.1,
    lights: Callable[[NDArray], dict[str, NDArray[np.int8]]] | None = None,
) -> list[Scene]:
    """Cut a recording into scenarios that begin ``every`` so many seconds.

    Scenarios without anybody at the present are left out. Positions between observations are linear,
    where these are not farther apart than a quarter of a second. ``lights`` gives the states of all lights
    at the times of a scenario.
    """
    if not tracks:
        return []
    begin = min(float(track.time_N[0]) for track in tracks)
    end = max(float(track.time_N[-1]) for track in tracks)
    length = STEP_S * (STEPS - 1)
    scenes = []
    for number in range(int((end - begin - length + 1e-6) / every) + 1):
        times = begin + number * every + STEP_S * np.arange(STEPS)
        here = [t for t in tracks if t.time_N[-1] >= times[0] and t.time_N[0] <= times[-1]]
        sampled = [resample(track, times) for track in here]
        rows = [i for i, (pose, _) in enumerate(sampled) if np.isfinite(pose[:, 0]).any()]
        if not any(np.isfinite(sampled[i][0][PRESENT, 0]) for i in rows):
            continue
        scenes.append(
            Scene(
                name=f"{name}_{number:05d}",
                track_A=tuple(here[i].name for i in rows),
                kind_A=np.array([CLASSES.index(here[i].kind) for i in rows], dtype=np.int8),
                size_A2=np.array([[here[i].length, here[i].width] for i in rows]),
                pose_AT3=np.stack([sampled[i][0] for i in rows]),
                velocity_AT2=np.stack([sampled[i][1] for i in rows]),
                road=road,
                lights=lights(times) if lights is not None else {},
            )
        )
    return scenes


def resample(track: Track, time_T: NDArray) -> tuple[Floats, Floats]:
    """Poses and velocities at given times; NaN where the track was not observed around them."""
    after = np.clip(np.searchsorted(track.time_N, time_T - 1e-6), 1, max(1, len(track.time_N) - 1))
    if len(track.time_N) == 1:
        after = np.zeros(len(time_T), dtype=np.int64)
    before = np.maximum(after - 1, 0)
    apart = track.time_N[after] - track.time_N[before]
    share = np.where(apart > 0, (time_T - track.time_N[before]) / np.where(apart > 0, apart, 1), 0)
    share = np.where(np.abs(share) < 1e-4, 0, np.where(np.abs(share - 1) < 1e-4, 1, share))
    inside = (time_T >= track.time_N[0] - 1e-4) & (time_T <= track.time_N[-1] + 1e-4)
    inside &= (apart <= GAP_S) | (share == 0) | (share == 1)
    turning = np.column_stack([track.pose_N3[:, :2], np.unwrap(track.pose_N3[:, 2])])
    values = np.concatenate([turning, track.velocity_N2], axis=1)
    found = values[before] + share[:, None] * (values[after] - values[before])
    found[~inside] = np.nan
    found[:, 2] = (found[:, 2] + np.pi) % (2 * np.pi) - np.pi
    return found[:, :3], found[:, 3:]
