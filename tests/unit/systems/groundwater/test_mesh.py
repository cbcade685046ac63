import numpy as np
import pytest
from scipy.spatial import Delaunay

from millrace.systems.groundwater.simulator.mesh import (
    lloyd_points,
    prism_mesh,
    triangle_graph,
)


@pytest.fixture(scope="module")
def plane():
    points = lloyd_points((5.0, 4.0), 120, np.random.default_rng(3))
    return points, Delaunay(points).simplices.astype(np.int64)


def test_lloyd_points_fill_the_rectangle(plane):
    points, _ = plane
    assert points.shape == (120, 2)
    np.testing.assert_array_equal(points.min(axis=0), [0.0, 0.0])
    np.testing.assert_array_equal(points.max(axis=0), [5.0, 4.0])
    apart = np.linalg.norm(points[:, None] - points[None], axis=2) + 9.0 * np.eye(120)
    even = np.sqrt(20.0 / 120)
    assert apart.min() > 0.4 * even
    assert apart.min(axis=1).max() < 1.5 * even


def test_weights_give_the_dirichlet_energy_of_linear_fields(plane):
    points, triangles = plane
    edges, weights, areas = triangle_graph(points, triangles)
    assert len(np.unique(edges, axis=0)) == len(edges)
    assert areas.sum() == pytest.approx(20.0)
    u = points @ [0.6, -1.1]
    energy = np.sum(weights * (u[edges[:, 0]] - u[edges[:, 1]]) ** 2)
    assert energy == pytest.approx((0.6**2 + 1.1**2) * 20.0, rel=1e-3)


def test_structured_triangles_give_the_five_point_stencil():
    x, z = np.meshgrid([0.0, 2.0], [0.0, 1.0])
    points = np.column_stack([x.ravel(), z.ravel()])
    edges, weights, areas = triangle_graph(points, np.array([[0, 1, 3], [0, 3, 2]]))
    factor = {tuple(edge): f for edge, f in zip(edges.tolist(), 10 * weights, strict=True)}
    # Half a cell of height 1 over 2 m, half a cell of width 2 over 1 m, nothing along the diagonal.
    assert factor == pytest.approx(
        {(0, 1): 2.5, (2, 3): 2.5, (0, 2): 10.0, (1, 3): 10.0, (0, 3): 0.0}
    )
    assert areas.sum() == pytest.approx(2.0)


def test_prisms_stack_slice_by_slice(plane):
    points, triangles = plane
    elevation = np.array([[0.0], [-1.0], [-4.0]]) + 0.0 * points[:, 0]
    mesh = prism_mesh(points, triangles, elevation)
    np.testing.assert_array_equal(mesh.z[:120], 0.0)
    assert mesh.volume.reshape(3, -1).sum(axis=1) == pytest.approx([10.0, 40.0, 30.0])
    upper = mesh.edges[mesh.vertical]
    np.testing.assert_array_equal(upper[:, 1] - upper[:, 0], 120)
    assert mesh.length[mesh.vertical] == pytest.approx(np.repeat([1.0, 3.0], 120))
    vertical = mesh.shape_factor[mesh.vertical].reshape(2, -1).sum(axis=1)
    assert vertical == pytest.approx([20.0, 20.0 / 3.0])
