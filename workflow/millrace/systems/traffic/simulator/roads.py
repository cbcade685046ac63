"""Roads of the simulated traffic: intersections of three or four arms with traffic lights, drawn at random.

Arms bend and meet at odd angles; each has one or two lanes and a bicycle lane in each direction, a
crosswalk and pavements. Traffic keeps to the right.

Shape suffixes: P points of a line.
"""

from dataclasses import dataclass, field

import numpy as np

from millrace.systems.traffic.geometry import Floats, arc_length, cubic, resample, unit, wrap
from millrace.systems.traffic.tracks import Polyline

SPACING = 0.5
"""Distance between points of a route (m)."""

_PAVEMENT = 1.6  # m, from the road edge to where pedestrians walk
_LANE, _BIKE = 3.5, 1.8  # widths (m)
_LATERAL = 2.0  # m/s², comfortable in a curve
_BRAKING = 1.5  # m/s², ahead of a curve


@dataclass(frozen=True, eq=False)
class Route:
    """A way through an intersection."""

    points_P2: Floats
    """Every `SPACING` (m)."""
    heading_P: Floats
    limit_P: Floats
    """Highest speed in view of the curves ahead (m/s)."""
    stop: float
    """Distance along the route of the stop line (m)."""
    arm: int
    """Where the route begins."""
    lane: int
    """0 is the innermost."""
    exit: int
    """The arm where it ends."""


@dataclass(eq=False)
class Intersection:
    """Routes and map of an intersection."""

    arms: int
    lines: list[Polyline] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    """Routes of vehicles."""
    bike_routes: list[Route] = field(default_factory=list)
    crossings: list[Floats] = field(default_factory=list)
    pavements: list[Floats] = field(default_factory=list)
    controlled: list[list[str]] = field(default_factory=list)
    """Names of the polylines that the traffic light of each arm controls."""


@dataclass(frozen=True)
class _Arm:
    angle: float
    bend: float
    """Curvature (1/m)."""
    lanes: int
    start: float
    """Distance of the stop line from the centre (m)."""
    end: float

    @property
    def half(self) -> float:
        """Half of the road's width (m)."""
        return self.lanes * _LANE + _BIKE

    def line(self, offset: float, begin: float, end: float) -> Floats:
        """Line along the arm, ``offset`` to the left of its axis looking outward."""
        s = np.linspace(begin, end, max(2, int(abs(end - begin) / 2) + 1))
        beyond = np.maximum(s - self.start, 0)
        turn = self.angle + self.bend * beyond
        mean = self.angle + self.bend * beyond / 2
        axis = np.minimum(s, self.start)[:, None] * unit(np.full(len(s), self.angle))
        axis = axis + (beyond * np.sinc(self.bend * beyond / (2 * np.pi)))[:, None] * unit(mean)
        return axis + offset * unit(turn + np.pi / 2)

    def across(self, offsets: tuple[float, float], back: float = 0.0) -> Floats:
        """Line across the arm, ``back`` metres before the stop line looking outward."""
        return np.array([self.line(off, self.start - back, self.start)[0] for off in offsets])


def draw_intersection(random: np.random.Generator) -> Intersection:
    """Draw an intersection at random."""
    n = 4 if random.random() < 0.7 else 3
    lanes = int(random.integers(1, 3))
    angles = np.arange(n) * (np.pi / 2) + random.uniform(-0.2, 0.2, n)
    angles += random.uniform(0, 2 * np.pi)
    half = lanes * _LANE + _BIKE
    arms = [
        _Arm(angle, random.uniform(-1, 1) / 250, lanes, half + random.uniform(9, 12), 100.0)
        for angle in angles
    ]
    limit = random.uniform(9, 14)
    made = Intersection(n)
    for a, arm in enumerate(arms):
        _add_arm(made, a, arm)
    for a, arm in enumerate(arms):
        # Between an arm and the next counter-clockwise: inward, around the corner, outward.
        other = arms[(a + 1) % n]
        for extra in (0.0, _PAVEMENT):
            inward = arm.line(arm.half + extra, arm.end, arm.start)
            outward = other.line(-other.half - extra, other.start, other.end)
            line = _through(inward, outward)[1]
            if extra:
                made.pavements.append(resample(line, SPACING))
            else:
                made.lines.append(Polyline(f"edge_{a}", "road_edge", line))
    for a in range(n):
        _add_routes(made, arms, a, limit)
    return made


