"""From tracks to tokens, once: the rule ``tokenise`` reads a directory of tracks and writes `scenarios.h5`.

A road user's 9.1 s are 18 tokens. The match rolls: each is sought in the frame in which the one before it
ended, so that errors do not add up. Only road users that are seen at the present take part; the map is cut
by what was seen up to then. Nothing that a model is given depends on a later moment.

Shape suffixes: A road users, T steps, K tokens of a road user (18), M pieces of road, V tokens, N any.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from millrace.systems.traffic.tracks import CLASSES, LINES, PRESENT, STEPS, Polyline, Scene
from millrace.systems.traffic.vocabulary import (
    POSES,
    Vocabulary,
    corners,
    embed_pieces,
    embed_poses,
    into_frame,
    out_of_frame,
)

Floats = NDArray[np.float64]

STRIDE = POSES - 1
"""Steps of a motion token."""
TOKENS = (STEPS - 1) // STRIDE
"""Tokens of a road user."""
HISTORY = PRESENT // STRIDE
"""Tokens that are known at the present."""
PIECE = 5.0
"""Longest piece of road (m)."""

_CANDIDATES = 8


def segments_of(scene: Scene, kind: int) -> Floats:
    """All half seconds of a class in the frames of their first poses, [N, 6, 3]."""
    pose_AT3 = scene.pose_AT3[scene.kind_A == kind]
    windows = np.lib.stride_tricks.sliding_window_view(pose_AT3, POSES, axis=1)
    found = windows.transpose(0, 1, 3, 2).reshape(-1, POSES, 3)
    found = found[np.isfinite(found).all(axis=(1, 2))]
    return into_frame(found, found[:, :1])


@dataclass(frozen=True, eq=False)
class Pieces:
    """Lines of a map in pieces of at most `PIECE`."""

    point_M32: Floats
    """Begin, middle, end (m)."""
    line_M: NDArray[np.int64]
    """Index of the line."""

    @property
    def pose_M3(self) -> Floats:
        """Begin, and direction of the chord."""
        chord = self.point_M32[:, 2] - self.point_M32[:, 0]
        heading = np.arctan2(chord[:, 1], chord[:, 0])
        return np.concatenate([self.point_M32[:, 0], heading[:, None]], axis=1)

    @property
    def local_M32(self) -> Floats:
        """In the frames of the chords."""
        heading = np.zeros((*self.point_M32.shape[:2], 1))
        poses = np.concatenate([self.point_M32, heading], axis=2)
        return into_frame(poses, self.pose_M3[:, None])[..., :2]


def cut(lines: Sequence[Polyline]) -> Pieces:
    """Cut lines into equal pieces."""
    points, owner = [np.empty((0, 3, 2))], [np.empty(0, dtype=np.int64)]
    for number, line in enumerate(lines):
        step = np.linalg.norm(np.diff(line.points_P2, axis=0), axis=1)
        along = np.concatenate([[0.0], step.cumsum()])
        if along[-1] < 1e-6:
            continue
        n = int(np.ceil(along[-1] / PIECE))
        s = np.linspace(0, along[-1], 2 * n + 1)
        at = np.stack([np.interp(s, along, line.points_P2[:, axis]) for axis in (0, 1)], axis=1)
        first = 2 * np.arange(n)
        points.append(np.stack([at[first], at[first + 1], at[first + 2]], axis=1))
        owner.append(np.full(n, number))
    return Pieces(np.concatenate(points), np.concatenate(owner))


class Matcher:
    """Finds nearest tokens; made once for a vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._end = [tokens[:, -1] for tokens in vocabulary.motion]
        self._corner = [corners(end, kind) for kind, end in enumerate(self._end)]
        self._tree = [cKDTree(embed_poses(end, kind)) for kind, end in enumerate(self._end)]
        self._road = cKDTree(embed_pieces(vocabulary.road))

    def road(self, pieces: Pieces) -> NDArray[np.int16]:
        """Token of each piece."""
        if not len(pieces.line_M):
            return np.empty(0, dtype=np.int16)
        return self._road.query(embed_pieces(pieces.local_M32))[1].astype(np.int16)

    def nearest(self, pose_N3: Floats, kind: int) -> NDArray[np.int64]:
        """Token whose end has the smallest mean distance of corners to each local pose.

        A few candidates come from the k-d tree. The mean distance is at least 1/√2 of the tree's, so
        that beyond the last candidate nothing can be nearer than that; where this is not enough, all
        tokens are compared.
        """
        n = min(_CANDIDATES, len(self._end[kind]))
        point = embed_poses(pose_N3, kind)
        bound, index = self._tree[kind].query(point, k=n)
        bound, index = bound.reshape(-1, n), index.reshape(-1, n)
        target = corners(pose_N3, kind)
        apart = _mean_distance(self._corner[kind][index], target[:, None])
        best = np.argmin(apart, axis=1)
        rows = np.arange(len(pose_N3))
        found = index[rows, best]
        if n < len(self._end[kind]):
            unsure = np.flatnonzero(bound[:, -1] / np.sqrt(2) < apart[rows, best])
            if len(unsure):
                all_tokens = _mean_distance(self._corner[kind], target[unsure, None])
                found[unsure] = np.argmin(all_tokens, axis=1)
        return found

    def motion(
        self, pose_AT3: Floats, kind: int
    ) -> tuple[NDArray[np.int16], Floats, NDArray[np.bool_]]:
        """Tokens of road users of one class.

        Parameters
        ----------
        pose_AT3 : ndarray
            NaN where not seen; float64.
        kind : int

        Returns
        -------
        token_AK, pose_AK3, valid_AK
            Numbers, poses at their ends, and where there is a token: both ends were seen. The first
            after a gap begins at the true pose.
        """
        n = len(pose_AT3)
        token = np.zeros((n, TOKENS), dtype=np.int16)
        end = np.zeros((n, TOKENS, 3))
        seen = np.isfinite(pose_AT3[:, ::STRIDE, 0])
        valid = seen[:, :-1] & seen[:, 1:]
        frame = pose_AT3[:, 0].copy()
        for k in range(TOKENS):
            fresh = ~valid[:, k - 1] if k else np.ones(n, dtype=bool)
            frame[fresh] = pose_AT3[fresh, k * STRIDE]
            rows = np.flatnonzero(valid[:, k])
            if not len(rows):
                continue
            target = pose_AT3[rows, (k + 1) * STRIDE]
            found = self.nearest(into_frame(target, frame[rows]), kind)
            token[rows, k] = found
            frame[rows] = out_of_frame(self._end[kind][found], frame[rows])
            end[rows, k] = frame[rows]
        return token, end, valid


