"""Distances between road users, and from them to the edges of the road.

Shape suffixes: S rollouts, A road users, T steps, E pieces of edge, N any.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NOBODY = 1e3
"""Distance (m) where there is nobody else, or no edge."""

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
            [c * corner[..., 0] + s * corner[..., 1], c * corner[..., 1] - s * corner[..., 0]], axis=-1
        )
        half = own_size[..., None, :] / 2
        beyond = np.maximum(np.abs(local) - half, 0)
        outside.append(np.hypot(beyond[..., 0], beyond[..., 1]).min(axis=-1))
        low, high = local.min(axis=-2), local.max(axis=-2)
        overlaps.append(np.minimum(half[..., 0, :] - low, high + half[..., 0, :]).min(axis=-1))
    depth = np.minimum(*overlaps)
    return np.where(depth > 0, -depth, np.minimum(*outside))


def nearest_box(pose_SAT3: Floats, size_A2: Floats) -> Floats:
    """Signed distance to the nearest other, [S, A, T]; `NOBODY` without others, NaN where not seen."""
    n = pose_SAT3.shape[1]
    result = np.full(pose_SAT3.shape[:3], NOBODY)
    for a in range(n):
        for b in range(a + 1, n):
            apart = np.hypot(*(pose_SAT3[:, a, :, :2] - pose_SAT3[:, b, :, :2]).transpose(2, 0, 1))
            if not (apart < 60).any():
                continue
            distance = box_distance(pose_SAT3[:, a], size_A2[a], pose_SAT3[:, b], size_A2[b])
            for i in (a, b):
                result[:, i] = np.fmin(result[:, i], distance)
    return np.where(np.isfinite(pose_SAT3[..., 0]), result, np.nan)


def time_to_collision(pose_SAT3: Floats, speed_SAT: Floats, size_A2: Floats, cap: float) -> Floats:
    """Time (s) until each runs into whom it follows if both keep their speed, at most ``cap``.

    Whom it follows: the nearest ahead, within its width and in about its direction (60 degrees).
    """
    n = pose_SAT3.shape[1]
    result = np.full(pose_SAT3.shape[:3], cap)
    c, s = np.cos(pose_SAT3[..., 2]), np.sin(pose_SAT3[..., 2])
    for a in range(n):
        gap = np.full(result[:, a].shape, np.inf)
        closing = np.zeros_like(gap)
        for b in range(n):
            if a == b:
                continue
            dx, dy = (pose_SAT3[:, b, :, :2] - pose_SAT3[:, a, :, :2]).transpose(2, 0, 1)
            along, across = c[:, a] * dx + s[:, a] * dy, c[:, a] * dy - s[:, a] * dx
            turn = np.cos(pose_SAT3[:, b, :, 2] - pose_SAT3[:, a, :, 2])
            free = along - (size_A2[a, 0] + size_A2[b, 0]) / 2
            ahead = (np.abs(across) < (size_A2[a, 1] + size_A2[b, 1]) / 2) & (along > 0) & (turn > 0.5)
            nearer = ahead & (free < gap)
            gap = np.where(nearer, free, gap)
            closing = np.where(nearer, speed_SAT[:, a] - speed_SAT[:, b] * turn, closing)
        with np.errstate(divide="ignore", invalid="ignore"):
            time = np.where(closing > 1e-6, np.maximum(gap, 0) / closing, cap)
        result[:, a] = np.minimum(time, cap)
    return np.where(np.isfinite(speed_SAT), result, np.nan)


def beyond_edge(point_N2: Floats, edge_E22: Floats) -> Floats:
    """Signed distance of points to the nearest edge of the road (m): above 0 off the road.

    Edges are directed, with the road on their left. At a joint of two pieces the one that the point is
    farther off sideways decides.
    """
    if not len(edge_E22) or not len(point_N2):
        return np.full(len(point_N2), -NOBODY)
    result = np.empty(len(point_N2))
    begin, along = edge_E22[:, 0], edge_E22[:, 1] - edge_E22[:, 0]
    length = np.maximum(np.linalg.norm(along, axis=1), 1e-9)
    for part in np.array_split(np.arange(len(point_N2)), len(point_N2) * len(begin) // 2_000_000 + 1):
        offset = point_N2[part, None] - begin
        share = np.clip((offset * along).sum(axis=2) / length**2, 0, 1)
        rest = offset - share[..., None] * along
        distance = np.hypot(rest[..., 0], rest[..., 1])
        side = (along[:, 0] * offset[..., 1] - along[:, 1] * offset[..., 0]) / length  # left is above 0
        near = distance <= distance.min(axis=1, keepdims=True) + 1e-6
        chosen = np.argmax(np.where(near, np.abs(side), -1), axis=1)
        rows = np.arange(len(part))
        result[part] = np.where(side[rows, chosen] >= 0, -1, 1) * distance[rows, chosen]
    return np.where(np.isfinite(point_N2[:, 0]), result, np.nan)
