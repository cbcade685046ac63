"""INTERACTION (Zhan et al. 2019): tracks at 10 Hz as CSV, maps as Lanelet2 OSM.

``vehicle_tracks_*.csv`` gives centres of boxes, ``psi_rad`` counter-clockwise from +x and times in
milliseconds; ``pedestrian_tracks_*.csv`` has neither headings nor sizes. Since version 1.2 there is one
file of both, ``<place>_train.csv`` and so on; it is known by its columns. Files with a ``case_id`` hold
many short cases, which are kept apart. The map of a recording is the one whose name its own begins with,
the only ``.osm`` beside it, or the one that is named like its folder. Nodes of a map are latitudes and
longitudes near 0, projected by UTM relative to the point (0, 0), as the data set's own tools do it.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from millrace.data.account import Account
from millrace.data.csv_table import read_header
from millrace.errors import DataError
from millrace.input_files import files_below, is_there
from millrace.systems.traffic.formats.recordings import (
    Converted,
    Track,
    classes,
    cut_scenarios,
    heading_of,
    read_columns,
    refuse_cell,
)
from millrace.systems.traffic.formats.xml_elements import elements
from millrace.systems.traffic.geometry import Floats, midline
from millrace.systems.traffic.tracks import Polyline

_NUMBERS = ("timestamp_ms", "x", "y", "vx", "vy")
_COLUMNS = ("track_id", "agent_type", *_NUMBERS)
_WALKER = 0.7  # m, length and width where none are given
_LINES = {
    "curbstone": "road_edge",
    "road_border": "road_edge",
    "guard_rail": "road_edge",
    "line_thin": "road_line",
    "line_thick": "road_line",
    "stop_line": "stop_line",
    "pedestrian_marking": "crosswalk",
    "zebra_marking": "crosswalk",
}


def find(source: Path) -> list[Path]:
    """Files of vehicles, by their names or columns, and files of pedestrians that have none beside."""
    found = []
    for path in files_below(source, "*.csv"):
        if path.name.startswith("pedestrian_tracks_"):
            if not is_there(path.with_name(path.name.replace("pedestrian", "vehicle"))):
                found.append(path)
        elif path.name.startswith("vehicle_tracks_") or {*_COLUMNS, "psi_rad"} <= {
            *read_header(path)
        }:
            found.append(path)
    return found


def beside(path: Path, source: Path) -> list[Path]:
    """The map of a recording, and its pedestrians, if it has some."""
    return [_map_of(path, source), path.with_name(path.name.replace("vehicle", "pedestrian", 1))]


def read(path: Path, source: Path, account: Account) -> Iterator[Converted]:
    """Read a recording, see `millrace.systems.traffic.formats.Adapter`."""
    folder, number = path.parent.name, path.stem.partition("_tracks_")[2]
    name = f"{folder}_{number}" if number else path.stem
    map_file = _map_of(path, source)
    road = read_map(map_file)
    walkers = path.with_name(path.name.replace("vehicle", "pedestrian", 1))
    frames = []
    if path.name != walkers.name or not number:
        frames.append(_read(path, ("psi_rad", "length", "width")))
    if number and is_there(walkers):
        frames.append(_read(walkers, ()))
    frame = pd.concat(frames, ignore_index=True)
    for column in ("psi_rad", "length", "width"):
        frame[column] = frame.get(column, np.nan)
    if "case_id" not in frame:
        frame["case_id"] = 0
    if frame["case_id"].isna().any():
        raise DataError(f"{path}: rows without a case_id; expected it in all of them, or in none")
    scenarios = []
    for case, rows in frame.groupby("case_id"):
        tracks = []
        for track, own in rows.groupby(rows["track_id"].astype(str)):
            if own["kind"].isna().any():
                account.leave_out("tracks", "of a type that is no road user")
            else:
                tracks.append(_track(str(track), own))
        scenarios += cut_scenarios(f"{name}_{case}", tracks, road, account=account)
    yield Converted(name, map_file, scenarios)


def _map_of(path: Path, source: Path) -> Path:
    """The map that is named like the beginning of a recording or its folder, or the only one beside."""
    maps = files_below(source, "*.osm")
    named = [m for m in maps if path.stem == m.stem or path.stem.startswith(f"{m.stem}_")]
    named = sorted(named, key=lambda m: len(m.stem))[-1:]
    beside = [m for m in maps if m.parent == path.parent]
    if not named and len(beside) == 1:
        named = beside
    named = named or [m for m in maps if m.stem == path.parent.name]
    if not named:
        raise DataError(
            f"{path}: no map; expected one .osm beside it, or maps/<place>.osm, where <place> is the name "
            f"of its folder ({path.parent.name}) or the beginning of its own"
        )
    return named[0]


def _read(path: Path, blanks: Sequence[str]) -> pd.DataFrame:
    """Observations of a file, with their ``kind``: one of `CLASSES`, or None."""
    frame = read_columns(path, _NUMBERS, ("track_id", "agent_type"), blanks)
    key = [name for name in ("case_id", "track_id", "timestamp_ms") if name in frame]
    again = frame.duplicated(key)
    refuse_cell(path, frame["timestamp_ms"], again, "each time of a track only once")
    kind = classes(path, frame["agent_type"])
    for name in blanks:
        missing = frame[name].isna() & (kind == "vehicle")
        refuse_cell(path, frame[name], missing, "a number; only pedestrians and bicycles have none")
    return frame.assign(kind=kind)


def _track(name: str, rows: pd.DataFrame) -> Track:
    rows = rows.sort_values("timestamp_ms")
    time = rows["timestamp_ms"].to_numpy(dtype=float) / 1000
    place = rows[["x", "y"]].to_numpy(dtype=float)
    heading = rows["psi_rad"].to_numpy(dtype=float)
    if np.isnan(heading).any():
        heading = heading_of(place, time)
    size = rows[["length", "width"]].iloc[0].tolist()
    length, width = (float(v) if np.isfinite(v) and v > 0 else _WALKER for v in size)
    kind = str(rows["kind"].iloc[0])
    velocity = rows[["vx", "vy"]].to_numpy(dtype=float)
    return Track(name, kind, length, width, time, np.column_stack([place, heading, velocity]))


def read_map(path: Path) -> tuple[Polyline, ...]:
    """Read the polylines of a Lanelet2 map; the lanelets say on which side of a border the road is.

    Raises
    ------
    DataError
        The file is not such a map.
    """
    try:
        origin = utm(0.0, 0.0)
        node, nodes_of, kind, relations = {}, {}, {}, {}
        for found in elements(path, "node", "way", "relation"):
            name = found.attrib["id"]
            if found.tag == "node":
                x, y = utm(float(found.attrib["lat"]), float(found.attrib["lon"]))
                if not math.isfinite(x + y):
                    raise ValueError(f"node {name} has no place")
                node[name] = (x - origin[0], y - origin[1])
            elif found.tag == "way":
                tags = {tag.attrib["k"]: tag.attrib["v"] for tag in found.iter("tag")}
                nodes_of[name] = [nd.attrib["ref"] for nd in found.iter("nd")]
                if tags.get("type") in _LINES:
                    kind[name] = _LINES[tags["type"]]
            else:
                sides = {m.attrib["role"]: m.attrib["ref"] for m in found.iter("member")}
                if {"left", "right"} <= sides.keys():
                    relations[name] = sides
        points = {name: np.array([node[one] for one in of]) for name, of in nodes_of.items()}
        lines, on_left = [], dict[str, bool]()
        for relation, sides in relations.items():
            for name in (sides["left"], sides["right"]):
                if len(points[name]) < 2:
                    raise ValueError(f"way {name} of a lanelet has no two points")
            middle = midline(*_same_way(points[sides["left"]], points[sides["right"]]))
            lines.append(Polyline(f"lane{relation}", "lane", middle))
            for name in (sides["left"], sides["right"]):
                on_left[name] = _is_left(points[name], middle.mean(axis=0))
        for name, line_type in kind.items():
            backward = line_type == "road_edge" and not on_left.get(name, True)
            line = points[name][::-1] if backward else points[name]
            if len(line) > 1:
                lines.append(Polyline(f"way{name}", line_type, line))
    except (KeyError, ValueError, ArithmeticError) as error:
        raise DataError(f"{path}: not a Lanelet2 map in OSM format ({error!r})") from error
    return tuple(lines)


def _same_way(left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Both borders of a lanelet in the direction in which ``left`` is on the left."""
    straight = np.linalg.norm(left[0] - right[0]) + np.linalg.norm(left[-1] - right[-1])
    crossed = np.linalg.norm(left[0] - right[-1]) + np.linalg.norm(left[-1] - right[0])
    if crossed < straight:
        right = right[::-1]
    if _is_left(right, left.mean(axis=0)):
        return left, right
    return left[::-1], right[::-1]