def _mean_distance(one: Floats, other: Floats) -> Floats:
    return np.linalg.norm(one - other, axis=-1).mean(axis=-1)


@dataclass(frozen=True, eq=False)
class Tokens:
    """A scene as a model sees it, and what it is scored on. Positions are relative to ``origin_2``."""

    name: str
    origin_2: Floats
    track_A: tuple[str, ...]
    kind_A: NDArray[np.int8]
    size_A2: Floats
    token_AK: NDArray[np.int16]
    pose_AK3: Floats
    valid_AK: NDArray[np.bool_]
    true_AT3: Floats
    """Tracks as given; NaN where not seen."""
    token_M: NDArray[np.int16]
    type_M: NDArray[np.int8]
    """Index into `LINES`."""
    point_M32: Floats
    next_M: NDArray[np.int32]
    """The piece that continues a line; -1 at its end."""
    light_M: NDArray[np.int32]
    """Row of ``light_LK``; -1 where there is no signal."""
    light_LK: NDArray[np.int8]
    """State at the ends of the tokens."""


@dataclass
class Tokeniser:
    """Tokenises scenes, many at a time.

    Parameters
    ----------
    vocabulary : Vocabulary
    margin : float
        The map reaches this far beyond what was seen up to the present (m).
    max_agents : int
        Those nearest to the middle of the present scene are kept.
    """

    vocabulary: Vocabulary
    margin: float = 80.0
    max_agents: int = 64
    _matcher: Matcher = field(init=False)
    _maps: dict[int, tuple[tuple[Polyline, ...], Pieces, NDArray[np.int16]]] = field(
        init=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        self._matcher = Matcher(self.vocabulary)

    def __call__(self, scenes: Sequence[Scene]) -> Iterator[Tokens]:
        """Tokenise scenes together: the k-d tree is asked once a class and step for all of them.

        Scenes without anybody at the present are left out.
        """
        kept = [(scene, self._present(scene)) for scene in scenes]
        kept = [(scene, rows) for scene, rows in kept if len(rows)]
        if not kept:
            return
        owner = np.repeat(np.arange(len(kept)), [len(rows) for _, rows in kept])
        kind_A = np.concatenate([scene.kind_A[rows] for scene, rows in kept])
        pose_AT3 = np.concatenate([scene.pose_AT3[rows] for scene, rows in kept])
        origin = np.array([_middle(scene.pose_AT3[rows, PRESENT, :2]) for scene, rows in kept])
        pose_AT3[..., :2] -= origin[owner][:, None]
        token = np.zeros((len(kind_A), TOKENS), dtype=np.int16)
        end = np.zeros((len(kind_A), TOKENS, 3))
        valid = np.zeros((len(kind_A), TOKENS), dtype=bool)
        for kind in range(len(CLASSES)):
            own = np.flatnonzero(kind_A == kind)
            if len(own):
                token[own], end[own], valid[own] = self._matcher.motion(pose_AT3[own], kind)
        first = np.searchsorted(owner, np.arange(len(kept) + 1))
        for number, (scene, rows) in enumerate(kept):
            part = slice(first[number], first[number + 1])
            yield Tokens(
                name=scene.name,
                origin_2=origin[number],
                track_A=tuple(np.array(scene.track_A)[rows].tolist()),
                kind_A=kind_A[part],
                size_A2=scene.size_A2[rows],
                token_AK=token[part],
                pose_AK3=end[part],
                valid_AK=valid[part],
                true_AT3=pose_AT3[part],
                **self._road(scene, rows, origin[number]),
            )

    def _present(self, scene: Scene) -> NDArray[np.int64]:
        """Road users that are seen half a second ago and now, the nearest to their middle."""
        seen = scene.seen_AT[:, [PRESENT - STRIDE, PRESENT]].all(axis=1)
        rows = np.flatnonzero(seen)
        if len(rows) > self.max_agents:
            place = scene.pose_AT3[rows, PRESENT, :2]
            far = np.linalg.norm(place - _middle(place), axis=1)
            rows = np.sort(rows[np.argsort(far, kind="stable")[: self.max_agents]])
        return rows

    def _road(self, scene: Scene, rows: NDArray[np.int64], origin: Floats) -> dict[str, NDArray]:
        key = id(scene.road)
        if key not in self._maps:
            pieces = cut(scene.road)
            # The map itself is kept, too, so that nothing else can get its id.
            self._maps = {key: (scene.road, pieces, self._matcher.road(pieces))}
        _, pieces, token_M = self._maps[key]
        past = scene.pose_AT3[rows, : PRESENT + 1, :2].reshape(-1, 2)
        low, high = np.nanmin(past, axis=0) - self.margin, np.nanmax(past, axis=0) + self.margin
        begin, end = pieces.point_M32[:, 0], pieces.point_M32[:, 2]
        inside = ((begin >= low) & (begin <= high) & (end >= low) & (end <= high)).all(axis=1)
        kept = np.flatnonzero(inside)
        line_M = pieces.line_M[kept]
        follows = np.flatnonzero((line_M[1:] == line_M[:-1]) & (np.diff(kept) == 1))
        next_M = np.full(len(kept), -1, dtype=np.int32)
        next_M[follows] = follows + 1
        names = list(scene.lights)
        row_of = {name: row for row, name in enumerate(names)}
        states = [scene.lights[name][STRIDE::STRIDE] for name in names]
        return {
            "token_M": token_M[kept],
            "type_M": np.array([LINES.index(scene.road[i].type) for i in line_M], dtype=np.int8),
            "point_M32": pieces.point_M32[kept] - origin,
            "next_M": next_M,
            "light_M": np.array(
                [row_of.get(scene.road[i].name, -1) for i in line_M], dtype=np.int32
            ),
            "light_LK": np.array(states, dtype=np.int8).reshape(-1, TOKENS),
        }


def _middle(place_N2: Floats) -> Floats:
    return (place_N2.min(axis=0) + place_N2.max(axis=0)) / 2
