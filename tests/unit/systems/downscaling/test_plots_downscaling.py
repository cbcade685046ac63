"""Figures of downscaled fields."""

import contextlib

import numpy as np
import pytest
from matplotlib.image import imread

from millrace.systems.downscaling.evaluation import _moment
from millrace.systems.downscaling.figures import scores as figures
from millrace.systems.downscaling.figures.scores import by_region, reliability, spectra
from millrace.systems.downscaling.figures.sphere import Panel, inverse_mollweide, sphere_maps
from millrace.systems.downscaling.scores import DownscalingScores, Sphere
from millrace.systems.downscaling.simulator.icosphere import Icosphere


def test_projection_is_undone() -> None:
    """Forward by Newton's method, as Snyder gives it."""
    lon, lat = np.meshgrid(np.linspace(-3.1, 3.1, 9), np.linspace(-1.5, 1.5, 7))
    angle = lat.copy()
    for _ in range(60):
        error = 2 * angle + np.sin(2 * angle) - np.pi * np.sin(lat)
        angle -= error / (2 + 2 * np.cos(2 * angle))
    x, y = 2 * lon / np.pi * np.cos(angle), np.sin(angle)
    back = inverse_mollweide(x, y)
    np.testing.assert_allclose(back[0], lon, atol=1e-6)
    np.testing.assert_allclose(back[1], lat, atol=1e-6)
    assert np.isnan(inverse_mollweide(np.array([1.9]), np.array([0.9]))[1])


def test_projection_keeps_areas() -> None:
    """The same number of pixels falls on equal areas: belts of equal height along the axis."""
    x, y = np.meshgrid(np.linspace(-2, 2, 800), np.linspace(-1, 1, 400))
    sine = np.sin(inverse_mollweide(x, y)[1])
    counts, _ = np.histogram(sine[np.isfinite(sine)], bins=10, range=(-1, 1))
    np.testing.assert_allclose(counts / counts.mean(), 1, atol=0.03)


@pytest.fixture(scope="module")
def grid():
    return Icosphere.build(2)


def test_a_map_shows_each_cell_at_its_place(grid, tmp_path) -> None:
    """Warm in the north, cold in the south."""
    north = grid.centres_N3[:, 2]
    panels = [Panel("a", north), Panel("b", north), Panel("c", -north, "spread")]
    path = tmp_path / "maps.png"
    sphere_maps(grid.centres_N3, panels, {"field": ("x", "K"), "spread": ("y", "K")}, path, north)
    pixels = imread(path)
    height, width = pixels.shape[:2]
    column = pixels[: height // 2, width // 5, :3]  # through the first panel
    yellow = column[:, 0] - column[:, 2]  # of viridis: bright is yellow, dark is blue
    assert yellow[height // 10] > 0.3 > 0 > yellow[height // 2 - height // 10]


def test_scores_are_drawn(grid, tmp_path) -> None:
    rng = np.random.default_rng(0)
    n_cells = len(grid.centres_N3)
    sphere = Sphere(grid.centres_N3, grid.area_N, grid.neighbours_N3, n_cells // 16)
    truth = rng.standard_normal(n_cells)
    forecasts = {}
    for name, members in (("model", 5), ("block_mean", 1)):
        scores = DownscalingScores(sphere, 1.0)
        drawn = 0.5 * truth + rng.standard_normal((members, n_cells))
        scores.update(truth, drawn, np.zeros(n_cells // 16))
        forecasts[name] = scores.result()
    for draw in (spectra, by_region):
        draw(forecasts, "K", tmp_path / f"{draw.__name__}.png")
    reliability(forecasts["model"], "K", tmp_path / "reliability.png")
    for path in tmp_path.glob("*.png"):
        assert imread(path).std() > 0.05
    bins = forecasts["model"]["reliability"]
    assert sum(one["share"] for one in bins) == pytest.approx(1)
    whole = sum(one["share"] * one["rmse"] ** 2 for one in bins) ** 0.5
    plain = np.sqrt(np.mean((drawn_mean(sphere, truth) - truth) ** 2))
    assert whole == pytest.approx(plain, rel=1e-6)
    assert len(list(tmp_path.glob("*.png"))) == 3
    seams = forecasts["model"]["regions"]
    ratio = seams["seams"]["rmse"] / seams["interior"]["rmse"]
    assert forecasts["model"]["seam_rmse"] == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("unit", "told"),
    [("K", {"Power (K²)", "RMSE and CRPS (K)"}), ("m s-1", {"Power ((m s-1)²)"}), ("", {"Power"})],
)
def test_axes_tell_the_unit_if_there_is_one(grid, tmp_path, monkeypatch, unit, told) -> None:
    drawn = []
    figure = figures.figure

    @contextlib.contextmanager
    def kept(*args, **look):
        with figure(*args, **look) as fig:
            drawn.append(fig)
            yield fig

    monkeypatch.setattr(figures, "figure", kept)
    sphere = Sphere(grid.centres_N3, grid.area_N, grid.neighbours_N3, 80)
    scores = DownscalingScores(sphere, 1.0)
    truth = np.random.default_rng(0).standard_normal(1280)
    scores.update(truth, truth + np.array([[0.1], [0.2], [0.4]]), np.zeros(80))
    forecasts = {"model": scores.result()}
    spectra(forecasts, unit, tmp_path / "a.png")
    by_region(forecasts, unit, tmp_path / "b.png")
    reliability(forecasts["model"], unit, tmp_path / "c.png")
    axes = [one for fig in drawn for one in fig.axes]
    labels = {one.get_xlabel() for one in axes} | {one.get_ylabel() for one in axes}
    assert told <= labels
    assert not any("()" in label or "(²)" in label for label in labels)


def test_a_map_tells_its_time() -> None:
    assert _moment(18262 + 4.5) == "2020-01-05 12:00 UTC"


def drawn_mean(sphere, truth):
    rng = np.random.default_rng(0)
    rng.standard_normal(len(truth))
    return (0.5 * truth + rng.standard_normal((5, len(truth)))).mean(axis=0)
