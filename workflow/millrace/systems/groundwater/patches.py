"""Patches: the aquifer cut into pieces of some thousand nodes, each with a halo of ghost nodes.

Slices are divided into groups, the nodes of a group into clusters (k-means). Ghosts of a patch are the
nodes of other patches among the nearest neighbours of its own.

Clusters and neighbours are sought in scaled space. Layers are some 3 m apart and nodes tens of metres: in
metres every near neighbour lies above or below, and halos never reach sideways. Horizontal axes are
divided by the median distance of a node to the nearest one of its slice, the vertical axis by the median
distance of a node to the slices next to it, so that a step to a neighbour is about 1 in all directions.

Memory does not grow with the number of times. Held are some arrays of the nodes, about 200 bytes a node
with their search trees, and states of all nodes of at most `SLAB_BYTES`, or of one time if that is more.

Shape suffixes: N nodes, E pairs of neighbours, T times, C fields or forcings.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from millrace.data.hdf5 import create, create_dataset, open_checked, rows_per_chunk
from millrace.errors import ConfigError
from millrace.systems.base import Progress
from millrace.systems.groundwater.hdf5_parts import write_origin
from millrace.systems.groundwater.patch_file import SCHEMA
from millrace.systems.groundwater.series import SCHEMA as SERIES_SCHEMA
from millrace.systems.groundwater.settings import PatchConfig

SLAB_BYTES = 2 << 30
"""Of the states that are read at a time."""
CLUSTERED = 1_000_000
"""Nodes of a group of slices among which clusters are sought; where there are more, in a sample of them,
from a single start, and each node then belongs to the nearest centre."""
TOGETHER = 1 << 18
"""Nodes whose neighbours are sought at a time."""

_SERIES = ("obs", "forcing", "forcing_mask")


@dataclass(frozen=True, eq=False)
class Patch:
    """Rows of the series' node axis."""

    core_node: NDArray[np.int64]
    """int64[K], ascending; every node is core in exactly one patch."""
    ghost_node: NDArray[np.int64]
    """int64[G], by neighbouring patch, the nearest first."""


def partition(
    coords: NDArray[np.float64], slices: NDArray[np.integer], config: PatchConfig
) -> list[Patch]:
    """Cut nodes into patches.

    If patch A has ghosts from B, then B has ghosts from A (unless ``ghost_fraction`` is 0).

    Coordinates are X, Y, Z (m), float64[N, 3]; each node has a slice, int[N]. Returns ``slice_groups *
    clusters`` patches, group by group. Raises `ConfigError` if there are fewer slices than groups, or
    fewer nodes in a group than clusters.
    """
    scaled_N3 = coords / length_scales(coords, slices)
    scaled_N3 -= scaled_N3.mean(axis=0)  # k-means squares coordinates
    owner_N = _owners(scaled_N3, slices, config)
    n_patches, patches = config.slice_groups * config.clusters, []
    contacts = _contacts(scaled_N3, owner_N, n_patches, config.ghost_neighbours)
    by_patch = np.argsort(owner_N, kind="stable")
    ends = np.cumsum(np.bincount(owner_N, minlength=n_patches))
    for core, candidates in zip(np.split(by_patch, ends[:-1]), contacts, strict=True):
        limit = max(int(config.ghost_fraction * len(core)), int(config.ghost_fraction > 0))
        distance = cKDTree(scaled_N3[core]).query(scaled_N3[candidates])[0]
        candidates = candidates[np.argsort(distance, kind="stable")]
        neighbours = np.unique(owner_N[candidates])
        chosen = [candidates[owner_N[candidates] == other][:limit] for other in neighbours]
        patches.append(Patch(core, np.concatenate([np.empty(0, dtype=np.int64), *chosen])))
    return patches


def length_scales(coords: NDArray[np.float64], slices: NDArray[np.integer]) -> NDArray[np.float64]:
    """Typical distance of neighbouring nodes along X, Y and Z (m), float64[3]."""
    layers = [coords[slices == number] for number in np.unique(slices)]
    # The nearest node is the node itself; the second is infinitely far away if there is no other.
    lateral = [cKDTree(layer[:, :2]).query(layer[:, :2], k=[2])[0][:, 0] for layer in layers]
    vertical = [
        np.abs(above[cKDTree(above[:, :2]).query(below[:, :2])[1], 2] - below[:, 2])
        for below, above in itertools.pairwise(layers)
    ]
    horizontal = _typical(lateral, 1.0)
    return np.array([horizontal, horizontal, _typical(vertical, horizontal)])


