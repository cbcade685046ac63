"""Recorded traffic as CSV files: tracks of agents, the map below them, and states of traffic lights.

    <base>/tracks/<name>.csv   scenario_id, track_id, object_type, timestep, position_x, position_y,
                               heading, velocity_x, velocity_y, length, width
    <base>/map/<name>.csv      polyline_id, type, position_x, position_y; points of a polyline in order
    <base>/lights/<name>.csv   scenario_id, timestep, polyline_id, state; only if there are traffic lights
    <base>/splits.csv          scenario_id, split; only if the data set says what is training and test

Units are metres, radians (counter-clockwise from +x) and m/s; a position is the centre of the agent's box.
A scenario has 91 steps of 0.1 s; steps 0 to 10 are the observed history, and step 10 is the current step.
All scenarios of a file share its map, in which a road edge has the road on its left. Argoverse 2 has the
same columns of tracks, without the size.

Shape suffixes: A agents, T steps, P points.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from millrace.data.account import Account
from millrace.data.csv_table import CsvTable, read_header, read_table
from millrace.errors import DataError
from millrace.files import atomic_write
from millrace.input_files import is_there
from millrace.systems.traffic.geometry import Floats

STEPS = 91
"""Steps of a scenario."""
CURRENT_STEP = 10
"""The last observed step: what follows is to be predicted."""
STEP_S = 0.1

CLASSES = ("vehicle", "pedestrian", "cyclist")
"""Classes of agents."""
LINE_TYPES: tuple[str, ...] = (
    "lane",
    "bike_lane",
    "road_edge",
    "road_line",
    "crosswalk",
    "stop_line",
    "speed_bump",
)
LINE_TYPES += ("driveway",)
LIGHT_STATES = ("unknown", "red", "yellow", "green")

_ROAD_USERS: dict[str, str] = {
    "bus": "vehicle",
    "car": "vehicle",
    "truck": "vehicle",
    "motorcyclist": "cyclist",
    "bicycle": "cyclist",
    "pedestrian/bicycle": "pedestrian",
} | {name: name for name in CLASSES}
_OTHERS = ("static", "background", "construction", "riderless_bicycle", "unknown")
CLASS_OF: dict[str, str | None] = {**_ROAD_USERS, **dict.fromkeys(_OTHERS)}
"""Class of each object type of public data sets, in small letters; None: no road user, left out."""

_BLANK = ("", "na", "nan", "null", "none", "?")

_NUMBERS: tuple[str, ...] = (
    "timestep",
    "position_x",
    "position_y",
    "heading",
    "velocity_x",
    "velocity_y",
)
_NUMBERS += ("length", "width")


@dataclass(frozen=True, eq=False)
class Polyline:
    """A line of the map."""

    name: str
    type: str
    """One of `LINE_TYPES`."""
    points_P2: Floats
    """x, y (m)."""


@dataclass(frozen=True, eq=False)
class Scenario:
    """Poses of all agents for 9.1 s, with the map and the traffic lights."""

    name: str
    track_A: tuple[str, ...]
    kind_A: NDArray[np.int8]
    """Class, an index into `CLASSES`."""
    size_A2: Floats
    """Length and width (m)."""
    pose_AT3: Floats
    """x, y (m), heading (rad); NaN where an agent is not observed."""
    velocity_AT2: Floats
    """m/s"""
    road: tuple[Polyline, ...]
    """The map."""
    lights: dict[str, NDArray[np.int8]]
    """Index into `LIGHT_STATES` at each step, int8[T], by the name of the polyline."""

    @property
    def observed_AT(self) -> NDArray[np.bool_]:
        """Where an agent is observed."""
        return np.isfinite(self.pose_AT3[..., 0])


@dataclass(frozen=True)
class Recording:
    """The files of one name, which hold consecutive scenarios of one place."""

    tracks: Path
    map: Path
    lights: Path | None


def find_recordings(base: Path) -> list[Recording]:
    """List the recordings of a directory by name.

    Raises
    ------
    DataError
        There is none, or one has no map.
    """
    base = Path(base)
    tracks = sorted(
        path
        for path in (base / "tracks").glob("*.csv*")
        if not path.name.startswith(".") and path.name.removesuffix(".gz").endswith(".csv")
    )
    if not tracks:
        raise DataError(f"{base}/tracks: no files; expected tracks as CSV, one file a recording")
    found = []
    for path in tracks:
        stem = path.name.removesuffix(".gz").removesuffix(".csv")
        road, lights = (_find(base / folder / f"{stem}.csv") for folder in ("map", "lights"))
        if road is None:
            raise DataError(f"{base}/map/{stem}.csv: no such file; expected the map of {path}")
        found.append(Recording(path, road, lights))
    return found


def _find(path: Path) -> Path | None:
    return next((p for p in (path, path.with_suffix(".csv.gz")) if is_there(p)), None)


def read_recording(files: Recording, account: Account | None = None) -> Iterator[Scenario]:
    """Read the scenarios of a recording, in the order in which they begin in its file.

    Objects that are no road users are left out, and counted in ``account``.

    Raises
    ------
    DataError
        With ``file:line:column`` and what was expected.
    """
    road = read_map(files.map)
    lights = _read_lights(files.lights, road) if files.lights is not None else {}
    table = read_table(files.tracks, _NUMBERS)
    text = _text(table, ("scenario_id", "track_id", "object_type"))
    _check_steps(table)
    for name in ("length", "width"):
        _refuse(table, name, table.columns[name], table.columns[name] <= 0, "metres above 0")
    key = text[["scenario_id", "track_id"]].assign(step=table.columns["timestep"])
    again = key.duplicated().to_numpy()
    _refuse(table, "timestep", key["step"], again, "each step of a track only once")
    kind = _classes(table, text)
    known = np.flatnonzero(kind >= 0)
    if account is not None:
        tracks_of = text[["scenario_id", "track_id"]]
        account.keep("tracks", len(tracks_of.iloc[known].drop_duplicates()))
        others = tracks_of.assign(type=text["object_type"])[kind < 0].drop_duplicates()
        for kind_name, number in others["type"].value_counts().items():
            account.leave_out("tracks", f"of the type {kind_name!r}, no road users", int(number))
    for scenario, index in text.iloc[known].groupby("scenario_id", sort=False).indices.items():
        rows = known[index]
        names = text["track_id"].to_numpy()[rows].astype(str)
        tracks, first, agent = np.unique(names, return_index=True, return_inverse=True)
        numbers = np.stack([table.columns[column][rows] for column in _NUMBERS], axis=1)
        state = np.full((len(tracks), STEPS, 5), np.nan)
        state[agent, numbers[:, 0].astype(np.int64)] = numbers[:, 1:6]
        yield Scenario(
            name=str(scenario),
            track_A=tuple(tracks.tolist()),
            kind_A=kind[rows[first]],
            size_A2=numbers[first, 6:],
            pose_AT3=state[..., :3],
            velocity_AT2=state[..., 3:],
            road=road,
            lights=lights.get(str(scenario), {}),
        )


def _classes(table: CsvTable, text: pd.DataFrame) -> NDArray[np.int8]:
    """Class of each row, an index into `CLASSES`; -1 for objects that are no road users."""
    types = text["object_type"].str.strip().str.lower()
    allowed = "a type of road users, one of " + ", ".join(_ROAD_USERS)
    _refuse(table, "object_type", text["object_type"], ~types.isin(list(CLASS_OF)), allowed)
    of_track = types.groupby([text["scenario_id"], text["track_id"]]).transform("first")
    other = (types.map(CLASS_OF) != of_track.map(CLASS_OF)) & types.map(CLASS_OF).notna()
    _refuse(table, "object_type", text["object_type"], other, "one type for a whole track")
    numbers = {name: -1 if kind is None else CLASSES.index(kind) for name, kind in CLASS_OF.items()}
    return np.array([numbers[name] for name in types], dtype=np.int8)


def read_map(path: Path) -> tuple[Polyline, ...]:
    """Read the polylines of a map.

    Raises
    ------
    DataError
        With ``file:line:column``: unknown type, or a polyline of fewer than two points or of two types.
    """
    table = read_table(path, ("position_x", "position_y"))
    text = _text(table, ("polyline_id", "type"))
    allowed = f"one of {', '.join(LINE_TYPES)}"
    _refuse(table, "type", text["type"], ~text["type"].isin(LINE_TYPES), allowed)
    groups = text.groupby("polyline_id", sort=False)
    types = groups["type"].transform("first")
    _refuse(table, "type", text["type"], text["type"] != types, "one type for a whole polyline")
    single = groups["type"].transform("size") < 2
    _refuse(table, "polyline_id", text["polyline_id"], single, "two or more points of a polyline")
    points = np.stack([table.columns["position_x"], table.columns["position_y"]], axis=1)
    return tuple(
        Polyline(str(name), str(types[rows[0]]), points[rows])
        for name, rows in groups.indices.items()
    )


def _read_lights(path: Path, road: Sequence[Polyline]) -> dict[str, dict[str, NDArray[np.int8]]]:
    """States of the lights by scenario and polyline; 'unknown' where none is given."""
    table = read_table(path, ("timestep",))
    text = _text(table, ("scenario_id", "polyline_id", "state"))
    allowed = f"one of {', '.join(LIGHT_STATES)}"
    _refuse(table, "state", text["state"], ~text["state"].isin(LIGHT_STATES), allowed)
    elsewhere = ~text["polyline_id"].isin([line.name for line in road])
    _refuse(table, "polyline_id", text["polyline_id"], elsewhere, "a polyline of the map")
    _check_steps(table)
    step = table.columns["timestep"].astype(np.int64)
    state = text["state"].map(LIGHT_STATES.index).to_numpy()
    states: dict[str, dict[str, NDArray[np.int8]]] = {}
    for key, rows in text.groupby(["scenario_id", "polyline_id"], sort=False).indices.items():
        scenario, line = (str(part) for part in key)  # type: ignore[attr-defined]
        series = np.zeros(STEPS, dtype=np.int8)
        series[step[rows]] = state[rows]
        states.setdefault(scenario, {})[line] = series
    return states


def read_splits(path: Path, allowed: Sequence[str]) -> dict[str, str]:
    """Read the split of each scenario.

    Raises
    ------
    DataError
        With ``file:line:column``: a split that is not allowed, or a scenario twice.
    """
    table = read_table(path, ())
    text = _text(table, ("scenario_id", "split"))
    wrong = ~text["split"].isin(allowed)
    _refuse(table, "split", text["split"], wrong, f"one of {', '.join(allowed)}")
    again = text["scenario_id"].duplicated()
    _refuse(table, "scenario_id", text["scenario_id"], again, "each scenario only once")
    return dict(zip(text["scenario_id"], text["split"], strict=True))


def _text(table: CsvTable, columns: Sequence[str]) -> pd.DataFrame:
    """Columns of a whole table as text; identifiers are not blank."""
    header = read_header(table.path)
    missing = [name for name in columns if name not in header]
    if missing:
        raise DataError(
            f"{table.path}:1:1: no column {missing[0]!r}; expected {', '.join(columns)} and more"
        )
    if not table.complete:
        raise DataError(
            f"{table.end()}: the last line does not end, and the file may be cut in it; copy it again, or "
            "end the line if it is whole"
        )
    content = io.BytesIO(table.content)
    text = pd.read_csv(content, usecols=list(columns), dtype=str, keep_default_na=False)
    for name in columns:
        if name.endswith("_id"):
            blank = text[name].str.strip().str.lower().isin(_BLANK)
            _refuse(table, name, text[name], blank, "a name")
    return text


def _check_steps(table: CsvTable) -> None:
    step = table.columns["timestep"]
    wrong = (step != np.floor(step)) | (step < 0) | (step >= STEPS)
    _refuse(table, "timestep", step, wrong, f"an integer from 0 to {STEPS - 1}")


def _refuse(table: CsvTable, column: str, cells: Any, wrong: Any, expected: str) -> None:
    """Raise `DataError` about the first cell of a column that is wrong, if there is one."""
    if np.any(wrong):
        cell = cells[row := int(np.argmax(wrong))]
        shown = repr(cell) if isinstance(cell, str) else f"{cell:g}"
        raise table.error(row, column, f"{column} {shown}; expected {expected}")


def write_recording(base: Path, name: str, scenarios: Sequence[Scenario]) -> None:
    """Write scenarios that share a map as a recording.

    Raises
    ------
    OutputError
        The file system refuses to take it.
    """
    tracks, lights = [], []
    for one in scenarios:
        agent, step = np.nonzero(one.observed_AT)
        numbers = [step, *one.pose_AT3[agent, step].T, *one.velocity_AT2[agent, step].T]
        numbers += [*one.size_A2[agent].T]
        columns: dict[str, Any] = {
            "scenario_id": one.name,
            "track_id": np.array(one.track_A)[agent],
            "object_type": np.array(CLASSES)[one.kind_A[agent]],
            **dict(zip(_NUMBERS, numbers, strict=True)),
            "observed": (step <= CURRENT_STEP).astype(int),
        }
        tracks.append(pd.DataFrame(columns))
        for line, series in one.lights.items():
            columns = {"scenario_id": one.name, "timestep": np.arange(STEPS), "polyline_id": line}
            lights.append(pd.DataFrame(columns | {"state": np.array(LIGHT_STATES)[series]}))
    road = []
    for polyline in scenarios[0].road:
        x, y = polyline.points_P2.T
        columns = {"polyline_id": polyline.name, "type": polyline.type}
        road.append(pd.DataFrame(columns | {"position_x": x, "position_y": y}))
    for folder, frames in (("tracks", tracks), ("map", road), ("lights", lights)):
        if frames:
            with atomic_write(Path(base) / folder / f"{name}.csv") as partial:
                pd.concat(frames).to_csv(partial, index=False, float_format="%.4f")
