"""Vocabularies of motion tokens and of road tokens, built from data by the k-disks algorithm.

A motion token stands for half a second of one class of agents: six poses, 0.1 s apart, in the frame of the
first. A road token stands for a road segment, about five metres of a map polyline: its two ends and its
middle, in the frame of its chord. k-disks (Philion, Peng & Fidler 2024, *Trajeglish*, ICLR): pick a
segment, absorb all segments within a tolerance, keep their mean as a token, and go on until all segments
are absorbed or the vocabulary is full.

The distance D between two boxes of one size is the root mean square of the distances between their corners.
For boxes whose centres are apart by d and that are turned by a, D² = d² + (2 r sin(a/2))² with r half of
the diagonal. That is the Euclidean distance of the points (x, y, r cos θ, r sin θ), so that a k-d tree
finds the nearest box. The mean distance of the corners lies between D/√2 and D.

Every vocabulary is symmetric: the mirror image of each token is a token.

Shape suffixes: N segments, V tokens, P poses or points of a segment.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import h5py
import numpy as np
from scipy.spatial import cKDTree

from millrace.data.hdf5 import create_dataset
from millrace.errors import DataError
from millrace.systems.traffic.geometry import Floats, box_corners, unit
from millrace.systems.traffic.tracks import CLASSES

BOXES = np.array([[4.8, 2.0], [2.0, 1.0], [1.0, 1.0]])
"""Length and width (m) with which poses of each of `CLASSES` are compared, whatever the real size."""
POSES = 6
"""Poses of a motion token; the first of them is (0, 0, 0)."""
NAMES = (*CLASSES, "road")
"""The vocabularies: motion of each class, and road."""
ROAD = len(CLASSES)
"""Index of the road vocabulary in `NAMES`."""

_DUPLICATE = 0.25  # tokens nearer than this fraction of the tolerance are one


def corners(pose_N3: Floats, kind: int) -> Floats:
    """Corners of boxes of a class, [..., 4, 2] (m)."""
    return box_corners(pose_N3, BOXES[kind])


def embed_poses(pose_N3: Floats, kind: int) -> Floats:
    """Points whose distances are the root mean square distances of box corners, [..., 4]."""
    r = float(np.hypot(*BOXES[kind])) / 2
    return np.concatenate([pose_N3[..., :2], r * unit(pose_N3[..., 2])], axis=-1)


def embed(segment_N: Floats, kind: int) -> Floats:
    """Points whose distances are the distances of segments or tokens of the vocabulary ``NAMES[kind]``.

    Motion is compared by its last pose, [N, 4]; road by the root mean square distance of points, [N, 6].
    """
    if kind != ROAD:
        return embed_poses(segment_N[:, -1], kind)
    return segment_N.reshape(-1, 6) / np.sqrt(3)


@dataclass(frozen=True, eq=False)
class Coverage:
    """How well a vocabulary represents its segments: distances to the nearest token (m)."""

    segments: int
    """Number of segments from which the vocabulary was made."""
    mean: float
    p99: float
    """99th percentile."""
    largest: float
    absorbed: float
    """Fraction of the segments that lie in a disk."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Motion tokens of each class, and road tokens."""

    motion: tuple[Floats, ...]
    """One [V, 6, 3] for each of `CLASSES`: x, y (m), heading (rad)."""
    road: Floats
    """[V, 3, 2] (m)."""
    coverage: Mapping[str, Coverage]
    """By vocabulary, see `NAMES`."""

    @property
    def tokens(self) -> dict[str, Floats]:
        """Tokens by vocabulary, see `NAMES`."""
        return dict(zip(NAMES, (*self.motion, self.road), strict=True))

    @property
    def digest(self) -> str:
        """Hash of all tokens: a model's token numbers have a meaning only together with it."""
        content = hashlib.sha256()
        for tokens in self.tokens.values():
            content.update(str(tokens.shape).encode())
            content.update(np.ascontiguousarray(tokens, dtype="<f8").tobytes())
        return content.hexdigest()[:16]

    @property
    def width(self) -> int:
        """Number of tokens of the class that has most."""
        return max(len(tokens) for tokens in self.motion)

    def write(self, group: h5py.Group) -> None:
        """Store in a group of an HDF5 file."""
        for name, tokens in self.tokens.items():
            dataset = create_dataset(group, name, np.asarray(tokens, dtype=np.float64))
            dataset.attrs.update(asdict(self.coverage[name]))
        group.attrs["digest"] = self.digest

    @classmethod
    def read(cls, group: h5py.Group) -> "Vocabulary":
        """Read what `write` stored; raises `DataError` if the tokens do not have the stored digest."""
        *motion, road = (group[name][()] for name in NAMES)
        found = cls(tuple(motion), road, {name: Coverage(**group[name].attrs) for name in NAMES})
        if found.digest != group.attrs["digest"]:
            raise DataError(f"{group.file.filename}: the vocabulary is damaged; make it again")
        return found

    def check(self) -> None:
        """Check that no two tokens are the same, and that the mirror image of each token is a token.

        Raises
        ------
        DataError
            With the name of the vocabulary.
        """
        for kind, (name, tokens) in enumerate(self.tokens.items()):
            tree = cKDTree(embed(tokens, kind))
            if len(tokens) > 1 and tree.query(tree.data, k=2)[0][:, 1].min() < 1e-6:
                raise DataError(f"vocabulary of {name}: two tokens are the same; build it again")
            if tree.query(embed(_mirror(tokens), kind))[0].max() > 1e-9:
                raise DataError(f"vocabulary of {name}: not symmetric; build it again")


