"""Vocabularies of motion and of road, built from data by k-disks.

A token of motion is half a second of one class of road users: six poses, 0.1 s apart, in the frame of the
first. A token of road is a piece of line of about five metres: its two ends and its middle, in the frame
of its chord. k-disks (Philion, Peng & Fidler 2024, *Trajeglish*, ICLR): pick a segment, absorb all within
a tolerance, keep their mean, remove them, until all are absorbed or the vocabulary is full.

The distance of two boxes of one size is the root mean square of that of their corners, D. For boxes whose
centres are apart by d and that are turned by a, D² = d² + (2 r sin(a/2))² with r half of the diagonal: the
Euclidean distance of the points (x, y, r cos θ, r sin θ), so that a k-d tree finds what is near. The mean
distance of the corners lies between D/√2 and D.

Every vocabulary is symmetric: the mirror image of each token is a token.

Shape suffixes: N segments, V tokens, P poses or points of a segment.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from millrace.data.hdf5 import create_dataset
from millrace.errors import DataError
from millrace.systems.traffic.tracks import CLASSES

Floats = NDArray[np.float64]

BOXES = np.array([[4.8, 2.0], [2.0, 1.0], [1.0, 1.0]])
"""Length and width (m) by which poses of each of `CLASSES` are compared, whatever the real size."""
POSES = 6
"""Poses of a motion token, the first of them (0, 0, 0)."""
DUPLICATE = 0.25
"""Tokens nearer than this share of the tolerance are one."""

_CORNERS = np.array([[0.5, 0.5], [0.5, -0.5], [-0.5, -0.5], [-0.5, 0.5]])


def corners(pose_N3: Floats, kind: int) -> Floats:
    """Corners of boxes of a class, [..., 4, 2]."""
    local = _CORNERS * BOXES[kind]
    c, s = np.cos(pose_N3[..., 2:3]), np.sin(pose_N3[..., 2:3])
    x = pose_N3[..., :1] + c * local[:, 0] - s * local[:, 1]
    y = pose_N3[..., 1:2] + s * local[:, 0] + c * local[:, 1]
    return np.stack([x, y], axis=-1)


def into_frame(pose_N3: Floats, frame_N3: Floats) -> Floats:
    """Poses as seen from others."""
    dx, dy = np.moveaxis(pose_N3[..., :2] - frame_N3[..., :2], -1, 0)
    c, s = np.cos(frame_N3[..., 2]), np.sin(frame_N3[..., 2])
    turn = wrap(pose_N3[..., 2] - frame_N3[..., 2])
    return np.stack([c * dx + s * dy, c * dy - s * dx, turn], axis=-1)


def out_of_frame(pose_N3: Floats, frame_N3: Floats) -> Floats:
    """Undo `into_frame`."""
    x, y = pose_N3[..., 0], pose_N3[..., 1]
    c, s = np.cos(frame_N3[..., 2]), np.sin(frame_N3[..., 2])
    turn = wrap(pose_N3[..., 2] + frame_N3[..., 2])
    return np.stack(
        [frame_N3[..., 0] + c * x - s * y, frame_N3[..., 1] + s * x + c * y, turn], axis=-1
    )


def wrap(angle: Floats) -> Floats:
    """Angle between -π and π."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def embed_poses(pose_N3: Floats, kind: int) -> Floats:
    """Points whose distances are the root mean square distances of corners, [..., 4]."""
    r = float(np.hypot(*BOXES[kind])) / 2
    return np.concatenate(
        [
            pose_N3[..., :2],
            r * np.stack([np.cos(pose_N3[..., 2]), np.sin(pose_N3[..., 2])], axis=-1),
        ],
        axis=-1,
    )


def embed_pieces(piece_NP2: Floats) -> Floats:
    """Points whose distances are the root mean square distances of pieces of road, [..., 6]."""
    return piece_NP2.reshape(*piece_NP2.shape[:-2], -1) / np.sqrt(piece_NP2.shape[-2])


@dataclass(frozen=True, eq=False)
class Coverage:
    """How well a vocabulary stands for the segments it was made from (m)."""

    segments: int
    mean: float
    p99: float
    largest: float
    absorbed: float
    """Share of the segments that lie in a disk."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Tokens of motion of each class, and of road."""

    motion: tuple[Floats, ...]
    """One [V, 6, 3] for each of `CLASSES`: x, y (m), heading (rad)."""
    road: Floats
    """[V, 3, 2] (m)."""
    coverage: Mapping[str, Coverage]

    @property
    def digest(self) -> str:
        """What the tokens are; a model knows their numbers only together with this."""
        content = hashlib.sha256()
        for tokens in (*self.motion, self.road):
            content.update(str(tokens.shape).encode())
            content.update(np.ascontiguousarray(tokens, dtype="<f8").tobytes())
        return content.hexdigest()[:16]

    @property
    def width(self) -> int:
        """Tokens of the class that has most."""
        return max(len(tokens) for tokens in self.motion)

    def write(self, group: h5py.Group) -> None:
        """Store in a group of an HDF5 file."""
        for name, tokens in zip((*CLASSES, "road"), (*self.motion, self.road), strict=True):
            dataset = create_dataset(group, name, np.asarray(tokens, dtype=np.float64))
            found = self.coverage[name]
            for key in ("segments", "mean", "p99", "largest", "absorbed"):
                dataset.attrs[key] = getattr(found, key)
        group.attrs["digest"] = self.digest

    @classmethod
    def read(cls, group: h5py.Group) -> "Vocabulary":
        """Read what `write` stored.

        Raises
        ------
        DataError
            It is not what its digest says.
        """
        keys = ("segments", "mean", "p99", "largest", "absorbed")
        found = cls(
            tuple(group[name][()] for name in CLASSES),
            group["road"][()],
            {
                name: Coverage(**{key: group[name].attrs[key] for key in keys})
                for name in (*CLASSES, "road")
            },
        )
        if found.digest != group.attrs["digest"]:
            raise DataError(f"{group.file.filename}: the vocabulary is damaged; make it again")
        return found


