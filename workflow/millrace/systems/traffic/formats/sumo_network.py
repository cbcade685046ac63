"""Networks of SUMO (``*.net.xml``) as polylines of a map, with the traffic lights that control them.

An edge of the network has lanes from right to left, each a centre line with a width; lanes inside an
intersection belong to edges whose function is ``internal``. SUMO has no lines for markings and road edges:
they lie half a width beside the centre lines, and go around the corners of an intersection from arm to arm.

Shape suffixes: P points, 2 x and y.
"""

import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from millrace.errors import DataError
from millrace.systems.traffic.formats.xml_elements import elements, root
from millrace.systems.traffic.geometry import Floats, arc_length, cubic, interpolate, resample
from millrace.systems.traffic.tracks import Polyline

_Arms = dict[str, tuple[list["_Edge"], list["_Edge"]]]
Link = tuple[str, int]
"""A traffic light, and the index in its states of the signal of one connection between lanes."""

_WIDTH = 3.2  # m, of lanes without a width
_SAME = 1.5  # m, between the inner sides of the two directions of one road
_SAME_WAY = 0.94  # cosine of 20 degrees
_CORNER = 60.0  # m, longest way around a corner
_SPACING = 2.0  # m, at which inner sides are compared
_LEAST = 10.0  # m, parts of a side that are told apart
_LONGEST = 1e6  # m, of a lane
_NEAR = 60.0  # m, intersections nearer than this are one
_TRUE = ("true", "1", "yes", "on", "t", "x")  # as SUMO writes and reads switches
_DRIVEN = {"bicycle", "bus", "delivery", "motorcycle", "passenger", "private", "taxi", "truck"}


@dataclass(frozen=True, eq=False)
class _Lane:
    name: str
    width: float
    points_P2: Floats
    users: frozenset[str]
    """Those of `_DRIVEN` that may use the lane; none on pavements and rails."""

    @property
    def kind(self) -> str:
        return "bike_lane" if self.users == {"bicycle"} else "lane"

    def side(self, left: float) -> Floats:
        """The line that is ``left`` lane widths to the left of the centre line."""
        return offset(self.points_P2, left * self.width)


@dataclass(frozen=True, eq=False)
class _Edge:
    name: str
    begin: str
    end: str
    lanes: Sequence[_Lane]
    """Lanes that are driven on, from right to left."""

    def side(self, name: str) -> Floats:
        """The right or left side, in the direction of the edge."""
        return self.lanes[0].side(-0.5) if name == "right" else self.lanes[-1].side(0.5)

    def border(self, name: str) -> Floats:
        """The right or left side, in the direction in which the road is on its left."""
        return self.side(name) if name == "right" else self.side(name)[::-1]


@dataclass(frozen=True, eq=False)
class Network:
    """A road network as a map."""

    road: tuple[Polyline, ...]
    signals: Mapping[str, Sequence[Link]]
    """Links that control a polyline, by its name."""
    centre_C2: Floats
    """Centres of the intersections (m): those with traffic lights, if there are any."""
    low_2: Floats
    high_2: Floats
    """Corners of the box around the map (m)."""


@dataclass
class _Raw:
    """The elements of a network file."""

    edges: list[_Edge] = field(default_factory=list)
    left_hand: bool = False
    """Traffic drives on the left, and the lanes of an edge begin at the left."""
    inside: dict[str, _Lane] = field(default_factory=dict)
    """Lanes inside intersections, and crossings."""
    crossings: set[str] = field(default_factory=set)
    junction: dict[str, tuple[float, float, bool]] = field(default_factory=dict)
    """x, y (m), whether there are traffic lights."""
    via: dict[str, str] = field(default_factory=dict)
    """Second part of a lane inside an intersection, behind the point of waiting, by the first part."""
    links: list[tuple[str, str, Link]] = field(default_factory=list)
    """Lane in front of the traffic light, lane inside the intersection, link."""


def read_network(path: Path) -> Network:
    """Read a network.

    Raises
    ------
    DataError
        The file is not a network, or has no lanes.
    """
    raw = _Raw()
    try:
        for element in elements(path, "edge", "junction", "connection"):
            _add(raw, element)
        raw.left_hand = root(path).get("lefthand", "").lower() in _TRUE
        if raw.left_hand:
            raw.edges = [replace(edge, lanes=edge.lanes[::-1]) for edge in raw.edges]
        if not raw.edges:
            raise DataError(f"{path}: no lanes; expected the network that sumo ran on, *.net.xml")
        road = tuple(line for line in _lines(raw) if len(line.points_P2) > 1)
        points = np.concatenate([line.points_P2 for line in road])
        return Network(road, _signals(raw), _centres(raw), points.min(axis=0), points.max(axis=0))
    except (KeyError, ValueError, IndexError) as error:
        raise DataError(f"{path}: not a network of SUMO ({error!r}); expected *.net.xml") from error


