"""Tokenisation of scenarios: motion tokens of the agents, and road tokens of the map below them.

The 9.1 s of an agent become 18 motion tokens. Each token is matched in the frame in which the token before
it ended (rolling matching), so that errors do not add up. Only agents that are observed at the current step
take part, and the map is cut by what was observed up to then: nothing that a model is given depends on a
later step.

Shape suffixes: A agents, T steps, K motion tokens of an agent (18), M road segments, V tokens, L traffic
lights, N any.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from millrace.data.account import Account
from millrace.systems.traffic.geometry import (
    Floats,
    arc_length,
    global_poses,
    interpolate,
    local_points,
    local_poses,
)
from millrace.systems.traffic.tracks import (
    CLASSES,
    CURRENT_STEP,
    LINE_TYPES,
    STEP_S,
    STEPS,
    Polyline,
    Scenario,
)
from millrace.systems.traffic.vocabulary import POSES, ROAD, Vocabulary, corners, embed, embed_poses

STRIDE = POSES - 1
"""Steps of a motion token."""
TOKENS = (STEPS - 1) // STRIDE
"""Motion tokens of an agent."""
HISTORY = CURRENT_STEP // STRIDE
"""Motion tokens that are known at the current step."""

_SEGMENT = 5.0  # m, longest road segment, as in SMART
_CANDIDATES = 8


def motion_segments(scenario: Scenario, kind: int) -> Floats:
    """All half seconds of a class of agents in the frames of their first poses, [N, 6, 3]."""
    pose_AT3 = scenario.pose_AT3[scenario.kind_A == kind]
    windows = np.lib.stride_tricks.sliding_window_view(pose_AT3, POSES, axis=1)
    found = windows.transpose(0, 1, 3, 2).reshape(-1, POSES, 3)
    found = found[np.isfinite(found).all(axis=(1, 2))]
    return local_poses(found, found[:, :1])


@dataclass(frozen=True, eq=False)
class RoadSegments:
    """Polylines of a map, divided into segments of at most five metres."""

    point_M32: Floats
    """Begin, middle and end (m)."""
    line_M: NDArray[np.int64]
    """Index of the polyline."""

    @property
    def local_M32(self) -> Floats:
        """Points in the frames of the chords."""
        begin, chord = self.point_M32[:, 0], self.point_M32[:, 2] - self.point_M32[:, 0]
        frame = np.column_stack([begin, np.arctan2(chord[:, 1], chord[:, 0])])
        return local_points(self.point_M32, frame[:, None])


def road_segments(lines: Sequence[Polyline]) -> RoadSegments:
    """Divide each polyline into segments of equal length."""
    points, owner = [np.empty((0, 3, 2))], [np.empty(0, dtype=np.int64)]
    for number, line in enumerate(lines):
        length = arc_length(line.points_P2)
        if length[-1] < 1e-6:
            continue
        n = int(np.ceil(length[-1] / _SEGMENT))
        at = interpolate(line.points_P2, length, np.linspace(0, length[-1], 2 * n + 1))
        points.append(np.stack([at[:-1:2], at[1::2], at[2::2]], axis=1))
        owner.append(np.full(n, number))
    return RoadSegments(np.concatenate(points), np.concatenate(owner))


@dataclass(frozen=True, eq=False)
class TokenisedScenario:
    """A scenario as a model sees it, and what it is scored on. Positions are relative to ``origin_2``."""

    name: str
    origin_2: Floats
    track_A: tuple[str, ...]
    kind_A: NDArray[np.int8]
    size_A2: Floats
    token_AK: NDArray[np.int16]
    pose_AK3: Floats
    """At the ends of the tokens."""
    valid_AK: NDArray[np.bool_]
    """Where there is a token."""
    true_AT3: Floats
    """Poses as recorded; NaN where not observed."""
    token_M: NDArray[np.int16]
    type_M: NDArray[np.int8]
    """Index into `LINE_TYPES`."""
    point_M32: Floats
    next_M: NDArray[np.int32]
    """The segment that continues the polyline; -1 at its end."""
    light_M: NDArray[np.int32]
    """Row of ``light_LK``; -1 where there is no traffic light."""
    light_LK: NDArray[np.int8]
    """State at the ends of the tokens, index into `LIGHT_STATES`."""


class Tokeniser:
    """Tokenises scenarios, many at a time.

    Parameters
    ----------
    vocabulary : Vocabulary
    margin : float
        The map reaches this far beyond what was observed up to the current step (m).
    max_agents : int
        Agents of a scenario that are kept, those nearest to the middle of all at the current step.
    """

    def __init__(self, vocabulary: Vocabulary, margin: float = 80.0, max_agents: int = 64) -> None:
        self._margin, self._max_agents = margin, max_agents
        self._end = [tokens[:, -1] for tokens in vocabulary.motion]
        self._corner = [corners(end, kind) for kind, end in enumerate(self._end)]
        self._tree = [cKDTree(embed(v, kind)) for kind, v in enumerate(vocabulary.tokens.values())]
        self._map: tuple[tuple[Polyline, ...], RoadSegments, NDArray[np.int16]] | None = None

    def __call__(
        self, scenarios: Sequence[Scenario], account: Account | None = None
    ) -> Iterator[TokenisedScenario]:
        """Tokenise scenarios together: one query of the k-d tree for each class and token, not scenario.

        Agents that are not observed at the current step, those beyond ``max_agents``, and scenarios without
        an agent are left out, and counted in ``account``.
        """
        kept = [(one, rows) for one in scenarios if len(rows := self._agents(one))]
        if account is not None:
            now = [int(one.observed_AT[:, CURRENT_STEP].sum()) for one in scenarios]
            taken = sum(len(rows) for _, rows in kept)
            later = sum(len(one.track_A) for one in scenarios) - sum(now)
            account.keep("agents", taken)
            account.leave_out("agents", f"not observed at step {CURRENT_STEP}", later)
            account.leave_out("agents", f"beyond max_agents = {self._max_agents}", sum(now) - taken)
            empty = len(scenarios) - len(kept)
            account.leave_out("scenarios", f"without an agent at step {CURRENT_STEP}", empty)
        if not kept:
            return
        sizes = [len(rows) for _, rows in kept]
        kind_A = np.concatenate([one.kind_A[rows] for one, rows in kept])
        pose_AT3 = np.concatenate([one.pose_AT3[rows] for one, rows in kept])
        origin = np.array([_middle(one.pose_AT3[rows, CURRENT_STEP, :2]) for one, rows in kept])
        pose_AT3[..., :2] -= np.repeat(origin, sizes, axis=0)[:, None]
        velocity_AT2 = np.concatenate([one.velocity_AT2[rows] for one, rows in kept])
        known_AT3 = with_past(pose_AT3, velocity_AT2)
        token = np.zeros((len(kind_A), TOKENS), dtype=np.int16)
        end = np.zeros((len(kind_A), TOKENS, 3))
        valid = np.zeros((len(kind_A), TOKENS), dtype=bool)
        for kind in range(len(CLASSES)):
            own = kind_A == kind
            token[own], end[own], valid[own] = self.match(known_AT3[own], kind)
        for number, ((one, rows), stop) in enumerate(zip(kept, np.cumsum(sizes), strict=True)):
            part = slice(stop - len(rows), stop)
            yield TokenisedScenario(
                name=one.name,
                origin_2=origin[number],
                track_A=tuple(one.track_A[row] for row in rows),
                kind_A=kind_A[part],
                size_A2=one.size_A2[rows],
                token_AK=token[part],
                pose_AK3=end[part],
                valid_AK=valid[part],
                true_AT3=pose_AT3[part],
                **self._road(one, rows, origin[number]),
            )

    def match(
        self, pose_AT3: Floats, kind: int
    ) -> tuple[NDArray[np.int16], Floats, NDArray[np.bool_]]:
        """Find the motion tokens of agents of one class.

        Parameters
        ----------
        pose_AT3 : ndarray
            Poses; NaN where not observed.
        kind : int
            Index into `CLASSES`.

        Returns
        -------
        token_AK, pose_AK3, valid_AK
            Numbers of the tokens, poses at their ends, and where there is a token: the agent is observed at
            both ends of the half second. The first token after a gap begins at the true pose.
        """
        n = len(pose_AT3)
        token = np.zeros((n, TOKENS), dtype=np.int16)
        end = np.zeros((n, TOKENS, 3))
        seen = np.isfinite(pose_AT3[:, ::STRIDE, 0])
        valid = seen[:, :-1] & seen[:, 1:]
        frame = pose_AT3[:, 0].copy()
        for k in range(TOKENS):
            if k:
                fresh = ~valid[:, k - 1]
                frame[fresh] = pose_AT3[fresh, k * STRIDE]
            rows = np.flatnonzero(valid[:, k])
            if len(rows):
                target = local_poses(pose_AT3[rows, (k + 1) * STRIDE], frame[rows])
                token[rows, k] = found = self.nearest(target, kind)
                end[rows, k] = frame[rows] = global_poses(self._end[kind][found], frame[rows])
        return token, end, valid

    def nearest(self, pose_N3: Floats, kind: int) -> NDArray[np.int64]:
        """Token whose end has the smallest mean distance of box corners to each local pose, [N].

        A few candidates come from the k-d tree. The mean distance is at least 1/√2 of the tree's distance,
        so that no token beyond the last candidate can be nearer than that; where this is not enough to be
        sure, all tokens are compared.
        """
        count = min(_CANDIDATES, len(self._end[kind]))
        bound, index = self._tree[kind].query(embed_poses(pose_N3, kind), k=range(1, count + 1))
        target = corners(pose_N3, kind)
        apart = _mean_distance(self._corner[kind][index], target[:, None])
        best = np.argmin(apart, axis=1)
        rows = np.arange(len(pose_N3))
        found = index[rows, best]
        if count < len(self._end[kind]):
            unsure = np.flatnonzero(bound[:, -1] / np.sqrt(2) < apart[rows, best])
            all_tokens = _mean_distance(self._corner[kind], target[unsure, None])
            found[unsure] = np.argmin(all_tokens, axis=1)
        return found

    def _agents(self, scenario: Scenario) -> NDArray[np.int64]:
        """Agents that are observed now, the nearest to the middle of all."""
        rows = np.flatnonzero(scenario.observed_AT[:, CURRENT_STEP])
        if len(rows) > self._max_agents:
            place = scenario.pose_AT3[rows, CURRENT_STEP, :2]
            far = np.linalg.norm(place - _middle(place), axis=1)
            rows = np.sort(rows[np.argsort(far, kind="stable")[: self._max_agents]])
        return rows

    def _road(
        self, scenario: Scenario, agents: NDArray[np.int64], origin_2: Floats
    ) -> dict[str, NDArray]:
        """Road segments, their tokens and lights, near the history of the agents."""
        road = scenario.road
        if self._map is None or self._map[0] is not road:
            segments = road_segments(road)
            tokens = self._tree[ROAD].query(embed(segments.local_M32, ROAD))[1]
            self._map = road, segments, tokens.astype(np.int16)
        _, segments, token_M = self._map
        past = scenario.pose_AT3[agents, : CURRENT_STEP + 1, :2].reshape(-1, 2)
        low, high = np.nanmin(past, axis=0) - self._margin, np.nanmax(past, axis=0) + self._margin
        ends = segments.point_M32[:, ::2]
        kept = np.flatnonzero(((ends >= low) & (ends <= high)).all(axis=(1, 2)))
        line_M = segments.line_M[kept]
        follows = np.append((np.diff(line_M) == 0) & (np.diff(kept) == 1), False)
        row_of = {name: row for row, name in enumerate(scenario.lights)}
        types = np.array([LINE_TYPES.index(line.type) for line in road], dtype=np.int8)
        lights = np.array([row_of.get(line.name, -1) for line in road], dtype=np.int32)
        states = [series[STRIDE::STRIDE] for series in scenario.lights.values()]
        return {
            "token_M": token_M[kept],
            "type_M": types[line_M],
            "point_M32": segments.point_M32[kept] - origin_2,
            "next_M": np.where(follows, np.arange(1, len(kept) + 1), -1).astype(np.int32),
            "light_M": lights[line_M],
            "light_LK": np.array(states, dtype=np.int8).reshape(-1, TOKENS),
        }


def with_past(pose_AT3: Floats, velocity_AT2: Floats) -> Floats:
    """Poses with which every agent that is observed now has a last token of the history, [A, T, 3].

    An agent that was not observed half a second ago is taken to have come straight, at the velocity and
    with the heading of its first observation since, as in CAT-K (Zhang, Karkus, Igl et al. 2025). Others
    are as recorded.
    """
    found = pose_AT3.copy()
    before = CURRENT_STEP - STRIDE
    for a in np.flatnonzero(np.isnan(pose_AT3[:, before, 0])):
        seen_T = np.isfinite(pose_AT3[a, before : CURRENT_STEP + 1, 0])
        if seen_T[-1]:
            first = before + int(np.flatnonzero(~seen_T)[-1]) + 1
            found[a, : CURRENT_STEP + 1] = np.nan
            found[a, first : CURRENT_STEP + 1] = pose_AT3[a, first : CURRENT_STEP + 1]
            found[a, before] = pose_AT3[a, first]
            found[a, before, :2] -= velocity_AT2[a, first] * STEP_S * (first - before)
    return found


def _mean_distance(one: Floats, other: Floats) -> Floats:
    return np.linalg.norm(one - other, axis=-1).mean(axis=-1)


def _middle(place_N2: Floats) -> Floats:
    return (place_N2.min(axis=0) + place_N2.max(axis=0)) / 2
