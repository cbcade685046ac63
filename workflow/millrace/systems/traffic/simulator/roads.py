"""Road networks of the demo traffic: signalised intersections of three or four arms, drawn at random.

Arms bend and meet at odd angles; each has one or two lanes and a bicycle lane in each direction, a
crosswalk and a pavement. Traffic keeps to the right.

Shape suffixes: P points of a line.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from millrace.systems.traffic.tracks import Polyline

Floats = NDArray[np.float64]

SPACING = 0.5
"""Between points of a route (m)."""
PAVEMENT = 1.6
"""From the road edge to where people walk (m)."""

_LANE, _BIKE = 3.5, 1.8  # widths (m)
_LATERAL = 2.0  # m/s², comfortable in a curve
_BRAKING = 1.5  # m/s², ahead of a curve


@dataclass(frozen=True, eq=False)
class Route:
    """Way through the intersection."""

    points_P2: Floats
    """Every `SPACING`."""
    heading_P: Floats
    limit_P: Floats
    """Highest speed in view of the curves ahead (m/s)."""
    stop: float
    """Distance along the route of the stop line (m)."""
    arm: int
    lane: int
    """0 is the innermost."""
    exit: int

    @property
    def length(self) -> float:
        """Length (m)."""
        return SPACING * (len(self.points_P2) - 1)


@dataclass(eq=False)
class Town:
    """One intersection: routes and map."""

    arms: int
    lines: list[Polyline] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    """Of vehicles."""
    bike_routes: list[Route] = field(default_factory=list)
    crossings: list[Floats] = field(default_factory=list)
    pavements: list[Floats] = field(default_factory=list)
    controlled: list[list[str]] = field(default_factory=list)
    """Names of the lines that the light of each arm controls."""


@dataclass(frozen=True)
class _Arm:
    angle: float
    bend: float
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
        axis = np.minimum(s, self.start)[:, None] * _unit(np.full(len(s), self.angle))
        axis = axis + (beyond * np.sinc(self.bend * beyond / (2 * np.pi)))[:, None] * _unit(mean)
        return axis + offset * _unit(turn + np.pi / 2)


def make_town(random: np.random.Generator) -> Town:
    """Draw an intersection."""
    n = 4 if random.random() < 0.7 else 3
    lanes = int(random.integers(1, 3))
    angles = (
        np.arange(n) * (np.pi / 2) + random.uniform(-0.2, 0.2, n) + random.uniform(0, 2 * np.pi)
    )
    half = lanes * _LANE + _BIKE
    arms = [
        _Arm(angle, random.uniform(-1, 1) / 250, lanes, half + random.uniform(9, 12), 100.0)
        for angle in angles
    ]
    limit = random.uniform(9, 14)
    town = Town(n)
    for a, arm in enumerate(arms):
        _add_arm(town, arms, a, arm)
    for a, arm in enumerate(arms):
        # Between an arm and the next counter-clockwise: inward, around the corner, outward.
        other = arms[(a + 1) % n]
        for extra in (0.0, PAVEMENT):
            inward = arm.line(arm.half + extra, arm.end, arm.start)
            outward = other.line(-other.half - extra, other.start, other.end)
            curve = _curve(inward[-1], inward[-1] - inward[-2], outward[0], outward[1] - outward[0])
            line = np.concatenate([inward, curve[1:-1], outward])
            if extra:
                town.pavements.append(resample(line, SPACING))
            else:
                town.lines.append(Polyline(f"edge_{a}", "road_edge", line))
    for a in range(n):
        _add_routes(town, arms, a, limit)
    return town


def _add_arm(town: Town, arms: list[_Arm], a: int, arm: _Arm) -> None:
    add = town.lines.append
    add(Polyline(f"middle_{a}", "road_line", arm.line(0.0, arm.start, arm.end)))
    for lane in range(1, arm.lanes):
        for side in (-1, 1):
            offset = side * lane * _LANE
            add(
                Polyline(
                    f"line_{a}_{side * lane}", "road_line", arm.line(offset, arm.start, arm.end)
                )
            )
    crossing = np.array(
        [arm.line(side * arm.half, arm.start - 3, arm.start)[0] for side in (-1, 1)]
    )
    add(Polyline(f"crosswalk_{a}", "crosswalk", crossing))
    pavement = arm.half + PAVEMENT
    ends = [arm.line(side * pavement, arm.start - 3, arm.start)[0] for side in (-1, 1)]
    town.crossings.append(resample(np.array(ends), SPACING))
    stop = np.array([arm.line(offset, arm.start, arm.end)[0] for offset in (0.0, arm.half)])
    add(Polyline(f"stop_{a}", "stop_line", stop))
    town.controlled.append([f"stop_{a}"])


def _add_routes(town: Town, arms: list[_Arm], a: int, limit: float) -> None:
    arm = arms[a]
    for lane in range(arm.lanes + 1):
        is_bike = lane == arm.lanes
        offset = lane * _LANE + (_BIKE if is_bike else _LANE) / 2
        kind = "bike_lane" if is_bike else "lane"
        entry = arm.line(offset, arm.end, arm.start)
        leave = arm.line(-offset, arm.start, arm.end)
        town.lines.append(Polyline(f"in_{a}_{lane}", kind, entry))
        town.lines.append(Polyline(f"out_{a}_{lane}", kind, leave))
        town.controlled[a].append(f"in_{a}_{lane}")
        for b, other in enumerate(arms):
            turn = _wrap(other.angle - arm.angle - np.pi)  # left is positive
            if b == a or not _may(turn, lane, arm.lanes, is_bike):
                continue
            leave = other.line(-offset, other.start, other.end)
            curve = _curve(entry[-1], entry[-1] - entry[-2], leave[0], leave[1] - leave[0])
            name = f"through_{a}_{b}_{lane}"
            town.lines.append(Polyline(name, kind, curve))
            town.controlled[a].append(name)
            points = resample(np.concatenate([entry, curve[1:-1], leave]), SPACING)
            heading = np.unwrap(np.arctan2(*np.gradient(points, axis=0).T[::-1]))
            before = float(np.linalg.norm(np.diff(entry, axis=0), axis=1).sum())
            route = Route(points, heading, _limits(heading, limit), before, a, lane, b)
            (town.bike_routes if is_bike else town.routes).append(route)


def _may(turn: float, lane: int, lanes: int, is_bike: bool) -> bool:
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


def _curve(start: Floats, begin: Floats, end: Floats, leave: Floats) -> Floats:
    """Cubic with given ends and directions."""
    length = np.linalg.norm(end - start)
    t = np.linspace(0, 1, max(5, int(length / 1.0)))[:, None]
    # Length of the tangents for which a quarter circle is met best: 3 * 0.5523 * r, with r = chord / √2.
    scale = 1.1716 * length
    m0, m1 = (scale * v / np.linalg.norm(v) for v in (begin, leave))
    return (
        (2 * t**3 - 3 * t**2 + 1) * start
        + (t**3 - 2 * t**2 + t) * m0
        + (3 * t**2 - 2 * t**3) * end
        + (t**3 - t**2) * m1
    )


def resample(points_P2: Floats, spacing: float) -> Floats:
    """Points at equal distances along a line, ``spacing`` apart as nearly as it divides."""
    along = np.concatenate([[0], np.linalg.norm(np.diff(points_P2, axis=0), axis=1).cumsum()])
    s = np.linspace(0, along[-1], max(2, round(along[-1] / spacing) + 1))
    return np.stack([np.interp(s, along, points_P2[:, axis]) for axis in (0, 1)], axis=1)


def _unit(angle: Floats) -> Floats:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _wrap(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)
