"""INTERACTION (Zhan et al. 2019): tracks at 10 Hz as CSV, maps as Lanelet2 OSM.

``vehicle_tracks_*.csv`` gives middles of boxes, ``psi_rad`` counter-clockwise from +x and times in
milliseconds; ``pedestrian_tracks_*.csv`` has neither headings nor sizes. Files with a ``case_id`` hold many
short cases, which are kept apart. Nodes of a map are latitudes and longitudes near 0, projected by UTM
relative to the point (0, 0), as the data set's own tools do it.
"""

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pandas as pd

from millrace.errors import DataError
from millrace.systems.base import Progress
from millrace.systems.traffic.formats.recordings import (
    Track,
    cut_scenes,
    files_like,
    heading_of,
    read_columns,
)
from millrace.systems.traffic.tracks import Polyline, write_recording

_COLUMNS = ("track_id", "timestamp_ms", "agent_type", "x", "y", "vx", "vy")
_CLASS = {"pedestrian": "pedestrian", "bicycle": "cyclist", "pedestrian/bicycle": "pedestrian"}
_WALKER = 0.7  # m
_LINES = {
    "curbstone": "road_edge",
    "road_border": "road_edge",
    "guard_rail": "road_edge",
    "line_thin": "road_line",
    "line_thick": "road_line",
    "virtual": "lane",
    "stop_line": "stop_line",
    "pedestrian_marking": "crosswalk",
    "zebra_marking": "crosswalk",
}


def convert(source: Path, output: Path, progress: Progress | None = None) -> int:
    """Convert all recordings of a directory; returns the number of scenarios.

    The map of ``<place>/vehicle_tracks_000.csv`` is the only ``.osm`` beside it, or the one named like its
    folder in ``maps/``.
    """
    files = files_like(source, "vehicle_tracks_*.csv", "recordings of INTERACTION")
    count = 0
    for number, path in enumerate(files):
        frames = [read_columns(path, (*_COLUMNS, "psi_rad", "length", "width"))]
        walkers = path.with_name(path.name.replace("vehicle", "pedestrian"))
        if walkers.is_file():
            frames.append(read_columns(walkers, _COLUMNS))
        frame = pd.concat(frames, ignore_index=True)
        if "case_id" not in frame:
            frame["case_id"] = 0
        place = path.parent.name
        name = f"{place}_{path.stem.removeprefix('vehicle_tracks_')}"
        road = read_map(_map_of(path, source))
        scenes = []
        for case, rows in frame.groupby("case_id"):
            tracks = [_track(str(t), r) for t, r in rows.groupby(rows["track_id"].astype(str))]
            scenes += cut_scenes(f"{name}_{case}", tracks, road)
        if scenes:
            write_recording(output, name, scenes)
        count += len(scenes)
        if progress is not None:
            progress(number + 1, len(files))
    return count


def _map_of(path: Path, source: Path) -> Path:
    beside = sorted(path.parent.glob("*.osm"))
    named = [p for p in sorted(Path(source).rglob("*.osm")) if p.stem == path.parent.name]
    if len(beside) != 1 and not named:
        raise DataError(
            f"{path}: no map; expected one .osm beside it, or maps/{path.parent.name}.osm"
        )
    return beside[0] if len(beside) == 1 else named[0]


def _track(name: str, rows: pd.DataFrame) -> Track:
    rows = rows.sort_values("timestamp_ms")
    time = rows["timestamp_ms"].to_numpy(dtype=float) / 1000
    place = rows[["x", "y"]].to_numpy(dtype=float)
    heading = (
        rows["psi_rad"].to_numpy(dtype=float) if "psi_rad" in rows else np.full(len(rows), np.nan)
    )
    if np.isnan(heading).any():
        heading = heading_of(place, time)
    size = [rows[c].iloc[0] if c in rows else np.nan for c in ("length", "width")]
    length, width = (float(v) if np.isfinite(v) and v > 0 else _WALKER for v in size)
    return Track(
        name=name,
        kind=_CLASS.get(str(rows["agent_type"].iloc[0]), "vehicle"),
        length=length,
        width=width,
        time_N=time,
        pose_N3=np.column_stack([place, heading]),
        velocity_N2=rows[["vx", "vy"]].to_numpy(dtype=float),
    )