def _add(raw: _Raw, element: ElementTree.Element) -> None:
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
        elif role == "normal" and (driven := [lane for lane in lanes if lane.users]):
            raw.edges.append(_Edge(get["id"], get["from"], get["to"], driven))


def _lane(get: Mapping[str, str]) -> _Lane:
    points = np.array([[float(v) for v in p.split(",")[:2]] for p in get["shape"].split()])
    if not arc_length(points)[-1] < _LONGEST:
        raise ValueError(f"lane {get['id']} is not a line of some kilometres")
    users = set(_DRIVEN)
    if get.get("allow", "all") != "all":
        users &= set(get["allow"].split())
    if "disallow" in get:
        users -= _DRIVEN if get["disallow"] == "all" else set(get["disallow"].split())
    return _Lane(get["id"], float(get.get("width", _WIDTH)), points, frozenset(users))


def _lines(raw: _Raw) -> Iterator[Polyline]:
    """Polylines of the map; SUMO's own names never contain the ``|`` of markings and edges."""
    waits = {start for start, _, _ in raw.links}
    oncoming = _Oncoming(raw)
    for edge in raw.edges:
        for lane in edge.lanes:
            yield Polyline(lane.name, lane.kind, lane.points_P2)
            if lane.name in waits:
                ends = [lane.side(left)[-1] for left in (-0.5, 0.5)]
                yield Polyline(f"{lane.name}|stop", "stop_line", np.array(ends))
        for lane in edge.lanes[:-1]:
            yield Polyline(f"{lane.name}|left", "road_line", lane.side(0.5))
        outer, inner = ("left", "right") if raw.left_hand else ("right", "left")
        yield Polyline(f"{edge.name}|{outer}", "road_edge", edge.border(outer))
        parts = oncoming.divide(edge, edge.side(inner))
        for number, (shared, points) in enumerate(parts):
            name = f"{edge.name}|{inner}{number if len(parts) > 1 else ''}"
            if shared:
                yield Polyline(name, "road_line", points)
            else:
                yield Polyline(name, "road_edge", points[::-1] if inner == "left" else points)
    for name, lane in raw.inside.items():
        if name in raw.crossings:
            yield Polyline(name, "crosswalk", lane.points_P2)
        elif lane.users:
            yield Polyline(name, lane.kind, lane.points_P2)
    arms = _arms(raw)
    for name in raw.junction:
        for number, line in enumerate(_corners(raw, name, arms[name])):
            yield Polyline(f"{name}|corner{number}", "road_edge", line)


class _Oncoming:
    """Finds where the inner side of an edge is that of an edge the other way, too: no border of the road.

    Whatever intersections the two edges begin and end at, and however the road bends.
    """

    def __init__(self, raw: _Raw) -> None:
        inner = "right" if raw.left_hand else "left"
        begins, ends = [np.empty((0, 2))], [np.empty((0, 2))]
        for edge in raw.edges:
            line = resample(edge.side(inner), _SPACING)
            begins.append(line[:-1])
            ends.append(line[1:])
        self._begin_N2, self._end_N2 = np.concatenate(begins), np.concatenate(ends)
        self._tree = cKDTree((self._begin_N2 + self._end_N2) / 2)

    def divide(self, edge: _Edge, line_P2: Floats) -> list[tuple[bool, Floats]]:
        """Parts of an inner side, in order, and whether there is an oncoming lane beyond them."""
        if len(line_P2) < 2:
            return [(False, line_P2)]
        length = arc_length(line_P2)
        at = (np.arange(n := max(1, round(length[-1] / _SPACING))) + 0.5) * length[-1] / n
        place_N2 = interpolate(line_P2, length, at)
        way_N2 = interpolate(line_P2, length, at + 0.1) - interpolate(line_P2, length, at - 0.1)
        near = self._tree.query_ball_point(place_N2, _SAME + _SPACING)
        shared = np.array(
            [
                self._faces(place, way, rows)
                for place, way, rows in zip(place_N2, way_N2, near, strict=True)
            ]
        )
        cuts = np.flatnonzero(np.diff(shared)) + 1
        pieces = [p for p in np.split(np.arange(n), cuts) if len(p) * length[-1] / n >= _LEAST]
        if len(pieces) < 2:
            return [(bool(2 * shared.sum() > n), line_P2)]
        # Short pieces are not told apart from what surrounds them.
        states = [bool(shared[piece[0]]) for piece in pieces]
        bounds = [0.0, *((at[o[-1]] + at[p[0]]) / 2 for o, p in pairwise(pieces)), length[-1]]
        parts: list[tuple[bool, float, float]] = []
        for state, begin, end in zip(states, bounds[:-1], bounds[1:], strict=True):
            if parts and parts[-1][0] == state:
                parts[-1] = (state, parts[-1][1], end)
            else:
                parts.append((state, begin, end))
        if len(parts) == 1:
            return [(parts[0][0], line_P2)]
        return [(state, _between(line_P2, length, *bounds)) for state, *bounds in parts]

    def _faces(self, place_2: Floats, way_2: Floats, rows: Sequence[int]) -> bool:
        begin, end = self._begin_N2[rows], self._end_N2[rows]
        against = ((end - begin) * way_2).sum(axis=1) < 0
        return any(
            distance(place_2, np.stack(ends)) < _SAME
            for ends in zip(begin[against], end[against], strict=True)
        )


