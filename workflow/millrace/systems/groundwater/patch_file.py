"""What is in a `patches.h5`, for those who read it."""

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from millrace.data.hdf5 import open_checked

SCHEMA = "millrace.patches/1"


def patch_names(file: h5py.File) -> list[str]:
    """Groups of the patches in a `patches.h5`, in order."""
    return sorted(
        (name for name in file if name.startswith("patch_")), key=lambda name: int(name[6:])
    )


@dataclass(frozen=True, eq=False)
class Nodes:
    """Nodes of an aquifer and the patches they were cut into."""

    coords_N3: NDArray[np.float64]
    """X, Y, Z in m."""
    patch_N: NDArray[np.int64]
    """Patch of which the node is core."""
    slice_group_N: NDArray[np.int64]


def read_nodes(patches: Path) -> Nodes:
    """Put the core nodes of a `patches.h5` together again."""
    with open_checked(patches, SCHEMA) as file:
        names = patch_names(file)
        cores = [file[name]["core_node"][()] for name in names]
        coords = [
            file[name]["coords"][: len(core)] for name, core in zip(names, cores, strict=True)
        ]
        clusters = json.loads(file.attrs["config"])["clusters"]
    order = np.argsort(np.concatenate(cores))
    patch_N = np.repeat(np.arange(len(cores)), [len(core) for core in cores])[order]
    return Nodes(np.concatenate(coords)[order], patch_N, patch_N // clusters)
