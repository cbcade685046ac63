"""Simulated traffic: cars, cyclists and pedestrians at intersections with traffic lights, as CSV of tracks.

Cars and cyclists follow routes with the intelligent driver model (Treiber, Hennecke & Helbing 2000,
*Phys. Rev. E* 62, 1805), behind whatever is ahead on their route: another agent or a red light. Cars change
lanes to pass. One arm after the other has green, then all pedestrians.

Shape suffixes: N cars and cyclists, P points ahead, C circles that represent agents.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from millrace.systems.base import Progress
from millrace.systems.traffic.geometry import Floats, unit, wrap
from millrace.systems.traffic.settings import TrafficConfig
from millrace.systems.traffic.simulator.roads import SPACING, Intersection, Route, draw_intersection
from millrace.systems.traffic.tracks import LIGHT_STATES, STEP_S, STEPS, Scenario, write_recording

_SIZES = {0: (4.8, 2.0), 1: (0.6, 0.6), 2: (1.8, 0.7)}
_GREEN, _YELLOW, _CLEAR, _WALK = 8.0, 2.0, 2.0, 4.0  # s
_CROSSING_S = 10.0  # to get across after the walk signal began
_ACCELERATION, _COMFORT, _HEADWAY, _GAP = 1.6, 2.0, 1.2, 2.0
_AHEAD = 42.0  # m
_CHANGE_S = 4.0
_PAUSE = 10  # steps between scenarios, so that no two share a step


@dataclass(eq=False)
class _Mover:
    """A car or cyclist on a route, or a pedestrian on a line without a route."""

    number: int
    kind: int
    route: Route | None
    line_P2: Floats
    speed: float
    wish: float
    """Desired speed on an empty road (m/s)."""
    s: float = 0.0
    """Distance along the line (m)."""
    shift: float = 0.0
    """How far to the left of the new lane a lane change begins (m)."""
    since: float = 99.0
    """Seconds since the lane change began."""
    pose: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.place()

    def place(self) -> None:
        """Set the pose from the distance along the line."""
        at = min(max(self.s / SPACING, 0.0), len(self.line_P2) - 1.001)
        p, share = int(at), at - int(at)
        xy = (1 - share) * self.line_P2[p] + share * self.line_P2[p + 1]
        if self.route is not None:
            heading = (1 - share) * self.route.heading_P[p] + share * self.route.heading_P[p + 1]
        else:
            heading = float(np.arctan2(*(self.line_P2[p + 1] - self.line_P2[p])[::-1]))
        if self.since < _CHANGE_S:
            u = self.since / _CHANGE_S
            side = self.shift * (1 - u * u * u * (10 - 15 * u + 6 * u * u))
            slope = -self.shift * 30 * u * u * (1 - u) ** 2 / _CHANGE_S
            xy = xy + side * np.array([-np.sin(heading), np.cos(heading)])
            heading += np.arctan2(slope, max(self.speed, 1.0))
        self.pose = np.array([*xy, heading])


class Traffic:
    """Traffic of an intersection, step by step."""

    def __init__(
        self, place: Intersection, config: TrafficConfig, random: np.random.Generator
    ) -> None:
        self.place, self._config, self._random = place, config, random
        self.time = 0.0
        self.movers: list[_Mover] = []
        self._numbers = itertools.count()
        self.phase = _GREEN + _YELLOW + _CLEAR
        self.cycle = place.arms * self.phase + _WALK + _CROSSING_S
        self._walked = -1.0

    def light(self, arm: int) -> int:
        """State of the traffic light of an arm, index into `LIGHT_STATES`."""
        t = self.time % self.cycle - arm * self.phase
        if 0 <= t < _GREEN:
            return LIGHT_STATES.index("green")
        return LIGHT_STATES.index("yellow" if _GREEN <= t < _GREEN + _YELLOW else "red")

    def step(self) -> None:
        """Advance by `STEP_S`."""
        self._spawn()
        walkers = [m for m in self.movers if m.route is None]
        riders = [m for m in self.movers if m.route is not None]
        for mover, (gap, speed) in zip(riders, self._leaders(riders), strict=True):
            self._drive(mover, gap, speed)
        for mover in walkers:
            mover.s += mover.speed * STEP_S
        self.time += STEP_S
        self.movers = [m for m in self.movers if m.s < _length(m.line_P2)]
        for mover in self.movers:
            mover.since += STEP_S
            mover.place()

    def _drive(self, mover: _Mover, gap: float, leader: float) -> None:
        route = mover.route
        assert route is not None
        at = min(int(mover.s / SPACING), len(route.limit_P) - 1)
        wish = min(mover.wish, float(route.limit_P[at]))
        to_line = route.stop - mover.s - _SIZES[mover.kind][0] / 2
        light = LIGHT_STATES[self.light(route.arm)]
        can_stop = mover.speed**2 / (2 * 3.0) < to_line
        if to_line > -0.5 and (light == "red" or (light == "yellow" and can_stop)):
            gap, leader = min((gap, leader), (max(to_line, 0.1) + _GAP - 1.0, 0.0))
        v = mover.speed
        braking = v * (v - leader) / (2 * np.sqrt(_ACCELERATION * _COMFORT))
        wanted = _GAP + max(0.0, v * _HEADWAY + braking)
        free = 1 - (v / wish) ** 4 if v <= wish else -_COMFORT / _ACCELERATION * (1 - wish / v)
        change = max(_ACCELERATION * (free - (wanted / max(gap, 0.1)) ** 2), -7.0)
        mover.speed = max(0.0, v + change * STEP_S)
        mover.s += (v + mover.speed) / 2 * STEP_S
        if mover.kind == 0 and leader < mover.wish - 2.5 and gap < 30:
            self._change_lane(mover)

    def _change_lane(self, mover: _Mover) -> None:
        """Move to a parallel lane that has room, well before the stop line."""
        route = mover.route
        assert route is not None
        if mover.since < 2 * _CHANGE_S or not 10 < mover.s < route.stop - 45 or mover.speed < 4:
            return
        for other in self.place.routes:
            if (other.arm, other.exit) != (route.arm, route.exit) or other.lane == route.lane:
                continue
            p = min(int(mover.s / SPACING), len(other.points_P2) - 1)
            place = other.points_P2[p]
            if any(
                m is not mover and np.hypot(*(m.pose[:2] - place)) < 16
                for m in self.movers
                if m.route is not None and m.route.lane == other.lane and m.route.arm == route.arm
            ):
                continue
            along = unit(other.heading_P[p])
            mover.shift = float((mover.pose[:2] - place) @ [-along[1], along[0]])
            mover.route, mover.line_P2, mover.since = other, other.points_P2, 0.0
            mover.s += float((mover.pose[:2] - place) @ along) - (mover.s - p * SPACING)
            return

    def _leaders(self, riders: Sequence[_Mover]) -> list[tuple[float, float]]:
        """Gap to whatever is ahead on the route of each (m), and its speed along the route (m/s)."""
        if not riders:
            return []
        offsets = np.arange(0.0, _AHEAD, 1.5)
        length, width = np.array([_SIZES[m.kind] for m in riders]).T
        way, tangent = [], []
        for mover in riders:
            route = mover.route
            assert route is not None
            p = np.minimum(((mover.s + offsets) / SPACING).astype(int), len(mover.line_P2) - 1)
            way.append(mover.line_P2[p])
            tangent.append(route.heading_P[p])
        way_NP2, heading_NP = np.array(way), np.array(tangent)
        circles, owner, radius = [], [], []
        for i, mover in enumerate(self.movers):
            size = _SIZES[mover.kind]
            for share in (-0.4, 0.0, 0.4) if mover.kind == 0 else (0.0,):
                circles.append(mover.pose[:2] + share * size[0] * unit(mover.pose[2]))
                owner.append(i)
                radius.append(size[1] / 2)
        circle_C2, owner_C, radius_C = np.array(circles), np.array(owner), np.array(radius)
        own_N = np.array([i for i, m in enumerate(self.movers) if m.route is not None])
        apart = [way_NP2[:, :, None, axis] - circle_C2[:, axis] for axis in (0, 1)]  # [N, P, C]
        near = apart[0] ** 2 + apart[1] ** 2 < ((width / 2)[:, None, None] + radius_C + 0.35) ** 2
        near &= (own_N[:, None] != owner_C)[:, None]
        # An agent beside or behind the centre of a box has to give way to it.
        start = way_NP2[:, 0]
        ahead = ((circle_C2 - start[:, None]) * unit(heading_NP[:, 0])[:, None]).sum(axis=2) > 0
        near &= ahead[:, None]
        result = []
        for n in range(len(riders)):
            p, c = np.nonzero(near[n])
            if not len(p):
                result.append((1e3, 50.0))
                continue
            first = int(np.argmin(p))
            other = self.movers[owner_C[c[first]]]
            along = np.cos(other.pose[2] - heading_NP[n, p[first]])
            gap = offsets[p[first]] - length[n] / 2 - (0.0 if other.kind else 0.2)
            result.append((max(float(gap), 0.05), max(0.0, float(other.speed * along))))
        return result

    def _spawn(self) -> None:
        rate = STEP_S / 60
        for arm in range(self.place.arms):
            for kind, per_minute, routes in (
                (0, self._config.cars_per_minute, self.place.routes),
                (2, self._config.cyclists_per_minute, self.place.bike_routes),
            ):
                if self._random.random() < per_minute * rate:
                    self._enter(kind, [r for r in routes if r.arm == arm])
        if self._random.random() < self._config.pedestrians_per_minute * rate:
            lines = self.place.pavements
            self._walk(lines[int(self._random.integers(len(lines)))], anywhere=True)
        cycle, t = divmod(self.time, self.cycle)
        if t >= self.place.arms * self.phase and cycle > self._walked:
            self._walked = cycle
            for line in self.place.crossings:
                for _ in range(int(self._random.poisson(0.7))):
                    self._walk(line, anywhere=False)

    def _enter(self, kind: int, routes: Sequence[Route]) -> None:
        route = routes[int(self._random.integers(len(routes)))]
        wish = self._random.uniform(3.8, 6.0) if kind == 2 else self._random.uniform(8.5, 14.0)
        if any(np.hypot(*(m.pose[:2] - route.points_P2[0])) < 14 for m in self.movers):
            return
        number = next(self._numbers)
        self.movers.append(_Mover(number, kind, route, route.points_P2, 0.7 * wish, wish))

    def _walk(self, line: Floats, anywhere: bool) -> None:
        if self._random.random() < 0.5:
            line = line[::-1]
        speed = self._random.uniform(1.0, 1.6)
        low, high, scale = (0.2, 0.6, _length(line)) if anywhere else (-1.5, 0.0, 1.0)
        begin = self._random.uniform(low, high) * scale
        self.movers.append(_Mover(next(self._numbers), 1, None, line, speed, speed, begin))


def _length(line_P2: Floats) -> float:
    """Length of a line with points every `SPACING` (m)."""
    return SPACING * (len(line_P2) - 1)


def record(traffic: Traffic, name: str) -> Scenario:
    """Record the next scenario of traffic that is under way."""
    kinds: dict[int, int] = {}
    states: dict[int, Floats] = {}
    controlled = traffic.place.controlled
    lights = {line: np.zeros(STEPS, dtype=np.int8) for arm in controlled for line in arm}
    for step in range(STEPS):
        for mover in traffic.movers:
            if mover.number not in kinds:
                kinds[mover.number] = mover.kind
                states[mover.number] = np.full((STEPS, 5), np.nan)
            velocity = mover.speed * unit(mover.pose[2])
            states[mover.number][step] = [*mover.pose, *velocity]
        for arm, lines in enumerate(controlled):
            for line in lines:
                lights[line][step] = traffic.light(arm)
        traffic.step()
    state_AT5 = np.stack([*states.values()])
    state_AT5[..., 2] = wrap(state_AT5[..., 2])
    return Scenario(
        name=name,
        track_A=tuple(map(str, kinds)),
        kind_A=np.array([*kinds.values()], dtype=np.int8),
        size_A2=np.array([_SIZES[kind] for kind in kinds.values()]),
        pose_AT3=state_AT5[..., :3],
        velocity_AT2=state_AT5[..., 3:],
        road=tuple(traffic.place.lines),
        lights=lights,
    )


def simulate(config: TrafficConfig, base: Path, progress: Progress | None = None) -> None:
    """Simulate the recordings of all intersections into the directory ``base``."""
    for number in range(config.towns):
        random = np.random.default_rng([config.seed, number])
        traffic = Traffic(draw_intersection(random), config, random)
        for _ in range(600):
            traffic.step()
        scenarios = []
        for scenario in range(config.scenes):
            scenarios.append(record(traffic, f"town{number:02d}_{scenario:03d}"))
            for _ in range(_PAUSE):
                traffic.step()
        write_recording(base, f"town{number:02d}", scenarios)
        if progress is not None:
            progress(number + 1, config.towns)
