"""INTERACTION (Zhan et al. 2019): tracks at 10 Hz as CSV, maps as Lanelet2 OSM.

``vehicle_tracks_*.csv`` gives centres of boxes, ``psi_rad`` counter-clockwise from +x and times in
milliseconds; ``pedestrian_tracks_*.csv`` has neither headings nor sizes. Files with a ``case_id`` hold many
short cases, which are kept apart. The map of a recording is the only ``.osm`` beside it, or the one that is
named like its folder. Nodes of a map are latitudes and longitudes near 0, projected by UTM relative to the
point (0, 0), as the data set's own tools do it.
"""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from millrace.errors import DataError
from millrace.systems.traffic.formats.recordings import (
    Track,
    cut_scenarios,
    heading_of,
    read_columns,
)
from millrace.systems.traffic.geometry import Floats, midline
from millrace.systems.traffic.tracks import Polyline, Scenario

_COLUMNS = ("track_id", "timestamp_ms", "agent_type", "x", "y", "vx", "vy")
_CLASS = {"pedestrian": "pedestrian", "bicycle": "cyclist", "pedestrian/bicycle": "pedestrian"}
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


def read(path: Path, source: Path) -> Iterator[tuple[str, list[Scenario]]]:
    """Read a recording, see `millrace.systems.traffic.formats.Adapter`."""
    place = path.parent.name
    maps = sorted(path.parent.glob("*.osm"))
    if len(maps) != 1:
        maps = [p for p in sorted(source.rglob("*.osm")) if p.stem == place]
    if not maps:
        raise DataError(f"{path}: no map; expected one .osm beside it, or maps/{place}.osm")
    road = read_map(maps[0])
    frames = [read_columns(path, (*_COLUMNS, "psi_rad", "length", "width"))]
    walkers = path.with_name(path.name.replace("vehicle", "pedestrian"))
    if walkers.is_file():
        frames.append(read_columns(walkers, _COLUMNS))
    frame = pd.concat(frames, ignore_index=True)
    if "case_id" not in frame:
        frame["case_id"] = 0
    name = f"{place}_{path.stem.removeprefix('vehicle_tracks_')}"
    scenarios = []
    for case, rows in frame.groupby("case_id"):
        tracks = [_track(str(t), r) for t, r in rows.groupby(rows["track_id"].astype(str))]
        scenarios += cut_scenarios(f"{name}_{case}", tracks, road)
    yield name, scenarios


def _track(name: str, rows: pd.DataFrame) -> Track:
    rows = rows.sort_values("timestamp_ms")
    time = rows["timestamp_ms"].to_numpy(dtype=float) / 1000
    place = rows[["x", "y"]].to_numpy(dtype=float)
    heading = rows["psi_rad"].to_numpy(dtype=float)
    if np.isnan(heading).any():
        heading = heading_of(place, time)
    size = rows[["length", "width"]].iloc[0].tolist()
    length, width = (float(v) if np.isfinite(v) and v > 0 else _WALKER for v in size)
    kind = _CLASS.get(str(rows["agent_type"].iloc[0]), "vehicle")
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
        tree = ElementTree.parse(path).getroot()
        origin = utm(0.0, 0.0)
        node = {}
        for found in tree.iter("node"):
            x, y = utm(float(found.attrib["lat"]), float(found.attrib["lon"]))
            node[found.attrib["id"]] = (x - origin[0], y - origin[1])
        points, kind = {}, {}
        for way in tree.iter("way"):
            tags = {tag.attrib["k"]: tag.attrib["v"] for tag in way.iter("tag")}
            name = way.attrib["id"]
            points[name] = np.array([node[nd.attrib["ref"]] for nd in way.iter("nd")])
            if tags.get("type") in _LINES:
                kind[name] = _LINES[tags["type"]]
        lines, on_left = [], dict[str, bool]()
        for relation in tree.iter("relation"):
            sides = {m.attrib["role"]: m.attrib["ref"] for m in relation.iter("member")}
            if not {"left", "right"} <= sides.keys():
                continue
            middle = midline(*_same_way(points[sides["left"]], points[sides["right"]]))
            lines.append(Polyline(f"lane{relation.attrib['id']}", "lane", middle))
            for name in (sides["left"], sides["right"]):
                on_left[name] = _is_left(points[name], middle.mean(axis=0))
        for name, line_type in kind.items():
            backward = line_type == "road_edge" and not on_left.get(name, True)
            line = points[name][::-1] if backward else points[name]
            if len(line) > 1:
                lines.append(Polyline(f"way{name}", line_type, line))
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
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
