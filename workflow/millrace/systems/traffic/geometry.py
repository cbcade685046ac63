"""Plane geometry of traffic: lines, frames, boxes, and the signed distances between them.

A pose is x, y (m) and the heading (rad, counter-clockwise from +x). A box is a rectangle around a pose.

Shape suffixes: S rollouts, A agents, T steps, E edge segments, P points of a line, N any.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]

FAR = 1e3
"""Distance (m) where there is no other agent, or no road edge."""

_SAME_WAY, _SAME_WAY_IF_SMALL = np.radians(75), np.radians(10)
_SMALL_OVERLAP_M = 0.5
_CANDIDATES = 8
_SIGN = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2


def wrap(angle: Floats) -> Floats:
    """Shift angles by full turns into [-π, π)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def unit(angle: Floats) -> Floats:
    """Unit vectors in the direction of angles, [..., 2]."""
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def arc_length(points_P2: Floats) -> Floats:
    """Distance of each point from the first, measured along the line, [P]."""
    return np.concatenate([[0.0], np.linalg.norm(np.diff(points_P2, axis=0), axis=1).cumsum()])


def interpolate(points_P2: Floats, length_P: Floats, at_N: Floats) -> Floats:
    """Points of a line, [N, 2], where its ``length_P``, see `arc_length`, reaches the values ``at_N``."""
    return np.stack([np.interp(at_N, length_P, points_P2[:, i]) for i in (0, 1)], axis=1)


def resample(points_P2: Floats, spacing: float) -> Floats:
    """Equally spaced points along a line, both ends included, about ``spacing`` apart (m)."""
    length = arc_length(points_P2)
    at = np.linspace(0, length[-1], max(2, round(length[-1] / spacing) + 1))
    return interpolate(points_P2, length, at)


def midline(one_P2: Floats, other_P2: Floats) -> Floats:
    """Line halfway between two lines, which are matched by equal fractions of their lengths."""
    at = np.linspace(0, 1, max(len(one_P2), len(other_P2), 3))
    lengths = [arc_length(points) for points in (one_P2, other_P2)]
    one, other = (
        interpolate(points, length / max(length[-1], 1e-9), at)
        for points, length in zip((one_P2, other_P2), lengths, strict=True)
    )
    return (one + other) / 2


def cubic(start_2: Floats, start_way_2: Floats, end_2: Floats, end_way_2: Floats, n: int) -> Floats:
    """Cubic Hermite curve of ``n`` points with given ends, and directions of motion at them."""
    # Length of the tangents for which a quarter circle is met best: 3 * 0.5523 * r, with r = chord / √2.
    scale = 1.1716 * np.linalg.norm(end_2 - start_2)
    m0, m1 = (scale * v / max(np.linalg.norm(v), 1e-9) for v in (start_way_2, end_way_2))
    t = np.linspace(0, 1, n)[:, None]
    begin = (2 * t**3 - 3 * t**2 + 1) * start_2 + (t**3 - 2 * t**2 + t) * m0
    return begin + (3 * t**2 - 2 * t**3) * end_2 + (t**3 - t**2) * m1


def local_points(point_N2: Floats, frame_N3: Floats) -> Floats:
    """Express points in the frames of poses: origin at x and y, first axis along the heading."""
    dx, dy = np.moveaxis(point_N2 - frame_N3[..., :2], -1, 0)
    c, s = np.cos(frame_N3[..., 2]), np.sin(frame_N3[..., 2])
    return np.stack([c * dx + s * dy, c * dy - s * dx], axis=-1)


def global_points(point_N2: Floats, frame_N3: Floats) -> Floats:
    """Inverse of `local_points`."""
    x, y = point_N2[..., 0], point_N2[..., 1]
    c, s = np.cos(frame_N3[..., 2]), np.sin(frame_N3[..., 2])
    place = [frame_N3[..., 0] + c * x - s * y, frame_N3[..., 1] + s * x + c * y]
    return np.stack(place, axis=-1)


