"""Whether recorded traffic can be what it is said to be: units, and a map below the tracks.

Motion is known twice, from positions and from the velocities and headings that a file gives: where the two
differ by the factor between two units, the file is in the other unit.

Shape suffixes: A agents, T steps, N any.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from millrace.data.units import factor
from millrace.errors import DataError
from millrace.systems.traffic.geometry import Floats, arc_length, resample, wrap
from millrace.systems.traffic.tracks import CLASSES, STEP_S, Polyline, Scenario

_MOVING = 2.0  # m/s, above which a path has a clear direction
_ENOUGH = 20  # observations of motion, below which nothing is concluded
_FACTORS = {
    factor("m/s", "km/h"): "km/h",
    factor("m/s", "mph"): "mph",
    factor("m/s", "ft/s"): "ft/s, or the positions in metres times 0.3",
    factor("m/s", "knots"): "knots",
    factor("ft", "m"): "m/s, but the positions in feet",
    STEP_S: "metres a step",
    1 / STEP_S: "m/s, but the positions of another rate than 10 Hz",
    factor("m", "cm"): "cm/s",
    factor("m", "mm"): "mm/s, or the positions in km",
}
_SAME = 0.05  # relative
_FASTEST = (100.0, 12.0, 30.0)  # m/s, medians of the classes that are not believed
_LONGEST = 100.0  # m, of an agent
_TURNS = 8 * np.pi  # rad: headings may be counted on over full turns, but not so many
_ASKEW, _FEW, _MANY = 0.35, 0.02, 0.1  # rad; fractions of the observations
_ANGLES: dict[str, Callable[[Floats], Floats]] = {
    "degrees counter-clockwise from +x": lambda angle: np.radians(angle),
    "degrees clockwise from north": lambda angle: np.pi / 2 - np.radians(angle),
    "radians clockwise from north": lambda angle: np.pi / 2 - angle,
    "radians clockwise from +x": lambda angle: -angle,
    "radians, turned by half a turn": lambda angle: angle + np.pi,
}
_OFF = 250.0  # m, from the nearest line of the map; no agent is always farther
_LOST = 500.0  # m, no agent is ever farther
_USUAL = 100.0  # m, half of all positions are nearer
_TOGETHER = 1e8  # m, of all lines of a map
_APART = 5_000.0  # m, between agents of one scenario


def check_motion(where: Path, scenario: Scenario) -> None:
    """Compare velocities and headings of a scenario with its positions.

    Raises
    ------
    DataError
        They are in another unit, which is named, or no road user moves like that or is so long.
    """
    at = f"{where}: scenario {scenario.name!r}"
    heading_AT, velocity = scenario.pose_AT3[..., 2], scenario.velocity_AT2
    _check_largest(at, scenario, "length", scenario.size_A2.max(axis=1)[:, None], _LONGEST, "m")
    step_AT2 = np.diff(scenario.pose_AT3[..., :2], axis=1) / STEP_S
    path_AT = np.hypot(*np.moveaxis(step_AT2, -1, 0))
    moving_AT = path_AT > _MOVING  # False for NaN
    for kind, fastest in enumerate(_FASTEST):
        speeds = path_AT[(scenario.kind_A == kind)[:, None] & moving_AT]
        if len(speeds) >= _ENOUGH and (usual := float(np.median(speeds))) > fastest:
            told = (
                f"{at}: {CLASSES[kind]}s move at {usual:.0f} m/s by their positions and steps of "
                f"{STEP_S} s; expected metres, and 10 Hz"
            )
            if usual > _FASTEST[0]:
                raise DataError(f"{told}: convert them")
            print(f"warning: {told}")
    said_AT = np.hypot(*np.moveaxis(velocity, -1, 0))
    if moving_AT.sum() >= _ENOUGH:
        both = (said_AT[:, 1:] + said_AT[:, :-1]) / 2
        ratio = float(np.nanmedian(both[moving_AT] / path_AT[moving_AT]))
        for usual, unit in _FACTORS.items():
            if abs(ratio / usual - 1) < _SAME:
                raise DataError(
                    f"{at}: velocity_x and velocity_y are {ratio:.3g} times the speed of the positions, "
                    f"probably {unit}; expected metres and m/s, convert them"
                )
        if not 2 / 3 < ratio < 3 / 2:
            print(
                f"warning: {at}: velocities are {ratio:.3g} times the speed of the positions; "
                "expected m/s"
            )
        cars_AT = moving_AT & (scenario.kind_A != CLASSES.index("pedestrian"))[:, None]
        if cars_AT.sum() >= _ENOUGH:
            way = np.arctan2(step_AT2[..., 1], step_AT2[..., 0])[cars_AT]
            _check_headings(at, heading_AT[:, :-1][cars_AT], way)
    _check_largest(at, scenario, "heading", np.abs(heading_AT), _TURNS, "rad")
    _check_largest(at, scenario, "speed", said_AT, 2 * _FASTEST[0], "m/s")


def _check_headings(at: str, heading_N: Floats, way_N: Floats) -> None:
    """Compare headings with the directions of the paths."""

    def askew(angle_N: Floats) -> float:
        return float(np.mean(np.abs(wrap(angle_N - way_N)) > _ASKEW))

    if (now := askew(heading_N)) <= _MANY:
        return
    for unit, converted in _ANGLES.items():
        if askew(converted(heading_N)) < _FEW:
            raise DataError(
                f"{at}: headings are probably in {unit}, by which they follow the paths; expected "
                "radians counter-clockwise from +x, convert them"
            )
    print(
        f"warning: {at}: {now:.0%} of the headings do not follow the paths; expected radians "
        "counter-clockwise from +x"
    )


def _check_largest(
    at: str, scenario: Scenario, what: str, value_AN: Floats, limit: float, unit: str
) -> None:
    """Refuse values that no agent has, such as those that stand for no value."""
    beyond = np.argwhere(value_AN > limit)
    if len(beyond):
        a, t = map(int, beyond[0])
        step = f", step {t}" if value_AN.shape[1] > 1 else ""
        raise DataError(
            f"{at}, track {scenario.track_A[a]!r}{step}: {what} {value_AN[a, t]:g}; expected {unit}, "
            f"below {limit:.0f}: convert it, or remove the row if it stands for no value"
        )


class MapBelow:
    """Compares positions with a map: it has to lie below the tracks.

    Parameters
    ----------
    tracks, map
        Files of the tracks and of the map, for messages.
    road : sequence of Polyline
        The map; one without a line is compared with nothing.
    """

    def __init__(self, tracks: Path, map: Path, road: Sequence[Polyline]) -> None:
        self._tracks, self._map = tracks, map
        length = sum(float(arc_length(line.points_P2)[-1]) for line in road)
        if not length < _TOGETHER:
            raise DataError(
                f"{map}: its lines are {length / 1000:.3g} km long together; expected a map of one place, "
                "in metres"
            )
        points = [resample(line.points_P2, 5.0) for line in road]
        self._point_N2 = np.concatenate(points) if points else np.empty((0, 2))
        self._tree = cKDTree(self._point_N2) if points else None

    def check(self, scenario: Scenario) -> None:
        """Check a scenario.

        Raises
        ------
        DataError
            The map lies elsewhere, or the scenario holds two places.
        """
        place_AT2: Floats = scenario.pose_AT3[..., :2]
        seen_AT = scenario.observed_AT
        if not seen_AT.any():
            return
        low, high = place_AT2[seen_AT].min(axis=0), place_AT2[seen_AT].max(axis=0)
        if self._tree is not None:
            agent_N, step_N = np.nonzero(seen_AT)
            apart_N = np.asarray(self._tree.query(place_AT2[seen_AT])[0])
            nearest_A = np.zeros(len(seen_AT))
            nearest_A[agent_N] = np.inf
            np.minimum.at(nearest_A, agent_N, apart_N)
            off = nearest_A.max() > _OFF or apart_N.max() > _LOST
            if off or np.median(apart_N) > _USUAL:
                n = int(np.argmax(apart_N))
                self._refuse(scenario, int(agent_N[n]), int(step_N[n]), float(apart_N[n]))
        if (spread := float(np.linalg.norm(high - low))) > _APART:
            raise DataError(
                f"{self._tracks}: scenario {scenario.name!r} holds agents {spread / 1000:.1f} km apart, "
                f"from {_shown(low)} to {_shown(high)}; expected one place, divide it"
            )

    def _refuse(self, scenario: Scenario, a: int, t: int, apart: float) -> None:
        place = scenario.pose_AT3[a, t, :2]
        raise DataError(
            f"{self._tracks}: scenario {scenario.name!r}, track {scenario.track_A[a]!r}, step {t}: at "
            f"{_shown(place)}, {_length(apart)} from the nearest line of {self._map}, which lies between "
            f"{_shown(self._point_N2.min(axis=0))} and {_shown(self._point_N2.max(axis=0))}; expected a "
            "map below the tracks, of one place and in the same coordinates (m)"
        )


def _shown(place_2: Floats) -> str:
    return f"({place_2[0]:.1f}, {place_2[1]:.1f})"


def _length(metres: float) -> str:
    return f"{metres / 1000:.1f} km" if metres >= 1000 else f"{metres:.0f} m"


def checked(tracks: Path, map: Path, scenarios: Iterable[Scenario]) -> Iterator[Scenario]:
    """Check scenarios that share a map, one at a time, see `check_motion` and `MapBelow`.

    Raises
    ------
    DataError
        A scenario is not plausible.
    """
    below: MapBelow | None = None
    for scenario in scenarios:
        below = below or MapBelow(tracks, map, scenario.road)
        below.check(scenario)
        check_motion(tracks, scenario)
        yield scenario
