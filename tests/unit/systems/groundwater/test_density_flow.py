import numpy as np
import pytest
from scipy.spatial import Delaunay

from millrace.systems.groundwater.simulator.density_flow import DensityFlow, Forcing, Medium
from millrace.systems.groundwater.simulator.mesh import (
    Mesh,
    lloyd_points,
    prism_mesh,
    triangle_graph,
)

HENRY, SIMPSON_CLEMENT = 6.6e-5, 3.3e-5
"""Freshwater inflow (m²/s)."""
ISOCHLORS = {HENRY: [1.1796, 1.3760, 1.5877], SIMPSON_CLEMENT: [0.7306, 1.0612, 1.3950]}
"""Where c = 0.25, 0.5, 0.75 at the bottom (m from the inland side), semi-analytical."""


def section_mesh(points, triangles):
    """Vertical section of a thickness of 1 m; points are (x, z) in m."""
    edges, weights, areas = triangle_graph(points, triangles)
    length = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1)
    return Mesh(edges, weights, length, np.zeros(len(edges), dtype=bool), areas, points[:, 1])


def henry_problem(inflow, points, triangles):
    """Henry's section, 2 m x 1 m, with the sea to the right, when nothing changes; metres and seconds."""
    mesh = section_mesh(points, triangles)
    inland, sea = points[:, 0] == 0.0, points[:, 0] == 2.0
    # The semi-analytical solution has no vertical flow along the inland side: a well screen, which
    # leaves the distribution of the inflow to the flow equation.
    screen = np.where(inland[mesh.edges].all(axis=1), 1e4, 1.0)
    medium = Medium(
        conductance=1e-2 * screen * mesh.shape_factor,
        diffusion=0.35 * 1.886e-5 * mesh.shape_factor,
        dispersivity=np.zeros(len(mesh.edges)),
        pore_volume=0.35 * mesh.volume,
        storage=np.zeros(len(points)),
    )
    forcing = Forcing(
        head=0.025 * (1.0 - points[:, 1]),
        concentration=np.where(sea, 1.0, 0.0),
        source=inflow * inland / inland.sum(),
    )
    solver = DensityFlow(mesh, medium, fixed_head=sea, fixed_concentration=sea | inland)
    return solver, forcing, steady_state(solver, forcing, 300.0)


def steady_state(solver, forcing, dt):
    """March in time until no salinity changes."""
    state, change = solver.state(forcing.head, forcing.concentration), 1.0
    while change > 1e-7:
        last, (state, balance) = state, solver.step(state, forcing, dt)
        change = np.abs(state.concentration - last.concentration).max()
        assert balance.water_error < 1e-9
        assert balance.solute_error < 1e-9
    return state


def structured(n_x, n_z):
    x, z = np.meshgrid(np.linspace(0.0, 2.0, n_x + 1), np.linspace(0.0, 1.0, n_z + 1))
    index = np.arange(x.size).reshape(x.shape)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    triangles = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)
    return np.column_stack([x.ravel(), z.ravel()]), triangles


def isochlors(points, concentration):
    bottom = points[:, 1] == 0.0
    return np.interp([0.25, 0.5, 0.75], concentration[bottom], points[bottom, 0])


@pytest.mark.parametrize("inflow", [HENRY, SIMPSON_CLEMENT])
def test_isochlors_of_the_semi_analytical_solution(inflow):
    """Measured: Henry 1.1783 1.3750 1.5869, Simpson-Clement 0.7296 1.0605 1.3945 m."""
    points, triangles = structured(80, 40)
    _, _, state = henry_problem(inflow, points, triangles)
    assert isochlors(points, state.concentration) == pytest.approx(ISOCHLORS[inflow], abs=0.0025)
    assert state.concentration.min() > -1e-9
    assert state.concentration.max() < 1.0 + 1e-9


def test_isochlors_on_an_unstructured_section():
    points = lloyd_points((2.0, 1.0), 2000, np.random.default_rng(0))
    triangles = Delaunay(points).simplices.astype(np.int64)
    _, _, state = henry_problem(HENRY, points, triangles)
    assert isochlors(points, state.concentration) == pytest.approx(ISOCHLORS[HENRY], abs=0.01)


def test_the_steady_state_does_not_depend_on_the_time_step():
    points, triangles = structured(40, 20)
    solver, forcing, steady = henry_problem(HENRY, points, triangles)
    state = steady_state(solver, forcing, 60.0)
    np.testing.assert_allclose(state.concentration, steady.concentration, atol=1e-5)


