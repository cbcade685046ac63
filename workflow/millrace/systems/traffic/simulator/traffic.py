"""Demo traffic: cars, cyclists and pedestrians at signalised intersections, as the CSV of real tracks.

Cars and cyclists follow routes with the intelligent driver model (Treiber, Hennecke & Helbing 2000,
*Phys. Rev. E* 62, 1805), behind whatever is ahead on their route: another road user, a red light.
Cars change lanes to pass. One arm after the other has green, then all pedestrians.

Shape suffixes: N road users, P points ahead, C circles that stand for road users.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from millrace.errors import ConfigError
from millrace.systems.base import Progress
from millrace.systems.traffic.simulator.roads import SPACING, Route, Town, make_town
from millrace.systems.traffic.tracks import LIGHTS, STEP_S, STEPS, Scene, write_recording

Floats = NDArray[np.float64]

_SIZES = {0: (4.8, 2.0), 1: (0.6, 0.6), 2: (1.8, 0.7)}
_GREEN, _YELLOW, _CLEAR, _WALK = 8.0, 2.0, 2.0, 4.0  # s
_CROSSING_S = 10.0  # to get across after the walk signal began
_ACCELERATION, _COMFORT, _HEADWAY, _GAP = 1.6, 2.0, 1.2, 2.0
_AHEAD = 42.0  # m
_CHANGE_S = 4.0
_PAUSE = 10  # steps between scenes, so that no two share a moment


@dataclass(frozen=True)
class TrafficConfig:
    """The ``demo:`` block of a dataset of tracks."""

    towns: int = 6
    """Intersections, one recording each."""
    scenes: int = 40
    """Scenarios of each."""
    cars_per_minute: float = 4.5
    """Arrivals at each arm."""
    cyclists_per_minute: float = 1.0
    pedestrians_per_minute: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.towns < 1 or self.scenes < 1:
            raise ConfigError("demo: expected at least one town and one scene")


@dataclass(eq=False)
class _Mover:
    """A car or cyclist on a route, or a pedestrian on a line."""

    number: int
    kind: int
    route: Route | None
    line_P2: Floats
    speed: float
    wish: float
    """Speed on an empty road (m/s)."""
    s: float = 0.0
    shift: float = 0.0
    """How far to the left a lane change begins (m)."""
    since: float = 99.0
    """Seconds since it began."""
    pose: Floats = field(default_factory=lambda: np.zeros(3))

    @property
    def reach(self) -> float:
        return SPACING * (len(self.line_P2) - 1)

    def place(self) -> None:
        """Set the pose from the distance along the route."""
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
    """Traffic of a town, step by step.

    Parameters
    ----------
    town : Town
    config : TrafficConfig
    random : numpy.random.Generator
    """

    def __init__(self, town: Town, config: TrafficConfig, random: np.random.Generator) -> None:
        self.town, self._config, self._random = town, config, random
        self.time = 0.0
        self.movers: list[_Mover] = []
        self._count = 0
        self._phase = _GREEN + _YELLOW + _CLEAR
        self._cycle = town.arms * self._phase + _WALK + _CROSSING_S
        self._walked = -1.0

    def light(self, arm: int) -> int:
        """State of the light of an arm, index into `LIGHTS`."""
        t = self.time % self._cycle - arm * self._phase
        if 0 <= t < _GREEN:
            return LIGHTS.index("green")
        return LIGHTS.index("yellow" if _GREEN <= t < _GREEN + _YELLOW else "red")

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
        self.movers = [m for m in self.movers if m.s < m.reach]
        for mover in self.movers:
            mover.since += STEP_S
            mover.place()

    def _drive(self, mover: _Mover, gap: float, leader: float) -> None:
        route = mover.route
        assert route is not None
        wish = min(
            mover.wish, float(route.limit_P[min(int(mover.s / SPACING), len(route.limit_P) - 1)])
        )
        to_line = route.stop - mover.s - _SIZES[mover.kind][0] / 2
        light = LIGHTS[self.light(route.arm)]
        can_stop = mover.speed**2 / (2 * 3.0) < to_line
        if to_line > -0.5 and (light == "red" or (light == "yellow" and can_stop)):
            gap, leader = min((gap, leader), (max(to_line, 0.1) + _GAP - 1.0, 0.0))
        v = mover.speed
        wanted = _GAP + max(
            0.0, v * _HEADWAY + v * (v - leader) / (2 * np.sqrt(_ACCELERATION * _COMFORT))
        )
        free = 1 - (v / wish) ** 4 if v <= wish else -_COMFORT / _ACCELERATION * (1 - wish / v)
        change = _ACCELERATION * (free - (wanted / max(gap, 0.1)) ** 2)
        change = max(change, -7.0)
        mover.speed = max(0.0, v + change * STEP_S)
        mover.s += (v + mover.speed) / 2 * STEP_S
        if mover.kind == 0 and leader < mover.wish - 2.5 and gap < 30:
            self._change_lane(mover)

    def _change_lane(self, mover: _Mover) -> None:
        """Move to the parallel lane, if there is one with more room, well before the stop line."""
        route = mover.route
        assert route is not None
        if mover.since < 2 * _CHANGE_S or not 10 < mover.s < route.stop - 45 or mover.speed < 4:
            return
        for other in self.town.routes:
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
            normal = np.array([-np.sin(other.heading_P[p]), np.cos(other.heading_P[p])])
            mover.shift = float((mover.pose[:2] - place) @ normal)
            mover.route, mover.line_P2, mover.since = other, other.points_P2, 0.0
            mover.s += float((mover.pose[:2] - place) @ [normal[1], -normal[0]]) - (
                mover.s - p * SPACING
            )
            return

    def _leaders(self, riders: Sequence[_Mover]) -> list[tuple[float, float]]:
        """Gap to what is ahead on the route of each (m), and its speed along the route."""
        if not riders:
            return []
        offsets = np.arange(0.0, _AHEAD, 1.5)
        length = np.array([_SIZES[m.kind][0] for m in riders])
        width = np.array([_SIZES[m.kind][1] for m in riders])
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
            along = np.array([np.cos(mover.pose[2]), np.sin(mover.pose[2])])
            for share in (-0.4, 0.0, 0.4) if mover.kind == 0 else (0.0,):
                circles.append(mover.pose[:2] + share * size[0] * along)
                owner.append(i)
                radius.append(size[1] / 2)
        circle_C2, owner_C, radius_C = np.array(circles), np.array(owner), np.array(radius)
        number = {id(m): i for i, m in enumerate(self.movers)}
        own_N = np.array([number[id(m)] for m in riders])
        apart = [way_NP2[:, :, None, axis] - circle_C2[:, axis] for axis in (0, 1)]  # [N, P, C]
        near = apart[0] ** 2 + apart[1] ** 2 < ((width / 2)[:, None, None] + radius_C + 0.35) ** 2
        near &= (own_N[:, None] != owner_C)[:, None]
        # What is beside or behind the middle of the own box is for the other one to mind.
        start = way_NP2[:, 0]
        ahead = ((circle_C2 - start[:, None]) * _unit(heading_NP[:, 0])[:, None]).sum(axis=2) > 0
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
        for arm in range(self.town.arms):
            for kind, per_minute, routes in (
                (0, self._config.cars_per_minute, self.town.routes),
                (2, self._config.cyclists_per_minute, self.town.bike_routes),
            ):
                if self._random.random() < per_minute * rate:
                    self._enter(kind, [r for r in routes if r.arm == arm])
        if self._random.random() < self._config.pedestrians_per_minute * rate:
            lines = self.town.pavements
            self._walk(lines[int(self._random.integers(len(lines)))], anywhere=True)
        cycle, t = divmod(self.time, self._cycle)
        if t >= self.town.arms * self._phase and cycle > self._walked:
            self._walked = cycle
            for line in self.town.crossings:
                for _ in range(int(self._random.poisson(0.7))):
                    self._walk(line, anywhere=False)

    def _enter(self, kind: int, routes: Sequence[Route]) -> None:
        route = routes[int(self._random.integers(len(routes)))]
        wish = self._random.uniform(3.8, 6.0) if kind == 2 else self._random.uniform(8.5, 14.0)
        if any(np.hypot(*(m.pose[:2] - route.points_P2[0])) < 14 for m in self.movers):
            return
        mover = _Mover(self._count, kind, route, route.points_P2, 0.7 * wish, wish)
        self._add(mover)

    def _walk(self, line: Floats, anywhere: bool) -> None:
        if self._random.random() < 0.5:
            line = line[::-1]
        speed = self._random.uniform(1.0, 1.6)
        mover = _Mover(self._count, 1, None, line, speed, speed)
        if anywhere:
            mover.s = self._random.uniform(0.2, 0.6) * mover.reach
        else:
            mover.s = self._random.uniform(-1.5, 0.0)
        self._add(mover)

    def _add(self, mover: _Mover) -> None:
        mover.place()
        self.movers.append(mover)
        self._count += 1


def record(traffic: Traffic, name: str) -> Scene:
    """Record one scenario of traffic that is under way."""
    rows: dict[int, list[tuple[int, Floats, float]]] = {}
    kinds: dict[int, int] = {}
    lights = {
        line: np.zeros(STEPS, dtype=np.int8) for arm in traffic.town.controlled for line in arm
    }
    for step in range(STEPS):
        for mover in traffic.movers:
            rows.setdefault(mover.number, []).append((step, mover.pose, mover.speed))
            kinds[mover.number] = mover.kind
        for arm, lines in enumerate(traffic.town.controlled):
            for line in lines:
                lights[line][step] = traffic.light(arm)
        traffic.step()
    pose = np.full((len(rows), STEPS, 3), np.nan)
    velocity = np.full((len(rows), STEPS, 2), np.nan)
    for a, states in enumerate(rows.values()):
        for step, at, speed in states:
            pose[a, step] = at
            velocity[a, step] = speed * _unit(at[2])
    pose[..., 2] = (pose[..., 2] + np.pi) % (2 * np.pi) - np.pi
    return Scene(
        name=name,
        track_A=tuple(str(number) for number in rows),
        kind_A=np.array([kinds[number] for number in rows], dtype=np.int8),
        size_A2=np.array([_SIZES[kinds[number]] for number in rows]),
        pose_AT3=pose,
        velocity_AT2=velocity,
        road=tuple(traffic.town.lines),
        lights=lights,
    )


def simulate(config: TrafficConfig, base: Path, progress: Progress | None = None) -> None:
    """Write the recordings of all towns.

    Parameters
    ----------
    config : TrafficConfig
    base : Path
        Directory for ``tracks/``, ``map/`` and ``lights/``.
    progress : callable, optional
        Called with (towns done, all).
    """
    for number in range(config.towns):
        random = np.random.default_rng([config.seed, number])
        traffic = Traffic(make_town(random), config, random)
        for _ in range(600):
            traffic.step()
        scenes = []
        for scene in range(config.scenes):
            scenes.append(record(traffic, f"town{number:02d}_{scene:03d}"))
            for _ in range(_PAUSE):
                traffic.step()
        write_recording(base, f"town{number:02d}", scenes)
        if progress is not None:
            progress(number + 1, config.towns)


def _unit(angle: Floats) -> Floats:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)
