"""Distances between road users, and from them to the edges of the road.

Shape suffixes: S rollouts, A road users, T steps, E pieces of edge, N any.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]

NOBODY = 1e3
"""Distance (m) where there is nobody else, or no edge."""

_CANDIDATES = 8
_SIGN = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2


def box_corners(pose: Floats, size: Floats) -> Floats:
    """Corners of boxes, [..., 4, 2]; poses [..., 3], sizes (length, width) [..., 2]."""
    local = _SIGN * size[..., None, :]
    c, s = np.cos(pose[..., 2])[..., None], np.sin(pose[..., 2])[..., None]
    x = pose[..., :1] + c * local[..., 0] - s * local[..., 1]
    y = pose[..., 1:2] + s * local[..., 0] + c * local[..., 1]
    return np.stack([x, y], axis=-1)


def box_distance(pose: Floats, size: Floats, other_pose: Floats, other_size: Floats) -> Floats:
    """Signed distance between two rectangles (m): below 0, how far they have to be moved apart.

    Apart, two rectangles are nearest at a corner of one of them. Where they overlap, the depth is the
    least overlap along their four axes (separating axis theorem). Arguments broadcast; NaN stays NaN.
    """
    pairs = ((pose, size, other_pose, other_size), (other_pose, other_size, pose, size))
    outside, overlaps = [], []
    for own, own_size, other, its_size in pairs:
        corner = box_corners(other, its_size) - own[..., None, :2]
        c, s = np.cos(own[..., 2])[..., None], np.sin(own[..., 2])[..., None]
        local = np.stack(
            [c * corner[..., 0] + s * corner[..., 1], c * corner[..., 1] - s * corner[..., 0]],
            axis=-1,
        )
        half = own_size[..., None, :] / 2
        beyond = np.maximum(np.abs(local) - half, 0)
        outside.append(np.hypot(beyond[..., 0], beyond[..., 1]).min(axis=-1))
        low, high = local.min(axis=-2), local.max(axis=-2)
        overlaps.append(np.minimum(half[..., 0, :] - low, high + half[..., 0, :]).min(axis=-1))
    depth = np.minimum(*overlaps)
    return np.where(depth > 0, -depth, np.minimum(*outside))


def nearest_box(pose_SAT3: Floats, size_A2: Floats) -> Floats:
    """Signed distance to the nearest other, [S, A, T]; `NOBODY` without others, NaN where not seen.

    Rectangles are at most as far apart as their middles, and nearer by at most half of their diagonals:
    only those others that may be the nearest are looked at.
    """
    result = np.full(pose_SAT3.shape[:3], NOBODY)
    reach_A = np.hypot(*size_A2.T) / 2
    for s, pose_AT3 in enumerate(pose_SAT3):
        apart_AAT = _apart(pose_AT3)
        least_AT = np.fmin.reduce(apart_AAT, axis=1, initial=np.inf)
        low_AAT = apart_AAT - reach_A[:, None, None] - reach_A[:, None]
        a, b, t = np.nonzero((low_AAT <= least_AT[:, None]) & np.isfinite(low_AAT))
        found = box_distance(pose_AT3[a, t], size_A2[a], pose_AT3[b, t], size_A2[b])
        np.minimum.at(result[s], (a, t), found)
    return np.where(np.isfinite(pose_SAT3[..., 0]), result, np.nan)


def _apart(pose_AT3: Floats) -> Floats:
    """Distances between middles, [A, A, T]; infinite to oneself and to who is not seen."""
    offset = pose_AT3[:, None, :, :2] - pose_AT3[None, :, :, :2]
    apart = np.hypot(offset[..., 0], offset[..., 1])
    apart[np.arange(len(apart)), np.arange(len(apart))] = np.inf
    return np.where(np.isfinite(apart), apart, np.inf)


def time_to_collision(pose_SAT3: Floats, speed_SAT: Floats, size_A2: Floats, cap: float) -> Floats:
    """Time (s) until each runs into whom it follows if both keep their speed, at most ``cap``.

    Whom it follows: the nearest ahead, within its width and in about its direction (60 degrees).
    """
    result = np.full(pose_SAT3.shape[:3], cap)
    if pose_SAT3.shape[1] < 2:
        return np.where(np.isfinite(speed_SAT), result, np.nan)
    long_AA1 = (size_A2[:, None, 0] + size_A2[:, 0])[..., None] / 2
    wide_AA1 = (size_A2[:, None, 1] + size_A2[:, 1])[..., None] / 2
    for s, (pose_AT3, speed_AT) in enumerate(zip(pose_SAT3, speed_SAT, strict=True)):
        offset = (
            pose_AT3[None, ..., :2] - pose_AT3[:, None, ..., :2]
        )  # from the first to the second
        c, n = np.cos(pose_AT3[:, None, :, 2]), np.sin(pose_AT3[:, None, :, 2])
        along = c * offset[..., 0] + n * offset[..., 1]
        across = c * offset[..., 1] - n * offset[..., 0]
        turn = np.cos(pose_AT3[None, ..., 2] - pose_AT3[:, None, ..., 2])
        ahead = (np.abs(across) < wide_AA1) & (along > 0) & (turn > 0.5)
        free = np.where(ahead, along - long_AA1, np.inf)
        first_A1T = np.argmin(free, axis=1)[:, None]
        gap = np.take_along_axis(free, first_A1T, axis=1)[:, 0]
        its_speed = speed_AT[first_A1T[:, 0], np.arange(speed_AT.shape[1])]
        closing = speed_AT - its_speed * np.take_along_axis(turn, first_A1T, axis=1)[:, 0]
        follows = np.isfinite(gap) & (closing > 1e-6)
        result[s][follows] = np.minimum(np.maximum(gap[follows], 0) / closing[follows], cap)
    return np.where(np.isfinite(speed_SAT), result, np.nan)


def beyond_edge(point_N2: Floats, edge_E22: Floats) -> Floats:
    """Signed distance of points to the nearest edge of the road (m): above 0 off the road.

    Edges are directed, with the road on their left. At a joint of two pieces the one that the point is
    farther off sideways decides. Only the pieces with the nearest middles are looked at, and all where
    that is not enough to be sure.
    """
    result = np.full(len(point_N2), np.nan)
    seen = np.flatnonzero(np.isfinite(point_N2).all(axis=1))
    if not len(edge_E22):
        result[seen] = -NOBODY
        return result
    if not len(seen):
        return result
    half = np.linalg.norm(edge_E22[:, 1] - edge_E22[:, 0], axis=1).max() / 2
    count = min(_CANDIDATES, len(edge_E22))
    away, index = cKDTree(edge_E22.mean(axis=1)).query(point_N2[seen], k=count)
    away, index = away.reshape(-1, count), index.reshape(-1, count)
    result[seen] = _signed(point_N2[seen], edge_E22[index])
    if count < len(edge_E22):
        unsure = seen[np.abs(result[seen]) > away[:, -1] - half - 1e-6]
        for part in np.array_split(unsure, len(unsure) * len(edge_E22) // 1_000_000 + 1):
            result[part] = _signed(point_N2[part], edge_E22[None])
    return result


def _signed(point_N2: Floats, edge_NE22: Floats) -> Floats:
    """Signed distance of each point to the nearest of its pieces."""
    begin, along = edge_NE22[..., 0, :], edge_NE22[..., 1, :] - edge_NE22[..., 0, :]
    length = np.maximum(np.linalg.norm(along, axis=-1), 1e-9)
    offset = point_N2[:, None] - begin
    share = np.clip((offset * along).sum(axis=-1) / length**2, 0, 1)
    rest = offset - share[..., None] * along
    distance = np.hypot(rest[..., 0], rest[..., 1])
    side = (
        along[..., 0] * offset[..., 1] - along[..., 1] * offset[..., 0]
    ) / length  # left is above 0
    near = distance <= distance.min(axis=1, keepdims=True) + 1e-6
    chosen = np.argmax(np.where(near, np.abs(side), -1), axis=1)
    rows = np.arange(len(point_N2))
    return np.where(side[rows, chosen] >= 0, -1, 1) * distance[rows, chosen]