def k_disks(
    segment_N: Floats, kind: int, size: int, tolerance: float, random: np.random.Generator
) -> tuple[Floats, Coverage]:
    """Make the tokens of a vocabulary.

    Parameters
    ----------
    segment_N : ndarray
        Motion segments in the frames of their first poses, [N, 6, 3], or road segments in the frames of
        their chords, [N, 3, 2].
    kind : int
        Index into `NAMES`.
    size : int
        Largest number of tokens; there are fewer if they absorb all segments.
    tolerance : float
        Radius of a disk (m).
    random : numpy.random.Generator
        Decides the order in which segments are picked, after the one that is nearest to standing still.

    Returns
    -------
    tokens, coverage
        The tokens have the shape of segments.
    """
    n = len(segment_N)
    both = np.concatenate([segment_N, _mirror(segment_N)])
    point = embed(both, kind)
    tree = cKDTree(point)
    left = np.ones(2 * n, dtype=bool)
    order = random.permutation(n)
    still = ((point[:n] - embed(np.zeros_like(segment_N[:1]), kind)) ** 2).sum(axis=1).argmin()
    tokens: list[Floats] = []
    known = np.empty((0, point.shape[1]))
    for pick in (still, *order):
        if not left[pick] or len(tokens) >= size:
            continue
        disk = np.array(tree.query_ball_point(point[pick], tolerance))
        disk = disk[left[disk]]
        image = (disk + n) % (2 * n)
        token = _mean(both[disk])
        pair = np.stack([token, _mirror(token)])
        places = embed(pair, kind)
        if np.linalg.norm(places[0] - places[1]) <= tolerance:
            # It is its own mirror image, once the mean is taken over both.
            group = np.union1d(disk, image)
            token = _mean(both[np.concatenate([group, (group + n) % (2 * n)])])
            pair = (token + _mirror(token))[None] / 2
            places = embed(pair, kind)
        if len(tokens) + len(pair) > size:
            continue
        left[disk] = left[image] = False
        apart = np.linalg.norm(known[:, None] - places, axis=2)
        if apart.min(initial=np.inf) >= _DUPLICATE * tolerance:
            tokens += [*pair]
            known = np.concatenate([known, places])
    found = np.stack(tokens)
    error = cKDTree(embed(found, kind)).query(point[:n])[0]
    p99, absorbed = float(np.quantile(error, 0.99)), float(1 - left[:n].mean())
    return found, Coverage(n, float(error.mean()), p99, float(error.max()), absorbed)


def _mirror(segment_N: Floats) -> Floats:
    """Mirror at the x axis: y and the heading change their signs."""
    return segment_N * np.array([1.0, -1.0, -1.0])[: segment_N.shape[-1]]


def _mean(segment_N: Floats) -> Floats:
    """Mean of the positions, and circular mean of the headings if there are some."""
    mean = segment_N.mean(axis=0)
    if mean.shape[-1] == 3:
        heading = segment_N[..., 2]
        mean[:, 2] = np.arctan2(np.sin(heading).mean(axis=0), np.cos(heading).mean(axis=0))
    return mean