def read_map(path: Path) -> tuple[Polyline, ...]:
    """Lines of a Lanelet2 map. Which side of a border the road is on is told by the lanelets beside it.

    Raises
    ------
    DataError
        Not such a file.
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
            kind[name] = _LINES.get(tags.get("type", ""))
        lines, on_left = [], dict[str, bool]()
        for relation in tree.iter("relation"):
            sides = {m.attrib["role"]: m.attrib["ref"] for m in relation.iter("member")}
            if not {"left", "right"} <= sides.keys():
                continue
            left, right = points[sides["left"]], points[sides["right"]]
            left, right = _same_way(left, right)
            lines.append(Polyline(f"lane{relation.attrib['id']}", "lane", _middle(left, right)))
            centre = _middle(left, right).mean(axis=0)
            for name in (sides["left"], sides["right"]):
                on_left[name] = _is_left(points[name], centre)
        for name, line in points.items():
            if kind[name] in (None, "lane") or len(line) < 2:
                continue
            if kind[name] == "road_edge" and not on_left.get(name, True):
                line = line[::-1]
            lines.append(Polyline(f"way{name}", str(kind[name]), line))
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
        raise DataError(f"{path}: not a Lanelet2 map in OSM format ({error!r})") from error
    return tuple(lines)


def _same_way(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in the direction in which ``left`` is on the left."""
    straight = np.linalg.norm(left[0] - right[0]) + np.linalg.norm(left[-1] - right[-1])
    crossed = np.linalg.norm(left[0] - right[-1]) + np.linalg.norm(left[-1] - right[0])
    if crossed < straight:
        right = right[::-1]
    if _is_left(right, left.mean(axis=0)):
        return left, right
    return left[::-1], right[::-1]


def _middle(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    share = np.linspace(0, 1, max(len(left), len(right), 3))
    both = []
    for line in (left, right):
        along = np.concatenate([[0], np.linalg.norm(np.diff(line, axis=0), axis=1).cumsum()])
        along = along / max(along[-1], 1e-9)
        both.append(np.stack([np.interp(share, along, line[:, i]) for i in (0, 1)], axis=1))
    return (both[0] + both[1]) / 2


def _is_left(line: np.ndarray, point: np.ndarray) -> bool:
    along, offset = line[-1] - line[0], point - line[len(line) // 2]
    return bool(along[0] * offset[1] - along[1] * offset[0] > 0)


def utm(latitude: float, longitude: float) -> tuple[float, float]:
    """Easting and northing (m) in zone 31, whose central meridian is 3 degrees east.

    Krüger's series to the third order in n on WGS 84 (Karney 2011, *J. Geodesy* 85, eq. 7 to 12, 35),
    good to a millimetre.
    """
    a, f = 6378137.0, 1 / 298.257223563
    n = f / (2 - f)
    radius = a / (1 + n) * (1 + n**2 / 4 + n**4 / 64)
    alpha = (n / 2 - 2 * n**2 / 3 + 5 * n**3 / 16, 13 * n**2 / 48 - 3 * n**3 / 5, 61 * n**3 / 240)
    phi, turn = math.radians(latitude), math.radians(longitude - 3.0)
    e = 2 * math.sqrt(n) / (1 + n)
    t = math.sinh(math.atanh(math.sin(phi)) - e * math.atanh(e * math.sin(phi)))
    xi, eta = (
        math.atan2(t, math.cos(turn)),
        math.asinh(math.sin(turn) / math.hypot(t, math.cos(turn))),
    )
    east, north = eta, xi
    for j, value in enumerate(alpha, start=1):
        east += value * math.cos(2 * j * xi) * math.sinh(2 * j * eta)
        north += value * math.sin(2 * j * xi) * math.cosh(2 * j * eta)
    return 500_000 + 0.9996 * radius * east, 0.9996 * radius * north
