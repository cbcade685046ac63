"""What is in a `patches.h5`, for those who read it."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from millrace.data.hdf5 import open_checked
from millrace.systems.groundwater.hdf5_parts import group_names

SCHEMA = "millrace.patches/1"


@dataclass(frozen=True, eq=False)
class Nodes:
    """Nodes of an aquifer and the patches they were cut into."""

    coords_N3: NDArray[np.float64]
    """X, Y, Z in m."""
    patch_N: NDArray[np.int64]
    """Patch of which the node is core."""
    slice_group_N: NDArray[np.int64]
    node_N: NDArray[np.int64] | None = None
    """Ids as in the raw files; None: cells of planes have none, nor files of an earlier version."""
    part: str = "patch"
    """What the domain is cut into."""

    def label(self, n: int) -> str:
        """What a node is called in a figure."""
        x, y, z = self.coords_N3[n]
        name = f"{self.part} {self.patch_N[n]}" if self.node_N is None else f"node {self.node_N[n]}"
        return f"{name} at X = {x:.1f}, Y = {y:.1f}, Z = {z:.1f} m"


def read_nodes(patches: Path) -> Nodes:
    """Put the core nodes of a `patches.h5` together again."""
    with open_checked(patches, SCHEMA) as file:
        groups = [file[name] for name in group_names(file)]
        cores = [group["core_node"][()] for group in groups]
        coords = [group["coords"][: len(core)] for group, core in zip(groups, cores, strict=True)]
        node_N = file["node"][()] if "node" in file else None
        clusters = json.loads(file.attrs["config"])["clusters"]
    order = np.argsort(np.concatenate(cores))
    patch_N = np.repeat(np.arange(len(cores)), [*map(len, cores)])[order]
    return Nodes(np.concatenate(coords)[order], patch_N, patch_N // clusters, node_N)
