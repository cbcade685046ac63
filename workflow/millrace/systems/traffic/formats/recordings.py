"""Common code of the formats: tracks of any rate and length become scenarios of 9.1 s at 10 Hz.

Shape suffixes: N observations, T steps.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from millrace.data.account import Account
from millrace.errors import DataError
from millrace.input_files import check_columns, check_memory, open_file
from millrace.systems.traffic.geometry import Floats, wrap
from millrace.systems.traffic.tracks import (
    CLASS_OF,
    CLASSES,
    CURRENT_STEP,
    STEP_S,
    STEPS,
    Polyline,
    Scenario,
)

GAP_S = 0.25
"""Largest interval between observations over which positions are interpolated (s)."""

WITHOUT_FUTURE = "of a test set, whose futures are not published"
"""Reason to leave out scenarios."""

_SCENARIO_S = STEP_S * STEPS
_JUMP = 150.0  # m/s, faster than any road user
_FAR = 500.0  # m
_STANDING = 0.5  # m/s, below which a path has no direction
_PER_BYTE = 4  # bytes of memory for one of a table
_LONGEST = 3e8  # s, of a recording


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


Wanted = Callable[[str], bool]
"""Name of a scenario -> whether it is asked for."""


class Converted(NamedTuple):
    """A recording: consecutive scenarios of one place, which share their map."""

    name: str
    map: Path
    """File from which the map comes."""
    scenarios: Iterable[Scenario]


def read_columns(
    path: Path,
    numbers: Sequence[str],
    text: Sequence[str] = (),
    blanks: Sequence[str] = (),
) -> pd.DataFrame:
    """Read a CSV file that has certain columns, in any order; capitals in their names do not matter.

    Cells of ``numbers`` are finite; those of ``blanks`` are numbers or empty (NaN).

    Raises
    ------
    DataError
        It cannot be read, lacks a column or has it twice, or a cell is wrong: with the line.
    """
    columns = (*numbers, *text, *blanks)
    try:
        check_columns(path)
        with open_file(path) as file:
            check_memory(path, _PER_BYTE * path.stat().st_size)
            frame = pd.read_csv(
                file, skipinitialspace=True, skip_blank_lines=False, low_memory=False
            )
    except (OSError, ValueError) as error:
        raise DataError(f"{path}:1:1: cannot be read as CSV ({error})") from error
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() not in (b"\n", b"\r"):
            raise DataError(
                f"{path}: the last line does not end, and the file may be cut in it; copy it again, or end "
                "the line if it is whole"
            )
    if not isinstance(frame.index, pd.RangeIndex):
        raise DataError(f"{path}:2:1: rows have more cells than the header; expected as many")
    frame.columns = frame.columns.astype(str).str.strip()
    named = {name.casefold(): name for name in columns}
    frame = frame.rename(columns=lambda name: named.get(name.casefold(), name))
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise DataError(
            f"{path}:1:1: no column {missing[0]!r}; expected {', '.join(columns)} among the columns"
        )
    for name in columns:
        if (frame.columns == name).sum() > 1 or f"{name}.1" in frame.columns:
            raise DataError(f"{path}:1:1: column {name!r} appears twice; expected it once")
    while len(frame) and frame.iloc[-1].isna().all():  # empty lines at the end
        frame = frame.iloc[:-1]
    for name in (*numbers, *blanks):
        found = pd.to_numeric(frame[name], errors="coerce")
        wrong = ~np.isfinite(found) & (frame[name].notna() | (name not in blanks))
        refuse_cell(path, frame[name], wrong, "a finite number")
        frame[name] = found
    return frame


def refuse_cell(path: Path, cells: pd.Series, wrong: pd.Series, expected: str) -> None:
    """Raise `DataError` about the first wrong cell of a column of a CSV file, if there is one."""
    if wrong.any():
        row = int(np.argmax(wrong.to_numpy()))
        cell = cells.iloc[row]
        shown = "an empty cell" if pd.isna(cell) else repr(cell) if isinstance(cell, str) else cell
        raise DataError(
            f"{path}:{cells.index[row] + 2}: {shown} in column {cells.name!r}; expected {expected}"
        )


def classes(path: Path, types: pd.Series) -> pd.Series:
    """Class of each row of a CSV file, by `CLASS_OF`; None for objects that are no road users.

    Raises
    ------
    DataError
        A type is unknown: with the line.
    """
    known = types.astype(str).str.strip().str.lower()
    allowed = "one of " + ", ".join(CLASS_OF)
    refuse_cell(path, types, ~known.isin(list(CLASS_OF)), allowed)
    return known.map(CLASS_OF)


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
    account: Account | None = None,
) -> list[Scenario]:
    """Cut a recording into consecutive scenarios, without those that have no agent at the current step.

    Positions between observations are interpolated, if these are at most `GAP_S` apart. ``lights`` gives
    the states of all traffic lights at the times of a scenario. What is left out is counted in ``account``.
    """
    account = account or Account()
    if not tracks:
        return []
    for track in tracks:
        _check_jumps(track)
        step = np.diff(track.time_N)
        bridged = (step > 1.5 * np.median(step)) & (step <= GAP_S) if len(step) else step > 0
        if number := int(bridged.sum()):
            account.keep(f"gaps of {GAP_S} s or less, interpolated", number)
    begin = min(float(track.time_N[0]) for track in tracks)
    end = max(float(track.time_N[-1]) for track in tracks)
    if not end - begin < _LONGEST:
        raise DataError(
            f"times reach from {begin:g} to {end:g} s; expected those of one recording, in order"
        )
    scenarios: list[Scenario] = []
    whole = int((end - begin - STEP_S * (STEPS - 1) + 1e-6) / _SCENARIO_S) + 1
    near: dict[int, list[Track]] = defaultdict(list)  # years may lie between two observations
    for track in tracks:
        seen = np.unique((track.time_N - begin) // _SCENARIO_S)
        for place in np.unique(np.r_[seen - 1, seen, seen + 1]):
            near[int(place)].append(track)
    places = sorted(place for place in near if 0 <= place < whole)
    empty = f"without an agent at step {CURRENT_STEP}"
    account.leave_out("scenarios", empty, max(0, whole - len(places)))
    for place in places:
        times = begin + place * _SCENARIO_S + STEP_S * np.arange(STEPS)
        sampled = [(track, states_at(track, times)) for track in near[place]]
        sampled = [(track, state) for track, state in sampled if np.isfinite(state[:, 0]).any()]
        agents = [(track.name, track.kind, track.length, track.width) for track, _ in sampled]
        state_AT5 = np.array([state for _, state in sampled]).reshape(-1, STEPS, 5)
        made = make_scenario(f"{name}_{place:05d}", agents, state_AT5, road, lights(times))
        account.leave_out("scenarios", empty, int(not made))
        scenarios += made
    kept = {track for scenario in scenarios for track in scenario.track_A}
    account.keep("tracks", sum(track.name in kept for track in tracks))
    account.leave_out("tracks", "in no scenario", sum(track.name not in kept for track in tracks))
    rest = max(0, round(end - begin - whole * _SCENARIO_S))
    account.keep("seconds", round(end - begin) - rest)
    account.leave_out("seconds", "at the end, too short for a scenario", rest)
    return scenarios


def _check_jumps(track: Track) -> None:
    """Refuse positions that stand for no value: far away, or away and back at once; raises `DataError`."""
    if len(track.time_N) < 2:
        return
    apart = np.linalg.norm(np.diff(track.state_N5[:, :2], axis=0), axis=1)
    time = np.diff(track.time_N)
    fast = (apart > _JUMP * np.maximum(time, STEP_S)) & (time <= GAP_S)
    wrong = fast & (apart > _FAR)
    wrong[1:] |= fast[1:] & fast[:-1]
    if wrong.any():
        row = int(np.argmax(wrong))
        x, y = track.state_N5[row + 1, :2]
        raise DataError(
            f"track {track.name!r} moves {apart[row]:.0f} m in {time[row]:.2f} s, to ({x:.1f}, {y:.1f}) m "
            f"at {track.time_N[row + 1]:.2f} s; expected a path, remove the rows if they stand for no value"
        )


def make_scenario(
    name: str,
    agents: Sequence[tuple[str, str, float, float]],
    state_AT5: Floats,
    road: tuple[Polyline, ...],
    lights: dict[str, NDArray[np.int8]],
) -> list[Scenario]:
    """Make a scenario, or none if no agent is observed at the current step.

    Agents are given by the name of the track, one of `CLASSES`, length and width (m), and by their states,
    see `Track`. They come in the order of these names.
    """
    if not np.isfinite(state_AT5[:, CURRENT_STEP, 0]).any():
        return []
    order = sorted(range(len(agents)), key=lambda a: agents[a][0])
    agents, state_AT5 = [agents[a] for a in order], state_AT5[order]
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