def _between(line_P2: Floats, length_P: Floats, begin: float, end: float) -> Floats:
    """Part of a line between two distances from its first point."""
    inside = (length_P > begin) & (length_P < end)
    ends = interpolate(line_P2, length_P, np.array([begin, end]))
    return np.concatenate([ends[:1], line_P2[inside], ends[1:]])


def _arms(raw: _Raw) -> dict[str, _Arms]:
    """Edges that lead into an intersection and out of it, by both and by the one at their other end."""
    arms: dict[str, _Arms] = defaultdict(lambda: defaultdict(lambda: ([], [])))
    for edge in raw.edges:
        arms[edge.end][edge.begin][0].append(edge)
        if edge.begin != edge.end:
            arms[edge.begin][edge.end][1].append(edge)
    return arms


def _corners(raw: _Raw, junction: str, meeting: _Arms) -> Iterator[Floats]:
    """Road edges from each arm to the next counter-clockwise, with the road on their left."""
    arms = []
    centre = np.array(raw.junction[junction][:2])
    for into, out in meeting.values():
        # Sides of the arm, looking from the intersection; both lines lead away from it.
        if raw.left_hand:
            right = into[0].side("left")[::-1] if into else out[0].side("right")
            left = out[0].side("left") if out else into[0].side("right")[::-1]
        else:
            right = out[0].side("right") if out else into[0].side("left")[::-1]
            left = into[0].side("right")[::-1] if into else out[0].side("left")
        away = (right[1] + left[1]) / 2 - centre
        arms.append((float(np.arctan2(away[1], away[0])), right, left))
    arms.sort(key=lambda arm: arm[0])
    ways = np.array([arm[0] for arm in arms])
    # Edges of one road may end at different places: together they are one arm, and the road ends here.
    if len(arms) < 2 or (np.cos(ways - ways[0]) > _SAME_WAY).all():
        return
    for (_, _, left), (_, right, _) in zip(arms, arms[1:] + arms[:1], strict=True):
        line = cubic(left[0], left[0] - left[1], right[0], right[1] - right[0], 9)
        if 1e-6 < arc_length(line)[-1] < _CORNER:
            yield line


def _signals(raw: _Raw) -> dict[str, list[Link]]:
    """Links that control lanes at traffic lights, their stop lines, and the lanes and crossings behind."""
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
    """Centres of intersections, see `Network.centre_C2`."""
    arms = _arms(raw)
    crossings = {name: found for name, found in raw.junction.items() if len(arms[name]) > 2}
    lights = any(has for _, _, has in crossings.values())
    place_N2 = np.array([[x, y] for x, y, has in crossings.values() if has == lights])
    if not len(place_N2):
        return place_N2.reshape(-1, 2)
    kept, is_near = [], np.zeros(len(place_N2), dtype=bool)
    tree = cKDTree(place_N2)
    for number, place_2 in enumerate(place_N2):
        if not is_near[number]:
            kept.append(number)
            is_near[tree.query_ball_point(place_2, _NEAR)] = True
    return place_N2[kept]


def offset(points_P2: Floats, left: float) -> Floats:
    """The line that is ``left`` metres to the left of another one."""
    step = np.diff(points_P2, axis=0)
    length = np.linalg.norm(step, axis=1)
    kept = np.concatenate([[True], length > 1e-6])
    points, step = points_P2[kept], step[length > 1e-6]
    if not len(step):
        return points
    unit = step / np.linalg.norm(step, axis=1)[:, None]
    mean = np.concatenate([unit[:1], (unit[1:] + unit[:-1]) / 2, unit[-1:]])
    # At a corner the offset is along its bisector, and longer the sharper the corner.
    mean /= np.maximum((mean**2).sum(axis=1), 0.25)[:, None]
    return points + left * mean[:, ::-1] * [-1, 1]


def distance(place_2: Floats, line_P2: Floats) -> float:
    """Distance of a point from a line (m)."""
    begin, step = line_P2[:-1], np.diff(line_P2, axis=0)
    share = ((place_2 - begin) * step).sum(axis=1) / np.maximum((step**2).sum(axis=1), 1e-12)
    foot = begin + np.clip(share, 0, 1)[:, None] * step
    return float(np.linalg.norm(place_2 - foot, axis=1).min())