def extract_patches(
    series: Path, output: Path, config: PatchConfig, progress: Progress | None = None
) -> None:
    """Write ``patches.h5``, which appears when it is complete: series of all patches, core nodes first.

    The series is read in slabs of time, each of which becomes one chunk of every patch, so that a window in
    time of a patch is one contiguous read or two. ``progress`` is called with (steps done, all).
    """
    with open_checked(series, SERIES_SCHEMA) as source, create(output) as file:
        coords = source["coords"][()]
        patches = partition(coords, source["slice"][()], config)
        nodes = [np.concatenate([patch.core_node, patch.ghost_node]) for patch in patches]
        n_steps = len(source["time"])
        largest = max(map(len, nodes))
        slab = min(
            _slab_steps(n_steps, largest, len(coords), source[name].shape[2])
            for name in ("obs", "forcing")
        )
        groups = [file.create_group(f"patch_{number:02d}") for number in range(len(patches))]
        for number, (group, patch) in enumerate(zip(groups, patches, strict=True)):
            group.attrs["slice_group"] = number // config.clusters
            create_dataset(group, "core_node", patch.core_node)
            create_dataset(group, "ghost_node", patch.ghost_node)
            create_dataset(group, "coords", coords[nodes[number]])
            for name in _SERIES:
                shape = (n_steps, len(nodes[number]), source[name].shape[2])
                chunks = (slab, *shape[1:])
                create_dataset(group, name, shape=shape, dtype=source[name].dtype, chunks=chunks)
        for start in range(0, n_steps, slab):
            stop = min(start + slab, n_steps)
            for name in _SERIES:
                if source[name].size:
                    values_TNC = source[name][start:stop]
                    for group, rows in zip(groups, nodes, strict=True):
                        group[name][start:stop] = values_TNC[:, rows]
            if progress is not None:
                progress(stop, n_steps)
        for name in ("node", "time", "split", *(f"stats/{stat}" for stat in source["stats"])):
            create_dataset(file, name, source[name][()])
        obs, forcing = source["obs"].attrs, source["forcing"].attrs
        write_origin(
            file,
            SCHEMA,
            str(source.attrs["digest"]),
            config.model_dump(),
            variables=obs["variables"],
            units=obs["units"],
            forcings=forcing["variables"],
        )
        clipped = bool(obs.get("clip_negative_concentration"))
        file.attrs["clip_negative_concentration"] = clipped
        if "missing" in source.attrs:
            file.attrs["missing"] = source.attrs["missing"]


def _slab_steps(n_steps: int, of_patch: int, of_all: int, columns: int) -> int:
    """Steps of a chunk of the patch with the most nodes, of which those of all nodes fit into memory."""
    chunk = rows_per_chunk((n_steps, of_patch, columns), np.float32)
    return max(1, min(chunk, SLAB_BYTES // max(1, 4 * of_all * columns)))


def _owners(
    scaled_N3: NDArray[np.float64], slices: NDArray[np.integer], config: PatchConfig
) -> NDArray[np.int64]:
    """Patch of each node."""
    numbers = np.unique(slices)
    if len(numbers) < config.slice_groups:
        raise ConfigError(
            f"patches.slice_groups = {config.slice_groups}: the series has only {len(numbers)} slices"
        )
    owner_N = np.empty(len(scaled_N3), dtype=np.int64)
    for group, members in enumerate(np.array_split(numbers, config.slice_groups)):
        rows = np.flatnonzero(np.isin(slices, members))
        if len(rows) < config.clusters:
            raise ConfigError(
                f"patches.clusters = {config.clusters}: slices {members[0]} to {members[-1]} have "
                f"only {len(rows)} nodes"
            )
        # One thread: with more, partial sums are added in another order and a node on an edge may
        # change sides.
        with threadpool_limits(1):
            owner_N[rows] = group * config.clusters + _clusters(scaled_N3[rows], config)
    return owner_N


def _clusters(points_N3: NDArray[np.float64], config: PatchConfig) -> NDArray[np.integer]:
    """Cluster of each point."""
    if len(points_N3) <= CLUSTERED:
        kmeans = KMeans(config.clusters, n_init=10, random_state=config.seed)
        return np.asarray(kmeans.fit_predict(points_N3))
    random = np.random.default_rng(config.seed)
    sample = np.sort(random.choice(len(points_N3), CLUSTERED, replace=False))
    kmeans = KMeans(config.clusters, n_init=1, random_state=config.seed)
    return np.asarray(kmeans.fit(points_N3[sample]).predict(points_N3))


def _contacts(
    scaled_N3: NDArray[np.float64], owner_N: NDArray[np.int64], n_patches: int, neighbours: int
) -> list[NDArray[np.int64]]:
    """Nodes of other patches, by patch and ascending, that are neighbours of one of its own or have one.

    Pairs of a patch and a node are numbers, of which each is kept once: there are fewer of them than of
    neighbours.
    """
    n_nodes = len(scaled_N3)
    k = min(neighbours + 1, n_nodes)  # the nearest is the node itself
    tree, found = cKDTree(scaled_N3), []
    for start in range(0, n_nodes, TOGETHER):
        together = np.arange(start, min(start + TOGETHER, n_nodes))
        node_E = tree.query(scaled_N3[together], k=k)[1].ravel()
        near_E = np.repeat(together, k)
        across = owner_N[near_E] != owner_N[node_E]
        near_E, node_E = near_E[across], node_E[across]
        pairs = owner_N[near_E] * n_nodes + node_E, owner_N[node_E] * n_nodes + near_E
        found.append(np.unique(np.concatenate(pairs)))
    pair = np.unique(np.concatenate(found))
    ends = np.searchsorted(pair, n_nodes * np.arange(1, n_patches))
    return [part % n_nodes for part in np.split(pair, ends)]


def _typical(distances: list[NDArray[np.float64]], default: float) -> float:
    """Median of the distances that are finite and positive."""
    every = np.concatenate([np.empty(0), *distances])
    useful = every[np.isfinite(every) & (every > 0)]
    return float(np.median(useful)) if len(useful) else default
