"""Recorded traffic in CSV: tracks of road users, the map under them, and traffic lights.

    <base>/tracks/<name>.csv   scenario_id, track_id, object_type, timestep, position_x, position_y,
                               heading, velocity_x, velocity_y, length, width
    <base>/map/<name>.csv      polyline_id, type, position_x, position_y: the points of each line in order
    <base>/lights/<name>.csv   scenario_id, timestep, polyline_id, state; only where there are signals

Metres, radians (counter-clockwise from +x) and m/s; positions are those of the middle of the box. A
scenario has 91 steps of 0.1 s, of which step 10 is the present. All scenarios of a file share its map.
Argoverse 2 has the same columns of tracks, without the size. A road edge has the road on its left.

Shape suffixes: A road users, T steps, L polylines with a light, P points.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from millrace.data.csv_table import Table, read_header, read_table
from millrace.errors import DataError
from millrace.files import atomic_write

STEPS = 91
"""Steps of a scenario."""
PRESENT = 10
"""Step up to which the past is known."""
STEP_S = 0.1

CLASSES = ("vehicle", "pedestrian", "cyclist")
LINES = (
    "lane",
    "bike_lane",
    "road_edge",
    "road_line",
    "crosswalk",
    "stop_line",
    "speed_bump",
    "driveway",
)
LIGHTS = ("unknown", "red", "yellow", "green")

# Names of object types in the data sets that bring their own; what is not listed is left out.
_CLASS_OF = {
    "bus": "vehicle",
    "car": "vehicle",
    "truck": "vehicle",
    "motorcyclist": "cyclist",
    "bicycle": "cyclist",
    "pedestrian/bicycle": "pedestrian",
} | {name: name for name in CLASSES}

_NUMBERS = (
    "timestep",
    "position_x",
    "position_y",
    "heading",
    "velocity_x",
    "velocity_y",
    "length",
    "width",
)
TRACK_COLUMNS = ("scenario_id", "track_id", "object_type", *_NUMBERS)
MAP_COLUMNS = ("polyline_id", "type", "position_x", "position_y")
LIGHT_COLUMNS = ("scenario_id", "timestep", "polyline_id", "state")

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Polyline:
    """A line of the map."""

    name: str
    type: str
    """Of `LINES`."""
    points_P2: Floats
    """m"""


@dataclass(frozen=True, eq=False)
class Scene:
    """A scenario: who is where, for 9.1 s."""

    name: str
    track_A: tuple[str, ...]
    kind_A: NDArray[np.int8]
    """Index into `CLASSES`."""
    size_A2: Floats
    """Length and width (m)."""
    pose_AT3: Floats
    """x, y (m), heading (rad); NaN where a road user is not seen."""
    velocity_AT2: Floats
    """m/s"""
    road: tuple[Polyline, ...]
    lights: dict[str, NDArray[np.int8]]
    """Index into `LIGHTS` at each step, int8[T], by polyline."""

    @property
    def seen_AT(self) -> NDArray[np.bool_]:
        """Where a road user is seen."""
        return np.isfinite(self.pose_AT3[..., 0])


@dataclass(frozen=True)
class TrackFiles:
    """One recording: files of one name."""

    tracks: Path
    map: Path
    lights: Path | None


def find_recordings(base: Path) -> list[TrackFiles]:
    """List the recordings of a directory by name.

    Raises
    ------
    DataError
        There is none, or one has no map.
    """
    base = Path(base)
    tracks = sorted(p for p in (base / "tracks").glob("*.csv*") if not p.name.startswith("."))
    if not tracks:
        raise DataError(
            f"{base / 'tracks'}: no files; expected tracks as CSV, one file a recording"
        )
    found = []
    for path in tracks:
        stem = path.name.split(".csv")[0]
        road, lights = _beside(base / "map", stem), _beside(base / "lights", stem)
        if road is None:
            raise DataError(f"{base / 'map' / stem}.csv: no such file; expected the map of {path}")
        found.append(TrackFiles(path, road, lights))
    return found


def _beside(folder: Path, stem: str) -> Path | None:
    return next(
        (p for p in (folder / f"{stem}.csv", folder / f"{stem}.csv.gz") if p.exists()), None
    )


def read_recording(files: TrackFiles) -> Iterator[Scene]:
    """Read the scenarios of a recording, in the order in which they begin in its file.

    Raises
    ------
    DataError
        With ``file:line:column`` and what was expected.
    """
    road = read_map(files.map)
    lights = _read_lights(files.lights, road) if files.lights is not None else {}
    table = read_table(files.tracks, _NUMBERS)
    text = _text(table, ("scenario_id", "track_id", "object_type"))
    _check_tracks(table, text)
    kinds = text["object_type"].map(_CLASS_OF)
    known = kinds.notna().to_numpy()
    for name, rows in text[known].groupby("scenario_id", sort=False).indices.items():
        index = np.flatnonzero(known)[rows]
        yield _scene(str(name), table, text, index, road, lights.get(str(name), {}))


def _check_tracks(table: Table, text: pd.DataFrame) -> None:
    step = table.columns["timestep"]
    wrong = np.flatnonzero((step != np.floor(step)) | (step < 0) | (step >= STEPS))
    if len(wrong):
        row = int(wrong[0])
        raise table.error(
            row, "timestep", f"timestep {step[row]:g}; expected an integer from 0 to {STEPS - 1}"
        )
    for name in ("length", "width"):
        wrong = np.flatnonzero(table.columns[name] <= 0)
        if len(wrong):
            raise table.error(int(wrong[0]), name, f"{name} of 0 or less; expected metres")
    twice = pd.DataFrame(
        {"scenario": text["scenario_id"], "track": text["track_id"], "step": step}
    ).duplicated()
    if twice.any():
        row = int(np.argmax(twice))
        raise table.error(
            row, "timestep", f"timestep {step[row]:g} of this track again; expected one row a step"
        )


def _scene(
    name: str,
    table: Table,
    text: pd.DataFrame,
    rows: NDArray[np.int64],
    road: tuple[Polyline, ...],
    lights: dict[str, NDArray[np.int8]],
) -> Scene:
    tracks, first, agent = np.unique(
        text["track_id"].to_numpy()[rows].astype(str), return_index=True, return_inverse=True
    )
    step = table.columns["timestep"][rows].astype(np.int64)
    pose = np.full((len(tracks), STEPS, 3), np.nan)
    velocity = np.full((len(tracks), STEPS, 2), np.nan)
    for values, columns in (
        (pose, ("position_x", "position_y", "heading")),
        (velocity, ("velocity_x", "velocity_y")),
    ):
        values[agent, step] = np.stack([table.columns[c][rows] for c in columns], axis=1)
    kinds = text["object_type"].to_numpy()[rows[first]]
    return Scene(
        name=name,
        track_A=tuple(tracks.tolist()),
        kind_A=np.array([CLASSES.index(_CLASS_OF[k]) for k in kinds], dtype=np.int8),
        size_A2=np.stack([table.columns[c][rows[first]] for c in ("length", "width")], axis=1),
        pose_AT3=pose,
        velocity_AT2=velocity,
        road=road,
        lights=lights,
    )


def read_map(path: Path) -> tuple[Polyline, ...]:
    """Read the lines of a map.

    Raises
    ------
    DataError
        With ``file:line:column``: unknown type, a line with less than two points or of two types.
    """
    table = read_table(path, ("position_x", "position_y"))
    text = _text(table, ("polyline_id", "type"))
    unknown = np.flatnonzero(~text["type"].isin(LINES))
    if len(unknown):
        row = int(unknown[0])
        raise table.error(
            row, "type", f"type {text['type'][row]!r}; expected one of {', '.join(LINES)}"
        )
    points = np.stack([table.columns["position_x"], table.columns["position_y"]], axis=1)
    lines = []
    for name, rows in text.groupby("polyline_id", sort=False).indices.items():
        types = text["type"].to_numpy()[rows]
        other = np.flatnonzero(types != types[0])
        if len(other):
            raise table.error(int(rows[other[0]]), "type", f"expected {types[0]!r} as above")
        if len(rows) < 2:
            raise table.error(int(rows[0]), "polyline_id", "a line of one point; expected two")
        lines.append(Polyline(str(name), str(types[0]), points[rows]))
    return tuple(lines)


def _read_lights(path: Path, road: Sequence[Polyline]) -> dict[str, dict[str, NDArray[np.int8]]]:
    """States of the lights by scenario and polyline; 'unknown' where none is given."""
    table = read_table(path, ("timestep",))
    text = _text(table, ("scenario_id", "polyline_id", "state"))
    for column, allowed in (("state", LIGHTS), ("polyline_id", [line.name for line in road])):
        unknown = np.flatnonzero(~text[column].isin(allowed))
        if len(unknown):
            row = int(unknown[0])
            what = f"one of {', '.join(LIGHTS)}" if column == "state" else "a line of the map"
            raise table.error(row, column, f"{text[column][row]!r}; expected {what}")
    step = table.columns["timestep"]
    wrong = np.flatnonzero((step != np.floor(step)) | (step < 0) | (step >= STEPS))
    if len(wrong):
        raise table.error(int(wrong[0]), "timestep", f"expected an integer from 0 to {STEPS - 1}")
    states: dict[str, dict[str, NDArray[np.int8]]] = {}
    for key, rows in text.groupby(["scenario_id", "polyline_id"], sort=False).indices.items():
        scenario, line = (str(part) for part in key)  # type: ignore[attr-defined]
        series = np.zeros(STEPS, dtype=np.int8)
        series[step[rows].astype(np.int64)] = [
            LIGHTS.index(state) for state in text["state"].to_numpy()[rows]
        ]
        states.setdefault(scenario, {})[line] = series
    return states


def _text(table: Table, columns: Sequence[str]) -> pd.DataFrame:
    """Columns of a table as text."""
    header = read_header(table.path)
    missing = next((name for name in columns if name not in header), None)
    if missing is not None:
        raise DataError(
            f"{table.path}:1:1: no column {missing!r}; expected {', '.join(columns)} and more"
        )
    return pd.read_csv(
        io.BytesIO(table.content), usecols=list(columns), dtype=str, keep_default_na=False
    )


def write_recording(base: Path, name: str, scenes: Sequence[Scene]) -> None:
    """Write scenes that share a map as a recording.

    Raises
    ------
    OutputError
        The file system refuses to take it.
    """
    rows, lights = [], []
    for scene in scenes:
        agent, step = np.nonzero(scene.seen_AT)
        pose, velocity = scene.pose_AT3[agent, step], scene.velocity_AT2[agent, step]
        rows.append(
            pd.DataFrame(
                {
                    "scenario_id": scene.name,
                    "track_id": np.array(scene.track_A)[agent],
                    "object_type": np.array(CLASSES)[scene.kind_A[agent]],
                    "timestep": step,
                    **dict(zip(_NUMBERS[1:6], (*pose.T, *velocity.T), strict=True)),
                    "length": scene.size_A2[agent, 0],
                    "width": scene.size_A2[agent, 1],
                    "observed": (step <= PRESENT).astype(int),
                }
            )
        )
        for line, series in scene.lights.items():
            lights.append(
                pd.DataFrame(
                    {
                        "scenario_id": scene.name,
                        "timestep": np.arange(STEPS),
                        "polyline_id": line,
                        "state": np.array(LIGHTS)[series],
                    }
                )
            )
    road = [
        pd.DataFrame(
            {
                "polyline_id": line.name,
                "type": line.type,
                "position_x": line.points_P2[:, 0],
                "position_y": line.points_P2[:, 1],
            }
        )
        for line in scenes[0].road
    ]
    for folder, frames in (("tracks", rows), ("map", road), ("lights", lights)):
        if frames:
            with atomic_write(Path(base) / folder / f"{name}.csv") as partial:
                pd.concat(frames).to_csv(partial, index=False, float_format="%.4f")
