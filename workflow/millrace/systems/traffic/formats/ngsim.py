"""NGSIM trajectories (US DOT): feet, at 10 Hz, of stretches of road without a map.

``Local_X`` is measured from the left edge of the road to the right, ``Local_Y`` along the road; both refer
to the middle of the *front* of a vehicle. There is no heading: it is the direction of the path. Lanes are
drawn where their vehicles are, and as these go: ``Direction`` tells the directions of arterial roads apart.
Places of one file, by ``Location``, become recordings of their own. Capitals of the names do not matter
(``v_length`` in the download of data.transportation.gov).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from millrace.data.account import Account
from millrace.data.units import factor
from millrace.errors import DataError
from millrace.systems.traffic.formats.recordings import (
    Converted,
    Track,
    cut_scenarios,
    heading_of,
    read_columns,
    refuse_cell,
)
from millrace.systems.traffic.geometry import Floats, unit
from millrace.systems.traffic.tracks import Polyline

_FOOT = factor("foot", "m")
_LANE = 3.66  # m, 12 feet
_COLUMNS: tuple[str, ...] = ("Vehicle_ID", "Global_Time", "Local_X", "Local_Y")
_COLUMNS += ("v_Length", "v_Width", "v_Class", "Lane_ID")
_CLASS = {1: "cyclist", 2: "vehicle", 3: "vehicle"}  # 1 are motorcycles, as in Argoverse 2
_CLASSES = "1 (motorcycle), 2 (car) or 3 (truck)"
_OPTIONAL = ("Location", "Direction", "Global_X", "Global_Y")
_WAYS: dict[Any, str] = {1: "eastbound", 2: "northbound", 3: "westbound", 4: "southbound"}
_CAR = 2
_SHORTEST = 8.0  # feet, median of cars
_PLACE = 20_000.0  # m, no recorded road is longer
_ABSURD = 1e7  # m
_BACK = 5.0  # m
_STREET = 30.0  # m, between cross streets
_SMOOTH = 5  # observations: positions are rough, headings must not be


def read(path: Path, source: Path, account: Account) -> Iterator[Converted]:
    """Read recordings, one of each place, see `millrace.systems.traffic.formats.Adapter`."""
    whole = read_columns(path, _COLUMNS)
    for name in _OPTIONAL:
        same = [column for column in whole.columns if column.casefold() == name.casefold()]
        whole = whole.rename(columns=dict.fromkeys(same, name))
    refuse_cell(path, whole["v_Class"], ~whole["v_Class"].isin(list(_CLASS)), _CLASSES)
    _check_feet(path, whole)
    places = [(path.stem, whole)]
    if "Location" in whole and whole["Location"].nunique(dropna=False) > 1:
        refuse_cell(path, whole["Location"], whole["Location"].isna(), "the name of a place")
        named = whole["Location"].astype(str).str.strip()
        places = [(f"{path.stem}_{name}", whole[named == name]) for name in sorted(named.unique())]
    for label, frame in places:
        frame = frame.assign(x=frame["Local_Y"] * _FOOT, y=-frame["Local_X"] * _FOOT)
        _check_place(path, frame)
        tracks, ways = [], []
        ordered = frame.sort_values("Global_Time").drop_duplicates(["Vehicle_ID", "Global_Time"])
        account.leave_out("observations", "given twice", len(frame) - len(ordered))
        for vehicle, rows in ordered.groupby("Vehicle_ID"):
            # A number is given to another vehicle once its vehicle has left.
            time = rows["Global_Time"].to_numpy(dtype=float) / 1000
            parts = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(time) > 10) + 1)
            for visit, part in enumerate(parts):
                tracks.append(_track(f"{vehicle}_{visit}", rows.iloc[part], time[part]))
                ways.append(_ways(rows.iloc[part]))
        frame = frame.assign(way=pd.concat(ways)).sort_values("Global_Time", kind="stable")
        given_twice = frame.groupby(["Vehicle_ID", "Global_Time"])["way"]
        road = _road(frame.assign(way=given_twice.transform("first")))
        yield Converted(label, path, cut_scenarios(label, tracks, road, account=account))


def _check_feet(path: Path, frame: pd.DataFrame) -> None:
    """Refuse lengths that cannot be feet."""
    length = float(frame.loc[frame["v_Class"] == _CAR, "v_Length"].median())
    if length < _SHORTEST:
        raise DataError(
            f"{path}: cars have a v_Length of {length:g}, probably metres; expected feet, as NGSIM gives "
            "all lengths"
        )


def _check_place(path: Path, frame: pd.DataFrame) -> None:
    """Refuse two places under one name, and conflicting rows; raises `DataError`."""
    for axis, name in (("x", "Local_Y"), ("y", "Local_X")):
        far = frame[axis].abs() / _FOOT
        refuse_cell(path, far.rename(name), far > _ABSURD / _FOOT, "feet on a stretch of road")
    for axis in ("Global_X", "Global_Y"):
        if axis in frame:
            place = pd.to_numeric(frame[axis], errors="coerce")
            if (apart := float(place.max() - place.min()) * _FOOT) > _PLACE:
                raise DataError(
                    f"{path}: {axis} reaches from {place.min():.0f} to {place.max():.0f} feet, "
                    f"{apart / 1000:.1f} km; expected one place, or a column Location that tells them apart"
                )
    key = ["Vehicle_ID", "Global_Time"]
    same = frame.drop_duplicates([*key, "Local_X", "Local_Y"])
    again = same.duplicated(key)
    refuse_cell(path, same["Global_Time"], again, "one position of a vehicle at a time")


def _ways(rows: pd.DataFrame) -> pd.Series:
    """Direction of the observations of a vehicle: as given, or else whether it goes back along y."""
    if "Direction" in rows:
        return rows["Direction"]
    back = rows["x"].iloc[-1] - rows["x"].iloc[0] < -_BACK
    return pd.Series("backward" if back else "forward", index=rows.index)


def _track(name: str, rows: pd.DataFrame, time_N: Floats) -> Track:
    front = rows[["x", "y"]].to_numpy(dtype=float)
    length, width = (float(rows[c].median()) * _FOOT for c in ("v_Length", "v_Width"))
    smooth = pd.DataFrame(front).rolling(_SMOOTH, center=True, min_periods=1).mean().to_numpy()
    heading = heading_of(smooth, time_N)
    middle = front - length / 2 * unit(heading)
    velocity = np.gradient(smooth, time_N, axis=0) if len(time_N) > 1 else np.zeros_like(middle)
    kind = _CLASS[int(rows["v_Class"].iloc[0])]
    state_N5 = np.column_stack([middle, heading, velocity])
    return Track(name, kind, length, width, time_N, state_N5)


def _road(frame: pd.DataFrame) -> tuple[Polyline, ...]:
    """Lanes at the median of their vehicles, every 20 m, each where and as its vehicles go.

    Road edges lie beside the outer lanes along the road, and are open where other streets cross it.
    """
    low, high = frame["x"].min() - 10, frame["x"].max() + 10
    x = np.arange(low, high, 20.0)
    alone = frame["way"].nunique() == 1
    along, lanes = [], []
    streets: list[tuple[float, float]] = []
    for (way, lane), rows in frame.groupby(["way", "Lane_ID"]):
        if lane == 0 and not alone:  # inside intersections
            continue
        name = f"lane{lane}" if alone else f"lane{lane}_{_WAYS.get(way, way)}"
        visits = rows.groupby("Vehicle_ID")[["x", "y"]]
        gone = (visits.last() - visits.first()).sum()
        if abs(gone["x"]) >= abs(gone["y"]):
            y = _medians(rows["x"], rows["y"], low, len(x))
            along.append(y)
            points = np.column_stack([x, y])
            lanes.append(Polyline(name, "lane", points[::-1] if gone["x"] < 0 else points))
            continue
        # Each cross street is another one.
        order = rows.sort_values("x")
        street = (order["x"].diff() > _STREET).cumsum()
        for place, part in order.groupby(street):
            streets.append((part["x"].min() - _LANE, part["x"].max() + _LANE))
            begin = part["y"].min()
            y = np.arange(begin, part["y"].max() + 20.0, 20.0)
            points = np.column_stack([_medians(part["y"], part["x"], begin, len(y)), y])
            line = points[::-1] if gone["y"] < 0 else points
            lanes.append(Polyline(f"{name}_{place}", "lane", line))
    if not along:
        return tuple(line for line in lanes if len(line.points_P2) > 1)
    outer = sorted(along, key=lambda y: float(np.mean(y)))
    right, left = outer[0] - _LANE / 2, outer[-1] + _LANE / 2
    for side, y in (("right", right), ("left", left)):
        pieces = _outside(streets, x[0], x[-1])
        for number, (begin, end) in enumerate(pieces):
            inside = np.concatenate([[begin], x[(x > begin) & (x < end)], [end]])
            points = np.column_stack([inside, np.interp(inside, x, y)])
            name = side if len(pieces) == 1 else f"{side}{number}"
            lanes.append(Polyline(name, "road_edge", points[::-1] if side == "left" else points))
    return tuple(lanes)


def _outside(
    intervals: Sequence[tuple[float, float]], begin: float, end: float
) -> list[tuple[float, float]]:
    """What intervals leave over of a longer one."""
    found = []
    for low, high in sorted(intervals):
        if low > begin:
            found.append((begin, min(low, end)))
        begin = max(begin, high)
    return [*found, (begin, end)] if begin < end else found


def _medians(at: pd.Series, value: pd.Series, begin: float, bins: int) -> Floats:
    """Medians in bins of 20 m, interpolated where there is none."""
    medians = value.groupby(np.round((at - begin) / 20).astype(int)).median()
    return np.interp(np.arange(bins), medians.index, medians.to_numpy())
