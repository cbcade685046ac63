import numpy as np
import pytest

from millrace.errors import ConfigError
from millrace.systems.groundwater.sections import SectionGrid, extract_section


@pytest.fixture
def coords():
    """Columns every 50 m on a plane of 1,000 m x 500 m, 8 layers about 3 m apart, at UTM size."""
    x, y, layer = np.meshgrid(np.arange(0, 1001, 50.0), np.arange(0, 501, 50.0), np.arange(8.0))
    z = -3 * layer + 0.01 * x
    return np.column_stack([x.ravel() + 334_000, y.ravel() + 6_251_000, z.ravel()])


def test_extract_section_along_a_diagonal(coords):
    start, end = (334_000, 6_251_000), (334_400, 6_251_300)
    node, s, z = extract_section(coords, start, end, width=60)
    direction = np.array([0.8, 0.6])
    offset = coords[:, :2] - start
    along = offset @ direction
    across = np.linalg.norm(offset - np.outer(along, direction), axis=1)
    expected = (across <= 30.0005) & (along >= -5e-4) & (along <= 500.0005)
    assert set(node) == set(np.flatnonzero(expected))
    assert s == pytest.approx(along[node], abs=1e-6)
    np.testing.assert_array_equal(z, coords[node, 2])
    assert np.all(np.diff(s) >= 0)
    assert s.max() == pytest.approx(500)


def test_direction_of_the_transect_gives_the_sign_of_s(coords):
    a, b = (334_000, 6_251_100), (335_000, 6_251_100)
    node, s, _ = extract_section(coords, a, b, 10)
    back, reverse, _ = extract_section(coords, b, a, 10)
    assert sorted(node) == sorted(back)
    assert dict(zip(back, 1000 - reverse, strict=True)) == pytest.approx(
        dict(zip(node, s, strict=True))
    )


def test_transect_errors(coords):
    with pytest.raises(ConfigError, match="two distinct points"):
        extract_section(coords, (1, 1), (1, 1), 10)
    with pytest.raises(ConfigError, match=r"0 nodes within a corridor 10 m wide"):
        extract_section(coords, (0, 0), (100, 0), 10)


def test_interpolation_is_exact_for_linear_fields_in_spite_of_anisotropy():
    rng = np.random.default_rng(0)
    s = rng.uniform(0, 2000, 400)
    z = rng.uniform(-40, 0, 400)
    grid = SectionGrid.around(s, z, shape=(40, 60))
    at_s, at_z = np.meshgrid(grid.s, grid.z)
    frames = grid.interpolate(np.stack([2 + 0.01 * s - 0.3 * z, s]))
    assert frames.shape == (2, 40, 60)
    assert grid.inside.mean() > 0.7
    np.testing.assert_allclose(frames[0][grid.inside], (2 + 0.01 * at_s - 0.3 * at_z)[grid.inside])
    np.testing.assert_allclose(frames[1][grid.inside], at_s[grid.inside])
    assert np.isnan(frames[:, ~grid.inside]).all()


def test_cells_outside_the_layers_are_masked():
    # A valley: the triangulation is convex and covers it, the aquifer does not.
    column = np.linspace(0, 1000, 41)
    top = 20 * np.abs(column - 500) / 500
    s = np.repeat(column, 15)
    z = (top[:, None] + np.linspace(-40, 0, 15) * (1 + top[:, None] / 40)).ravel()
    grid = SectionGrid.around(s, z, shape=(121, 201))
    at_s, at_z = np.meshgrid(grid.s, grid.z)
    surface = 20 * np.abs(at_s - 500) / 500
    assert not grid.inside[at_z > surface + 2].any()
    assert grid.inside[(at_z < surface - 2)].all()


def test_slivers_do_not_cross_layers():
    """Values change by layer only; between columns 100 m apart no other layer may show through."""
    layer = np.arange(20)
    s = np.repeat(np.arange(0, 1001, 100.0), 20)
    z = np.tile(-3.0 * layer, 11)
    grid = SectionGrid.around(s, z, shape=(58, 101))
    field = grid.interpolate(z)
    np.testing.assert_allclose(field, np.broadcast_to(grid.z[:, None], field.shape), atol=1e-9)
    corner_layers = z[grid.node]
    assert np.ptp(corner_layers, axis=1).max() <= 3.0


def test_degenerate_section_is_refused():
    with pytest.raises(ValueError, match="span both directions"):
        SectionGrid.around([0, 1, 2], [0, 0, 0])
