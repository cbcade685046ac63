"""Neighbour tables between the points of each patch and its latent grid, computed once."""

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from millrace.data.hdf5 import create, create_dataset, open_checked
from millrace.errors import ConfigError
from millrace.provenance import code_version
from millrace.systems.groundwater.graph import CSR, radius_neighbours
from millrace.systems.groundwater.patch_file import SCHEMA as PATCHES_SCHEMA
from millrace.systems.groundwater.patch_file import patch_names

SCHEMA = "millrace.graph/1"


def build_graphs(patches: Path, output: Path, latent_shape: tuple[int, ...], radius: float) -> None:
    """Write ``graph.h5``: what GINO needs to know of the geometry of every patch.

    Parameters
    ----------
    patches : Path
        A `patches.h5`.
    output : Path
        The file to write; it appears only when it is complete.
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
        names = patch_names(source)
        units = {name: unit_coords(source[name]["coords"][()]) for name in names}
        n_core = {name: source[name]["core_node"].shape[0] for name in names}
        _check_radius(units, n_core, latent_G3, radius)
        patches_digest = str(source.attrs["digest"])
        create_dataset(file, "latent", latent_G3.astype(np.float32))
        for name, unit_N3 in units.items():
            group = file.create_group(name)
            create_dataset(group, "unit_coords", unit_N3.astype(np.float32))
            core_K3 = unit_N3[: n_core[name]]
            tables: dict[str, CSR] = {
                "in": radius_neighbours(unit_N3, latent_G3, radius),
                "out": radius_neighbours(latent_G3, core_K3, radius),
            }
            for side, table in tables.items():
                create_dataset(group, f"{side}/indptr", table.indptr)
                create_dataset(group, f"{side}/index", table.index)
        file.attrs["schema"] = SCHEMA
        file.attrs["digest"] = hashlib.sha256((patches_digest + options).encode()).hexdigest()
        file.attrs["patches_digest"] = patches_digest
        file.attrs["code_version"] = code_version()
        file.attrs["latent_shape"] = np.array(latent_shape, dtype=np.int64)
        file.attrs["radius"] = radius


def latent_grid(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Points of a regular grid over the unit cube, ends included, float64[G, D] in 'ij' order."""
    axes = [np.linspace(0, 1, n) for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(shape))


def unit_coords(coords: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map points to the unit cube by their own box; an axis without extent becomes 0."""
    low, high = coords.min(axis=0), coords.max(axis=0)
    extent = np.where(high > low, high - low, 1)
    return (coords - low) / extent


def _check_radius(
    units: dict[str, NDArray], n_core: dict[str, int], latent_G3: NDArray, radius: float
) -> None:
    tree = cKDTree(latent_G3)
    needed = {name: tree.query(unit[: n_core[name]])[0].max() for name, unit in units.items()}
    worst = max(needed, key=lambda name: needed[name])
    if needed[worst] > radius:
        # Rounded up, so that the value printed does work.
        smallest = np.ceil(needed[worst] * 1e4) / 1e4
        raise ConfigError(
            f"radius = {radius}: core points of {worst} have no latent point that near; the smallest "
            f"radius that works with this latent_shape is {smallest:.4f}"
        )
