"""Common code of the formats: tracks of any rate and length become scenarios of 9.1 s at 10 Hz.

Shape suffixes: N observations, T steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from millrace.errors import DataError
from millrace.systems.traffic.geometry import Floats, wrap
from millrace.systems.traffic.tracks import CLASSES, CURRENT_STEP, STEP_S, STEPS, Polyline, Scenario

GAP_S = 0.25
"""Largest interval between observations over which positions are interpolated (s)."""

_SCENARIO_S = STEP_S * STEPS
_STANDING = 0.5  # m/s, below which a path has no direction


@dataclass(frozen=True, eq=False)
class Track:
    """An agent in SI units, at the times at which it was observed."""

    name: str
    kind: str
    """One of `CLASSES`."""
    length: float
    width: float
    time_N: Floats
    state_N5: Floats
    """x, y, heading, and the velocity along x and y."""


def read_columns(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a CSV file that has certain columns.

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


def heading_of(path_N2: Floats, time_N: Floats) -> Floats:
    """Direction of a path, [N] (rad); while an agent stands that of its last motion, or else its next."""
    if len(time_N) < 2:
        return np.zeros(len(time_N))
    velocity_N2 = np.gradient(path_N2, time_N, axis=0)
    moving = np.flatnonzero(np.hypot(*velocity_N2.T) > _STANDING)
    if not len(moving):
        return np.zeros(len(time_N))
    last = np.searchsorted(moving, np.arange(len(time_N)), side="right") - 1
    row = moving[np.maximum(last, 0)]
    return np.arctan2(velocity_N2[row, 1], velocity_N2[row, 0])


def cut_scenarios(
    name: str,
    tracks: Sequence[Track],
    road: tuple[Polyline, ...],
    lights: Callable[[NDArray], dict[str, NDArray[np.int8]]] = lambda _: {},
) -> list[Scenario]:
    """Cut a recording into consecutive scenarios, without those that have no agent at the current step.

    Positions between observations are interpolated, if these are at most `GAP_S` apart. ``lights`` gives
    the states of all traffic lights at the times of a scenario.
    """
    if not tracks:
        return []
    begin = min(float(track.time_N[0]) for track in tracks)
    end = max(float(track.time_N[-1]) for track in tracks)
    scenarios = []
    for number in range(int((end - begin - STEP_S * (STEPS - 1) + 1e-6) / _SCENARIO_S) + 1):
        times = begin + number * _SCENARIO_S + STEP_S * np.arange(STEPS)
        here = [t for t in tracks if t.time_N[-1] >= times[0] and t.time_N[0] <= times[-1]]
        sampled = [(track, states_at(track, times)) for track in here]
        sampled = [(track, state) for track, state in sampled if np.isfinite(state[:, 0]).any()]
        agents = [(track.name, track.kind, track.length, track.width) for track, _ in sampled]
        state_AT5 = np.array([state for _, state in sampled]).reshape(-1, STEPS, 5)
        scenarios += make_scenario(f"{name}_{number:05d}", agents, state_AT5, road, lights(times))
    return scenarios


def make_scenario(
    name: str,
    agents: Sequence[tuple[str, str, float, float]],
    state_AT5: Floats,
    road: tuple[Polyline, ...],
    lights: dict[str, NDArray[np.int8]],
) -> list[Scenario]:
    """Make a scenario, or none if no agent is observed at the current step.

    Agents are given by the name of the track, one of `CLASSES`, length and width (m), and by their states,
    see `Track`.
    """
    if not np.isfinite(state_AT5[:, CURRENT_STEP, 0]).any():
        return []
    tracks, kinds, lengths, widths = zip(*agents, strict=True)
    kind_A = np.array([CLASSES.index(kind) for kind in kinds], dtype=np.int8)
    size_A2, pose_AT3 = np.column_stack([lengths, widths]), state_AT5[..., :3]
    return [Scenario(name, tracks, kind_A, size_A2, pose_AT3, state_AT5[..., 3:], road, lights)]


def states_at(track: Track, time_T: NDArray) -> Floats:
    """Interpolate the states of a track, [T, 5]; NaN where it was not observed."""
    last = len(track.time_N) - 1
    after = np.clip(np.searchsorted(track.time_N, time_T - 1e-6), min(1, last), last)
    before = np.maximum(after - 1, 0)
    apart = track.time_N[after] - track.time_N[before]
    share = np.where(apart > 0, (time_T - track.time_N[before]) / np.where(apart > 0, apart, 1), 0)
    share = np.where(np.abs(share) < 1e-4, 0, np.where(np.abs(share - 1) < 1e-4, 1, share))
    inside = (time_T >= track.time_N[0] - 1e-4) & (time_T <= track.time_N[-1] + 1e-4)
    inside &= (apart <= GAP_S) | (share == 0) | (share == 1)
    values = track.state_N5.copy()
    values[:, 2] = np.unwrap(values[:, 2])
    found = values[before] + share[:, None] * (values[after] - values[before])
    found[~inside] = np.nan
    found[:, 2] = wrap(found[:, 2])
    return found