@pytest.fixture(scope="module")
def box():
    """Dipping prisms with storage; no boundary is open until a test opens it."""
    points = lloyd_points((100.0, 80.0), 60, np.random.default_rng(1))
    triangles = Delaunay(points).simplices.astype(np.int64)
    elevation = 0.02 * points[:, 0] + np.array([[0.0], [-3.0], [-7.0]])
    mesh = prism_mesh(points, triangles, elevation)
    medium = Medium(
        conductance=np.where(mesh.vertical, 1.0, 10.0) * mesh.shape_factor,
        diffusion=1e-5 * mesh.shape_factor,
        dispersivity=np.full(len(mesh.edges), 0.5),
        pore_volume=0.2 * mesh.volume,
        storage=0.01 * mesh.volume,
    )
    return np.tile(points[:, 0], 3), mesh, medium


def test_sea_water_at_rest_stays_at_rest(box):
    _, mesh, medium = box
    closed = np.zeros(len(mesh.z), dtype=bool)
    solver = DensityFlow(mesh, medium, closed, closed)
    head = 0.3 - medium.density_ratio * mesh.z
    assert np.abs(solver.flux(head, np.ones_like(head))).max() < 1e-9


def test_uniform_gradient_gives_darcys_discharge(box):
    x, mesh, medium = box
    ends = (x == 0.0) | (x == 100.0)
    solver = DensityFlow(mesh, medium, ends, ends)
    forcing = Forcing(head=-0.01 * x, concentration=0.0 * x, source=0.0 * x)
    state, _ = solver.step(solver.state(0.0 * x, 0.0 * x), forcing, 1e9)
    flux = solver.flux(state.head, state.concentration)
    first, second = mesh.edges.T
    through = np.where((x[first] < 50) & (x[second] >= 50), flux, 0.0)
    through -= np.where((x[second] < 50) & (x[first] >= 50), flux, 0.0)
    assert through.sum() == pytest.approx(10.0 * 0.01 * 80.0 * 7.0, rel=2e-3)


def test_water_and_solute_are_conserved_in_a_closed_box(box):
    x, mesh, medium = box
    closed = np.zeros(len(x), dtype=bool)
    solver = DensityFlow(mesh, medium, closed, closed)
    source = np.where(np.arange(len(x)) < 60, 0.7, 0.0)
    forcing = Forcing(head=0.0 * x, concentration=0.0 * x, source=source, source_concentration=0.4)
    start = state = solver.state(0.0 * x, np.where(x < 30, 1.0, 0.0))
    for _ in range(5):
        state, balance = solver.step(state, forcing, 2.0)
    added = 10.0 * source.sum()
    assert state.water.sum() - start.water.sum() == pytest.approx(added, rel=1e-9)
    solute = (state.water * state.concentration).sum() - (start.water * start.concentration).sum()
    assert solute == pytest.approx(0.4 * added, rel=1e-9)
    assert balance.water_in == pytest.approx(2.0 * source.sum())
    assert balance.solute_in == pytest.approx(0.8 * source.sum())
    assert max(balance.water_error, balance.solute_error) < 1e-9


def test_uniform_salinity_stays_uniform_while_the_head_moves(box):
    x, mesh, medium = box
    sea = x == 0.0
    solver = DensityFlow(mesh, medium, sea, sea)
    forcing = Forcing(
        head=np.full_like(x, 1.5),
        concentration=np.full_like(x, 0.3),
        source=np.full_like(x, 0.1),
        source_concentration=0.3,
    )
    state, _ = solver.step(solver.state(0.0 * x, np.full_like(x, 0.3)), forcing, 0.5)
    assert np.ptp(state.head) > 0.1
    np.testing.assert_allclose(state.concentration, 0.3, rtol=1e-9)


def test_no_overshoot_at_a_high_peclet_number(box):
    x, mesh, medium = box
    ends = (x == 0.0) | (x == 100.0)
    solver = DensityFlow(mesh, medium, ends, ends)
    salt = np.where(x == 0.0, 1.0, 0.0)
    forcing = Forcing(head=2.0 - 0.02 * x, concentration=salt, source=0.0 * x)
    state = solver.state(forcing.head, salt)
    for _ in range(10):
        state, balance = solver.step(state, forcing, 5.0)
    assert 0.2 < state.concentration[x < 100].mean() < 1.0
    assert state.concentration.min() >= 0.0
    assert state.concentration.max() <= 1.0 + 1e-12
    assert balance.solute_error < 1e-9


def test_fixed_head_needs_a_fixed_concentration(box):
    x, mesh, medium = box
    with pytest.raises(ValueError, match="fix the concentration"):
        DensityFlow(mesh, medium, x == 0.0, np.zeros(len(x), dtype=bool))