def local_poses(pose_N3: Floats, frame_N3: Floats) -> Floats:
    """Express poses in the frames of other poses."""
    turn = wrap(pose_N3[..., 2:] - frame_N3[..., 2:])
    return np.concatenate([local_points(pose_N3[..., :2], frame_N3), turn], axis=-1)


def global_poses(pose_N3: Floats, frame_N3: Floats) -> Floats:
    """Inverse of `local_poses`."""
    turn = wrap(pose_N3[..., 2:] + frame_N3[..., 2:])
    return np.concatenate([global_points(pose_N3[..., :2], frame_N3), turn], axis=-1)


def box_corners(pose: Floats, size: Floats) -> Floats:
    """Corners of boxes, [..., 4, 2]; poses [..., 3], sizes (length, width; m) [..., 2]."""
    return global_points(_SIGN * size[..., None, :], pose[..., None, :])


def box_distance(pose: Floats, size: Floats, other_pose: Floats, other_size: Floats) -> Floats:
    """Signed distance between boxes (m): below 0, how far they have to be moved apart.

    Separate boxes are nearest at a corner of one of them. Where they overlap, the depth is the least
    overlap along their four axes (separating axis theorem). Arguments broadcast; NaN stays NaN.
    """
    pairs = ((pose, size, other_pose, other_size), (other_pose, other_size, pose, size))
    outside, overlaps = [], []
    for own, own_size, other, its_size in pairs:
        local = local_points(box_corners(other, its_size), own[..., None, :])
        half = own_size[..., None, :] / 2
        beyond = np.maximum(np.abs(local) - half, 0)
        outside.append(np.hypot(beyond[..., 0], beyond[..., 1]).min(axis=-1))
        low, high = local.min(axis=-2), local.max(axis=-2)
        overlaps.append(np.minimum(half[..., 0, :] - low, high + half[..., 0, :]).min(axis=-1))
    depth = np.minimum(*overlaps)
    return np.where(depth > 0, -depth, np.minimum(*outside))


def distance_to_nearest(pose_SAT3: Floats, size_A2: Floats) -> Floats:
    """Signed distance of each box to the nearest other one (m), [S, A, T].

    It is `FAR` without others, and NaN where an agent is not observed. Boxes are at most as far apart as
    their centres, and nearer by at most half of their diagonals: only those others that can be the nearest
    are compared.
    """
    result = np.full(pose_SAT3.shape[:3], FAR)
    reach_A = np.hypot(*size_A2.T) / 2
    for s, pose_AT3 in enumerate(pose_SAT3):
        offset = pose_AT3[:, None, :, :2] - pose_AT3[None, :, :, :2]
        apart_AAT = np.hypot(offset[..., 0], offset[..., 1])
        apart_AAT[np.arange(len(reach_A)), np.arange(len(reach_A))] = np.inf
        apart_AAT = np.nan_to_num(apart_AAT, nan=np.inf, posinf=np.inf)
        least_AT = np.fmin.reduce(apart_AAT, axis=1, initial=np.inf)
        low_AAT = apart_AAT - reach_A[:, None, None] - reach_A[:, None]
        a, b, t = np.nonzero((low_AAT <= least_AT[:, None]) & np.isfinite(low_AAT))
        found = box_distance(pose_AT3[a, t], size_A2[a], pose_AT3[b, t], size_A2[b])
        np.minimum.at(result[s], (a, t), found)
    return np.where(np.isfinite(pose_SAT3[..., 0]), result, np.nan)