def _add_arm(made: Intersection, a: int, arm: _Arm) -> None:
    def add(name: str, kind: str, points: Floats) -> None:
        made.lines.append(Polyline(f"{name}_{a}", kind, points))

    add("middle", "road_line", arm.line(0.0, arm.start, arm.end))
    for lane in range(1, arm.lanes):
        for side in (-lane, lane):
            points = arm.line(side * _LANE, arm.start, arm.end)
            made.lines.append(Polyline(f"line_{a}_{side}", "road_line", points))
    add("crosswalk", "crosswalk", arm.across((-arm.half, arm.half), 3))
    walk = arm.half + _PAVEMENT
    made.crossings.append(resample(arm.across((-walk, walk), 3), SPACING))
    add("stop", "stop_line", arm.across((0.0, arm.half)))
    made.controlled.append([f"stop_{a}"])


def _add_routes(made: Intersection, arms: list[_Arm], a: int, limit: float) -> None:
    arm = arms[a]
    for lane in range(arm.lanes + 1):
        is_bike = lane == arm.lanes
        offset = lane * _LANE + (_BIKE if is_bike else _LANE) / 2
        kind = "bike_lane" if is_bike else "lane"
        entry = arm.line(offset, arm.end, arm.start)
        leave = arm.line(-offset, arm.start, arm.end)
        made.lines.append(Polyline(f"in_{a}_{lane}", kind, entry))
        made.lines.append(Polyline(f"out_{a}_{lane}", kind, leave))
        made.controlled[a].append(f"in_{a}_{lane}")
        for b, other in enumerate(arms):
            turn = float(wrap(np.array(other.angle - arm.angle - np.pi)))  # left is positive
            if b == a or not _allowed(turn, lane, arm.lanes, is_bike):
                continue
            curve, way = _through(entry, other.line(-offset, other.start, other.end))
            name = f"through_{a}_{b}_{lane}"
            made.lines.append(Polyline(name, kind, curve))
            made.controlled[a].append(name)
            points = resample(way, SPACING)
            heading = np.unwrap(np.arctan2(*np.gradient(points, axis=0).T[::-1]))
            stop = float(arc_length(entry)[-1])
            route = Route(points, heading, _limits(heading, limit), stop, a, lane, b)
            (made.bike_routes if is_bike else made.routes).append(route)


def _allowed(turn: float, lane: int, lanes: int, is_bike: bool) -> bool:
    """Left from the inner lane, right from the outer, straight on from all."""
    if abs(turn) < np.pi / 4:
        return True
    if turn > 0:
        return lane == 0 and not is_bike
    return is_bike or lane == lanes - 1


def _limits(heading: Floats, limit: float) -> Floats:
    curvature = np.abs(np.gradient(heading, SPACING))
    speed = np.minimum(limit, np.sqrt(_LATERAL / np.maximum(curvature, 1e-4)))
    for p in range(len(speed) - 2, -1, -1):
        speed[p] = min(speed[p], np.sqrt(speed[p + 1] ** 2 + 2 * _BRAKING * SPACING))
    return speed


def _through(entry: Floats, leave: Floats) -> tuple[Floats, Floats]:
    """Curve from the end of a line to the begin of another one, and all three in one line."""
    n = max(5, int(np.linalg.norm(leave[0] - entry[-1])))
    curve = cubic(entry[-1], entry[-1] - entry[-2], leave[0], leave[1] - leave[0], n)
    return curve, np.concatenate([entry, curve[1:-1], leave])
