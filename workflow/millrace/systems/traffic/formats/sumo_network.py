"""Networks of SUMO (``*.net.xml``) as lines of a map, with the signals that stand at them.

An edge has lanes from right to left, each a centre line with a width; lanes inside an intersection belong
to edges whose function is ``internal``. SUMO has no lines of its own for markings and edges: they lie half
a width beside the centre lines, and go around the corners of an intersection from arm to arm.

Shape suffixes: P points, 2 x and y.
"""

import gzip
import xml.etree.ElementTree as ElementTree
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from millrace.errors import DataError
from millrace.systems.traffic.tracks import Polyline

Floats = NDArray[np.float64]
Link = tuple[str, int]
"""Traffic light and place of a link in its states."""

_WIDTH = 3.2  # m, of lanes that give none
_SAME = 1.5  # m, between the inner sides of the two directions of one road
_CORNER = 60.0  # m, longest way around a corner
_NEAR = 60.0  # m, intersections nearer than this are one
_DRIVEN = {"bicycle", "bus", "delivery", "motorcycle", "passenger", "private", "taxi", "truck"}


@dataclass(frozen=True, eq=False)
class _Lane:
    name: str
    width: float
    points_P2: Floats
    users: frozenset[str]
    """Of `_DRIVEN`; empty for pavements and rails."""

    @property
    def kind(self) -> str:
        return "bike_lane" if self.users == {"bicycle"} else "lane"

    def side(self, left: float) -> Floats:
        """The line ``left`` widths to the left of the middle."""
        return offset(self.points_P2, left * self.width)


@dataclass(frozen=True, eq=False)
class _Edge:
    name: str
    begin: str
    end: str
    lanes: Sequence[_Lane]
    """Those that are driven on, from right to left."""


@dataclass(frozen=True, eq=False)
class Network:
    """A road network."""

    road: tuple[Polyline, ...]
    signals: Mapping[str, Sequence[Link]]
    """Links of the signals at a line."""
    centre_C2: Floats
    """Intersections (m): those with traffic lights, if there are any."""
    low_2: Floats
    high_2: Floats
    """Corners of the box around all (m)."""


@dataclass
class _Raw:
    """What a file says."""

    edges: list[_Edge] = field(default_factory=list)
    inside: dict[str, _Lane] = field(default_factory=dict)
    """Lanes inside intersections, and crossings."""
    crossings: set[str] = field(default_factory=set)
    junction: dict[str, tuple[float, float, bool]] = field(default_factory=dict)
    """x, y, whether there are lights."""
    via: dict[str, str] = field(default_factory=dict)
    """Second half of a lane inside an intersection that one waits on."""
    links: list[tuple[str, str, Link]] = field(default_factory=list)
    """Lane from which, lane inside the intersection, link."""