def time_to_collision(pose_SAT3: Floats, speed_SAT: Floats, size_A2: Floats, cap: float) -> Floats:
    """Time (s) until each agent hits its leader if both keep their speed, at most ``cap``; [S, A, T].

    As in the Waymo Open Sim Agents Challenge (Montali et al. 2023, arXiv:2305.12032): the leader is the
    nearest agent whose box is wholly ahead of one's own front, heads in the same direction to 75 degrees,
    and covers part of the straight lane that one's own box will sweep; where that part is less than 0.5 m
    wide, to 10 degrees. Speeds are compared as they are, whatever their directions. NaN where the agent's
    own speed, or its leader's, is not known.
    """
    result = np.full(pose_SAT3.shape[:3], cap)
    half_A12 = size_A2[:, None, :] / 2
    for s, (pose_AT3, speed_AT) in enumerate(zip(pose_SAT3, speed_SAT, strict=True)):
        # Axes: follower, leader, step.
        local = local_points(pose_AT3[None, ..., :2], pose_AT3[:, None])
        turn = pose_AT3[None, ..., 2] - pose_AT3[:, None, ..., 2]
        along, across = np.abs(np.cos(turn)), np.abs(np.sin(turn))
        turn = np.abs(np.arctan2(np.sin(turn), np.cos(turn)))
        length, width = half_A12[None, ..., 0], half_A12[None, ..., 1]
        gap = local[..., 0] - half_A12[:, None, :, 0] - (length * along + width * across)
        beside = np.abs(local[..., 1]) - half_A12[:, None, :, 1] - (length * across + width * along)
        follows = (gap > 0) & (turn <= _SAME_WAY) & (beside < 0)
        follows &= (beside <= -_SMALL_OVERLAP_M) | (turn <= _SAME_WAY_IF_SMALL)
        free = np.where(follows, gap, np.inf)
        first_A1T = np.argmin(free, axis=1)[:, None]
        distance = np.take_along_axis(free, first_A1T, axis=1)[:, 0]
        closing = speed_AT - speed_AT[first_A1T[:, 0], np.arange(speed_AT.shape[1])]
        led = np.isfinite(distance)
        nearer = led & (closing > 0)
        result[s][nearer] = np.minimum(distance[nearer] / closing[nearer], cap)
        result[s][led & np.isnan(closing)] = np.nan
    return np.where(np.isfinite(speed_SAT), result, np.nan)


def distance_to_edge(point_N2: Floats, edge_E22: Floats) -> Floats:
    """Signed distance of points to the nearest road edge (m): above 0 off the road, NaN stays NaN.

    Edge segments are directed, with the road on their left. At a joint of two segments the one decides
    from which the point is farther off sideways. Only the segments with the nearest centres are compared,
    and all segments where that is not enough to be sure.
    """
    result = np.full(len(point_N2), np.nan)
    seen = np.flatnonzero(np.isfinite(point_N2).all(axis=1))
    if not len(edge_E22):
        result[seen] = -FAR
    if not len(edge_E22) or not len(seen):
        return result
    half = np.linalg.norm(edge_E22[:, 1] - edge_E22[:, 0], axis=1).max() / 2
    count = min(_CANDIDATES, len(edge_E22))
    away, index = cKDTree(edge_E22.mean(axis=1)).query(point_N2[seen], k=range(1, count + 1))
    result[seen] = _signed(point_N2[seen], edge_E22[index])
    if count < len(edge_E22):
        unsure = seen[np.abs(result[seen]) > away[:, -1] - half - 1e-6]
        for part in np.array_split(unsure, len(unsure) * len(edge_E22) // 1_000_000 + 1):
            result[part] = _signed(point_N2[part], edge_E22[None])
    return result


def _signed(point_N2: Floats, edge_NE22: Floats) -> Floats:
    """Signed distance of each point to the nearest of its segments."""
    begin, along = edge_NE22[..., 0, :], edge_NE22[..., 1, :] - edge_NE22[..., 0, :]
    length = np.maximum(np.linalg.norm(along, axis=-1), 1e-9)
    offset = point_N2[:, None] - begin
    share = np.clip((offset * along).sum(axis=-1) / length**2, 0, 1)
    rest = offset - share[..., None] * along
    distance = np.hypot(rest[..., 0], rest[..., 1])
    left = (along[..., 0] * offset[..., 1] - along[..., 1] * offset[..., 0]) / length
    near = distance <= distance.min(axis=1, keepdims=True) + 1e-6
    chosen = np.argmax(np.where(near, np.abs(left), -1), axis=1)
    rows = np.arange(len(point_N2))
    return np.where(left[rows, chosen] >= 0, -1, 1) * distance[rows, chosen]
