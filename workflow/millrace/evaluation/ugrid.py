"""Meshes as CF files hold them: the conventions UGRID 1.0 (https://ugrid-conventions.github.io)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

MESH = "mesh"
ON_SPHERE = (
    ("lon", {"standard_name": "longitude", "units": "degrees_east"}),
    ("lat", {"standard_name": "latitude", "units": "degrees_north"}),
)
IN_PLANE = (
    ("x", {"standard_name": "projection_x_coordinate", "units": "m"}),
    ("y", {"standard_name": "projection_y_coordinate", "units": "m"}),
)


def topology(
    nodes_N2: NDArray[np.float64],
    faces_F3: NDArray[np.integer],
    axes: Sequence[tuple[str, dict[str, str]]],
    node: str = "node",
    face: str = "face",
) -> dict[str, Any]:
    """Variables of a mesh of triangles by name, for a `xarray.Dataset`.

    Parameters
    ----------
    nodes_N2 : ndarray
        Places of the nodes along ``axes``: `ON_SPHERE` in degrees, or `IN_PLANE` in metres.
    faces_F3 : ndarray
        Numbers of the nodes of each triangle, from 0, counter-clockwise.
    node, face : str
        Axes of the data on nodes and on faces.
    """
    places = {f"{MESH}_node_{name}": about for name, about in axes}
    about = {
        "cf_role": "mesh_topology",
        "long_name": "topology of the mesh of triangles",
        "topology_dimension": 2,
        "node_coordinates": " ".join(places),
        "node_dimension": node,
        "face_node_connectivity": f"{MESH}_face_nodes",
        "face_dimension": face,
    }
    connectivity = {
        "cf_role": "face_node_connectivity",
        "long_name": "nodes of each triangle",
        "start_index": np.int32(0),
    }
    return {
        MESH: ((), np.int32(0), about),
        f"{MESH}_face_nodes": (
            (face, f"{MESH}_corner"),
            np.asarray(faces_F3, dtype=np.int32),
            connectivity,
        ),
        **{
            name: (node, nodes_N2[:, number], {**of_axis, "long_name": f"{name} of the nodes"})
            for number, (name, of_axis) in enumerate(places.items())
        },
    }


def on_mesh(data: xr.Dataset, location: str) -> xr.Dataset:
    """The same with the attributes that say of what of the mesh fields are: ``node`` or ``face``."""
    for variable in data.data_vars.values():
        variable.attrs |= {"mesh": MESH, "location": location}
    return data