def _is_left(line: Floats, point: Floats) -> bool:
    along, offset = line[-1] - line[0], point - line[len(line) // 2]
    return bool(along[0] * offset[1] - along[1] * offset[0] > 0)


def utm(latitude: float, longitude: float) -> tuple[float, float]:
    """Easting and northing (m) in UTM zone 31, whose central meridian is 3 degrees east.

    Krüger's series to the third order in n on WGS 84 (Karney 2011, *J. Geodesy* 85, eq. 7 to 12, 35),
    accurate to a millimetre.
    """
    a, f = 6378137.0, 1 / 298.257223563
    n = f / (2 - f)
    radius = a / (1 + n) * (1 + n**2 / 4 + n**4 / 64)
    alpha = (n / 2 - 2 * n**2 / 3 + 5 * n**3 / 16, 13 * n**2 / 48 - 3 * n**3 / 5, 61 * n**3 / 240)
    phi, turn = math.radians(latitude), math.radians(longitude - 3.0)
    e = 2 * math.sqrt(n) / (1 + n)
    t = math.sinh(math.atanh(math.sin(phi)) - e * math.atanh(e * math.sin(phi)))
    north = xi = math.atan2(t, math.cos(turn))
    east = eta = math.asinh(math.sin(turn) / math.hypot(t, math.cos(turn)))
    for j, value in enumerate(alpha, start=1):
        east += value * math.cos(2 * j * xi) * math.sinh(2 * j * eta)
        north += value * math.sin(2 * j * xi) * math.cosh(2 * j * eta)
    return 500_000 + 0.9996 * radius * east, 0.9996 * radius * north
