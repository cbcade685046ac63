"""Small planes that the windows and the model on planes are tried on."""

import numpy as np
import pytest

from millrace.data.hdf5 import create
from millrace.data.planes import PlaneWriter, Section

STEPS = 74


@pytest.fixture(scope="session")
def plane_samples(tmp_path_factory):
    """A `planes.h5`: two sections with a travelling wave, masked corners and gaps in the boundary."""
    path = tmp_path_factory.mktemp("planes") / "planes.h5"
    time = np.arange(STEPS) * 0.476
    split = np.array([[0, 30], [38, 50], [58, 74]])
    with create(path) as file:
        writer = PlaneWriter(file, time, split, ["head", "mass_concentration"])
        for number, points in enumerate((5, 7)):
            section = _section(number, points)
            writer.add_plane(section, slab=16)
            field = _wave(time[:, None, None], *np.moveaxis(section.coords_HW2, 2, 0))
            writer.write_field(number, 0, field)
            given = np.ones((STEPS, points, 2), dtype=bool)
            given[::3, 0, 1] = False
            values = _wave(time[:, None], *section.bc_coords_M2.T)
            writer.write_boundary(number, 0, values, given)
        writer.finish("source", {}, ["m", "mg/L"])
    return path


def _section(number, points):
    s, z = np.meshgrid(np.linspace(0, 90, 7), np.linspace(-20, 2, 6), indexing="ij")
    ends = np.array([[1000.0, 510.0], [1054.0, 438.0]]) - [0, 18 * number]
    share = np.linspace(0.03, 0.98, points)  # off the lattice of cells: no ties at the radius
    bc = np.column_stack([90 * share, -20 + 22 * share**0.8])
    return Section(ends, np.stack([s, z], axis=2), z > -20 + 0.1 * s + number, bc)


def _wave(time, s, z):
    phase = 2 * np.pi * (time / 5.3 - s / 300)
    head = 0.4 + 0.2 * np.sin(phase) + 0.002 * z
    return np.stack([head, 17_000 + 150 * s + 2_000 * np.cos(phase / 2)], axis=-1)