def build_motion(
    segment_NP3: Floats, kind: int, size: int, tolerance: float, random: np.random.Generator
) -> tuple[Floats, Coverage]:
    """Make the tokens of a class.

    Parameters
    ----------
    segment_NP3 : ndarray
        Half seconds in the frames of their first poses.
    kind : int
        Index into `CLASSES`.
    size : int
        Tokens at most; there are fewer if they absorb all segments.
    tolerance : float
        Radius of a disk (m).
    random : numpy.random.Generator
        Decides the order of picking, after the segment nearest to standing still.
    """

    def embed(segments: Floats) -> Floats:
        return embed_poses(segments[:, -1], kind)

    return _k_disks(segment_NP3, embed, _mirror_poses, _mean_poses, size, tolerance, random)


def build_road(
    piece_NP2: Floats, size: int, tolerance: float, random: np.random.Generator
) -> tuple[Floats, Coverage]:
    """Make the tokens of road, from pieces in the frames of their chords."""
    return _k_disks(
        piece_NP2,
        embed_pieces,
        lambda pieces: pieces * [1.0, -1.0],
        lambda pieces: pieces.mean(axis=0),
        size,
        tolerance,
        random,
    )


def _mirror_poses(segments: Floats) -> Floats:
    return segments * [1.0, -1.0, -1.0]


def _mean_poses(segments: Floats) -> Floats:
    """Mean place, and circular mean of the headings."""
    place = segments[..., :2].mean(axis=0)
    heading = np.arctan2(
        np.sin(segments[..., 2]).mean(axis=0), np.cos(segments[..., 2]).mean(axis=0)
    )
    return np.concatenate([place, heading[:, None]], axis=1)


def _k_disks(
    segments: Floats,
    embed: Callable[[Floats], Floats],
    mirror: Callable[[Floats], Floats],
    mean: Callable[[Floats], Floats],
    size: int,
    tolerance: float,
    random: np.random.Generator,
) -> tuple[Floats, Coverage]:
    n = len(segments)
    both = np.concatenate([segments, mirror(segments)])
    point = embed(both)
    tree = cKDTree(point)
    left = np.ones(2 * n, dtype=bool)
    order = random.permutation(n)
    still = int(np.argmin(((point[:n] - embed(np.zeros_like(segments[:1]))) ** 2).sum(axis=1)))
    tokens: list[Floats] = []
    known = np.empty((0, point.shape[1]))
    for pick in np.concatenate([[still], order]):
        if not left[pick] or len(tokens) >= size:
            continue
        disk = np.array(tree.query_ball_point(point[pick], tolerance))
        disk = disk[left[disk]]
        image = (disk + n) % (2 * n)
        token = mean(both[disk])
        places = embed(np.stack([token, mirror(token[None])[0]]))
        if np.linalg.norm(places[0] - places[1]) <= tolerance:
            # It is its own mirror image, once the mean is taken over both.
            group = np.union1d(disk, image)
            token = mean(both[np.concatenate([group, (group + n) % (2 * n)])])
            token = (token + mirror(token[None])[0]) / 2
            places, pair = embed(token[None]), [token]
        else:
            pair = [token, mirror(token[None])[0]]
        if len(tokens) + len(pair) > size:
            continue
        left[disk] = left[image] = False
        apart = np.linalg.norm(known[:, None] - places, axis=2)
        if len(known) and apart.min() < DUPLICATE * tolerance:
            continue
        tokens += pair
        known = np.concatenate([known, places])
    found = np.stack(tokens)
    error = cKDTree(embed(found)).query(point[:n])[0]
    return found, Coverage(
        n,
        float(error.mean()),
        float(np.quantile(error, 0.99)),
        float(error.max()),
        float(1 - left[:n].mean()),
    )


def check_vocabulary(vocabulary: Vocabulary) -> None:
    """Make sure of what a vocabulary promises.

    Raises
    ------
    DataError
        Two tokens are one, or a token has no mirror image.
    """
    for kind, name in enumerate((*CLASSES, "road")):
        is_road = name == "road"
        tokens = vocabulary.road if is_road else vocabulary.motion[kind]

        def embed(values: Floats, kind: int = kind, is_road: bool = is_road) -> Floats:
            return embed_pieces(values) if is_road else embed_poses(values[:, -1], kind)

        tree = cKDTree(embed(tokens))
        if len(tokens) > 1 and tree.query(embed(tokens), k=2)[0][:, 1].min() < 1e-6:
            raise DataError(f"vocabulary of {name}: two tokens are the same; build it again")
        images = tokens * [1.0, -1.0] if is_road else _mirror_poses(tokens)
        if tree.query(embed(images))[0].max() > 1e-9:
            raise DataError(f"vocabulary of {name}: not symmetric; build it again")