def elements(path: Path, *tags: str) -> Iterator[ElementTree.Element]:
    """Elements of an XML file, perhaps compressed, one at a time; nothing is kept of those before.

    Raises
    ------
    DataError
        It is not such a file, or ends in the middle.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            root, depth = None, 0
            for event, element in ElementTree.iterparse(file, events=("start", "end")):
                root = element if root is None else root
                depth += 1 if event == "start" else -1
                if event == "end" and element.tag in tags:
                    yield element
                if event == "end" and depth == 1:
                    root.clear()
    except (OSError, EOFError, zlib.error, ElementTree.ParseError) as error:
        raise DataError(
            f"{path}: cannot be read as XML of SUMO ({error}); write it again"
        ) from error


def read_network(path: Path) -> Network:
    """Read a network.

    Raises
    ------
    DataError
        It is not one, or has no lanes.
    """
    raw = _Raw()
    try:
        for element in elements(path, "edge", "junction", "connection"):
            _take(raw, element)
    except (KeyError, ValueError, IndexError) as error:
        raise DataError(f"{path}: not a network of SUMO ({error!r}); expected *.net.xml") from error
    if not raw.edges:
        raise DataError(f"{path}: no lanes; expected the network that sumo ran on, *.net.xml")
    road = tuple(line for line in _lines(raw) if len(line.points_P2) > 1)
    points = np.concatenate([line.points_P2 for line in road])
    return Network(road, _signals(raw), _centres(raw), points.min(axis=0), points.max(axis=0))


def _take(raw: _Raw, element: ElementTree.Element) -> None:
    get = element.attrib
    if element.tag == "junction":
        if not get["id"].startswith(":"):
            lights = get["type"].startswith("traffic_light")
            raw.junction[get["id"]] = float(get["x"]), float(get["y"]), lights
    elif element.tag == "connection":
        to = get.get("via", f"{get['to']}_{get['toLane']}")
        start = f"{get['from']}_{get['fromLane']}"
        if "tl" in get and "linkIndex" in get:
            raw.links.append((start, to, (get["tl"], int(get["linkIndex"]))))
        elif start.startswith(":") and "via" in get:
            raw.via[start] = get["via"]
    else:
        lanes = [_lane(lane.attrib) for lane in element.iter("lane")]
        role = get.get("function", "normal")
        if role == "crossing":
            raw.crossings |= {lane.name for lane in lanes}
        if role in ("internal", "crossing"):
            raw.inside |= {lane.name: lane for lane in lanes}
        elif role == "normal":
            driven = [lane for lane in lanes if lane.users]
            if driven:
                raw.edges.append(_Edge(get["id"], get["from"], get["to"], driven))


def _lane(get: Mapping[str, str]) -> _Lane:
    points = np.array([[float(v) for v in p.split(",")[:2]] for p in get["shape"].split()])
    users = set(_DRIVEN)
    if get.get("allow", "all") != "all":
        users &= set(get["allow"].split())
    if "disallow" in get:
        users -= _DRIVEN if get["disallow"] == "all" else set(get["disallow"].split())
    return _Lane(get["id"], float(get.get("width", _WIDTH)), points, frozenset(users))


def _lines(raw: _Raw) -> Iterator[Polyline]:
    """Lines of the map; no name of SUMO has a ``|``."""
    opposite = defaultdict(list)
    for edge in raw.edges:
        opposite[edge.end, edge.begin].append(edge)
    waits = {start for start, _, _ in raw.links}
    for edge in raw.edges:
        for lane in edge.lanes:
            yield Polyline(lane.name, lane.kind, lane.points_P2)
            if lane.name in waits:
                ends = [lane.side(left)[-1] for left in (-0.5, 0.5)]
                yield Polyline(f"{lane.name}|stop", "stop_line", np.array(ends))
        for lane in edge.lanes[:-1]:
            yield Polyline(f"{lane.name}|left", "road_line", lane.side(0.5))
        yield Polyline(f"{edge.name}|right", "road_edge", edge.lanes[0].side(-0.5))
        inner = edge.lanes[-1].side(0.5)
        others = [o.lanes[-1].side(0.5) for o in opposite[edge.begin, edge.end]]
        if any(distance(inner.mean(axis=0), other) < _SAME for other in others):
            yield Polyline(f"{edge.name}|left", "road_line", inner)
        else:
            yield Polyline(f"{edge.name}|left", "road_edge", inner[::-1])
    for name, lane in raw.inside.items():
        if name in raw.crossings:
            yield Polyline(name, "crosswalk", lane.points_P2)
        elif lane.users:
            yield Polyline(name, lane.kind, lane.points_P2)
    for name in raw.junction:
        for number, line in enumerate(_corners(raw, name)):
            yield Polyline(f"{name}|corner{number}", "road_edge", line)


def _arms(raw: _Raw, junction: str) -> dict[str, tuple[list[_Edge], list[_Edge]]]:
    """Edges that lead into an intersection and out of it, by the intersection at their other end."""
    arms: dict[str, tuple[list[_Edge], list[_Edge]]] = {}
    for edge in raw.edges:
        if edge.end == junction:
            arms.setdefault(edge.begin, ([], []))[0].append(edge)
        elif edge.begin == junction:
            arms.setdefault(edge.end, ([], []))[1].append(edge)
    return arms


def _corners(raw: _Raw, junction: str) -> Iterator[Floats]:
    """Edges of the road from each arm to the next counter-clockwise, with the road on their left."""
    arms = []
    centre = np.array(raw.junction[junction][:2])
    for into, out in _arms(raw, junction).values():
        # Sides of the arm, looking from the intersection; both lines lead away from it.
        right = out[0].lanes[0].side(-0.5) if out else into[0].lanes[-1].side(0.5)[::-1]
        left = into[0].lanes[0].side(-0.5)[::-1] if into else out[0].lanes[-1].side(0.5)
        away = (right[1] + left[1]) / 2 - centre
        arms.append((float(np.arctan2(away[1], away[0])), right, left))
    arms.sort(key=lambda arm: arm[0])
    if len(arms) < 2:
        return
    for (_, _, left), (_, right, _) in zip(arms, arms[1:] + arms[:1], strict=True):
        line = _around(left[0], left[0] - left[1], right[0], right[1] - right[0])
        if np.linalg.norm(np.diff(line, axis=0), axis=1).sum() < _CORNER:
            yield line


def _around(start_2: Floats, along_2: Floats, end_2: Floats, leave_2: Floats) -> Floats:
    """Cubic with given ends and directions."""
    # Length of the tangents for which a quarter circle is met best: 3 * 0.5523 * r, r = chord / sqrt(2).
    scale = 1.1716 * float(np.linalg.norm(end_2 - start_2))
    m0, m1 = (scale * v / max(float(np.linalg.norm(v)), 1e-9) for v in (along_2, leave_2))
    t = np.linspace(0, 1, 9)[:, None]
    begin = (2 * t**3 - 3 * t**2 + 1) * start_2 + (t**3 - 2 * t**2 + t) * m0
    return begin + (3 * t**2 - 2 * t**3) * end_2 + (t**3 - t**2) * m1


def _signals(raw: _Raw) -> dict[str, list[Link]]:
    """Links at lanes that wait, at their stop lines, and at lanes and crossings behind."""
    signals = defaultdict(list)
    for start, to, link in raw.links:
        if not start.startswith(":"):
            signals[start].append(link)
            signals[f"{start}|stop"].append(link)
        if to in raw.inside:
            signals[to].append(link)
        if to in raw.via:
            signals[raw.via[to]].append(link)
    return dict(signals)


def _centres(raw: _Raw) -> Floats:
    places: list[Floats] = []
    for lights in (True, False):
        for name, (x, y, has) in raw.junction.items():
            if has == lights and len(_arms(raw, name)) > 2:
                place = np.array([x, y])
                if all(np.linalg.norm(place - other) > _NEAR for other in places):
                    places.append(place)
        if places:
            break
    return np.array(places).reshape(-1, 2)


def offset(points_P2: Floats, left: float) -> Floats:
    """The line ``left`` metres to the left of another."""
    step = np.diff(points_P2, axis=0)
    length = np.linalg.norm(step, axis=1)
    kept = np.concatenate([[True], length > 1e-6])
    points, step = points_P2[kept], step[length > 1e-6]
    if not len(step):
        return points
    unit = step / np.linalg.norm(step, axis=1)[:, None]
    mean = np.concatenate([unit[:1], (unit[1:] + unit[:-1]) / 2, unit[-1:]])
    # A corner is cut at half its angle: the nearer the line turns back, the longer the way out.
    mean /= np.maximum((mean**2).sum(axis=1), 0.25)[:, None]
    return points + left * mean[:, ::-1] * [-1, 1]


def distance(place_2: Floats, line_P2: Floats) -> float:
    """From a point to a line (m)."""
    begin, step = line_P2[:-1], np.diff(line_P2, axis=0)
    share = ((place_2 - begin) * step).sum(axis=1) / np.maximum((step**2).sum(axis=1), 1e-12)
    foot = begin + np.clip(share, 0, 1)[:, None] * step
    return float(np.linalg.norm(place_2 - foot, axis=1).min())


def around(road: Iterable[Polyline], place_2: Floats, reach: float) -> tuple[Polyline, ...]:
    """Lines that come within ``reach`` metres of a place."""
    return tuple(line for line in road if distance(place_2, line.points_P2) < reach)
