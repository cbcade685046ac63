"""Neighbour tables between the points of each patch and its latent grid, computed once.

Held are the points and the table of one patch at a time.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from millrace.data.hdf5 import create, create_dataset, open_checked
from millrace.errors import ConfigError
from millrace.provenance import code_version
from millrace.systems.groundwater.graph import radius_neighbours
from millrace.systems.groundwater.hdf5_parts import group_names
from millrace.systems.groundwater.patch_file import SCHEMA as PATCHES_SCHEMA

SCHEMA = "millrace.graph/1"


def build_graphs(patches: Path, output: Path, latent_shape: tuple[int, ...], radius: float) -> None:
    """Write ``graph.h5``, which appears when it is complete: what GINO needs to know of each patch.

    Parameters
    ----------
    latent_shape : tuple of int
        Points of the latent grid along X, Y and Z.
    radius : float
        Radius of the neighbourhoods, in the unit cube to which the box of each patch is mapped.

    Raises
    ------
    ConfigError
        The shape or radius make no sense, or some core point would have no latent point within the
        radius, so that the model could not predict it.
    """
    if len(latent_shape) != 3 or min(latent_shape) < 2:
        raise ConfigError(f"latent_shape = {latent_shape}: expected three numbers of 2 or more")
    if not radius > 0:
        raise ConfigError(f"radius = {radius}: expected a positive number")
    latent_G3 = latent_grid(latent_shape)
    options = json.dumps([list(latent_shape), radius])
    with open_checked(patches, PATCHES_SCHEMA) as source, create(output) as file:
        _check_radius(_units(source), latent_G3, radius)
        patches_digest = str(source.attrs["digest"])
        create_dataset(file, "latent", latent_G3.astype(np.float32))
        for name, unit_N3, core_K3 in _units(source):
            group = file.create_group(name)
            create_dataset(group, "unit_coords", unit_N3.astype(np.float32))
            for side, points, queries in (
                ("in", unit_N3, latent_G3),
                ("out", latent_G3, core_K3),
            ):
                table = radius_neighbours(points, queries, radius)
                create_dataset(group, f"{side}/indptr", table.indptr)
                create_dataset(group, f"{side}/index", table.index)
        file.attrs.update(
            schema=SCHEMA,
            digest=hashlib.sha256((patches_digest + options).encode()).hexdigest(),
            patches_digest=patches_digest,
            code_version=code_version(),
            latent_shape=np.array(latent_shape, dtype=np.int64),
            radius=radius,
        )


def latent_grid(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Points of a regular grid over the unit cube, ends included, float64[G, D] in 'ij' order."""
    axes = [np.linspace(0, 1, n) for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(shape))


def unit_coords(coords: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map points to the unit cube by their own box; an axis without extent becomes 0."""
    low, extent = coords.min(axis=0), np.ptp(coords, axis=0)
    return (coords - low) / np.where(extent > 0, extent, 1)


def _units(source: h5py.File) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """Name, points and core points of each patch, in its unit cube."""
    for name in group_names(source):
        unit_N3 = unit_coords(source[name]["coords"][()])
        yield name, unit_N3, unit_N3[: len(source[name]["core_node"])]


def _check_radius(
    units: Iterable[tuple[str, NDArray, NDArray]], latent_G3: NDArray, radius: float
) -> None:
    tree = cKDTree(latent_G3)
    needed, worst = max((tree.query(core_K3)[0].max(), name) for name, _, core_K3 in units)
    if needed > radius:
        # Rounded up, so that the value printed does work.
        smallest = np.ceil(needed * 1e4) / 1e4
        raise ConfigError(
            f"radius = {radius}: core points of {worst} have no latent point that near; the smallest "
            f"radius that works with this latent_shape is {smallest:.4f}"
        )
