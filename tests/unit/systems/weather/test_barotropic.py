"""The demo weather: transforms that are exact, a flow that is coherent and then chaotic."""

import netCDF4
import numpy as np
import pytest

from millrace.data.split import SplitConfig
from millrace.errors import ConfigError
from millrace.systems.weather.dataset import WeatherDataset
from millrace.systems.weather.extract import WeatherConfig, extract_weather
from millrace.systems.weather.settings import WeatherWindowConfig
from millrace.systems.weather.simulator.barotropic import BarotropicConfig, Planet, write_weather
from millrace.systems.weather.simulator.sphere import RADIUS, Sphere

SPHERE = Sphere(21, 32)


def coefficients(fields=2, seed=0):
    random = np.random.default_rng(seed)
    size = (fields, 22, 22)
    values = random.normal(size=size) + 1j * random.normal(size=size)
    values *= np.arange(22)[None, :] >= np.arange(22)[:, None]
    values[:, 0].imag = 0
    return values


def test_transforms_are_undone():
    given = coefficients()
    assert SPHERE.analyse(SPHERE.synthesise(given)) == pytest.approx(given, abs=1e-12)


def test_laplacian_of_known_fields():
    """sin(latitude) has degree 1, and is -2 / a² times itself."""
    field = np.broadcast_to(SPHERE.sine_J[:, None], (1, 32, 64))
    laplacian = SPHERE.synthesise(SPHERE.analyse(field) * SPHERE.laplacian_L)
    assert laplacian == pytest.approx(-2 / RADIUS**2 * field, abs=1e-20)


def test_derivatives_of_known_fields():
    east = np.deg2rad(SPHERE.longitude_I)
    field = (SPHERE.cosine_J1 * np.cos(east))[None]
    spectral = SPHERE.analyse(field)
    assert SPHERE.synthesise(SPHERE.along(spectral)) == pytest.approx(
        (-SPHERE.cosine_J1 * np.sin(east))[None], abs=1e-12
    )
    slope = -SPHERE.cosine_J1 * SPHERE.sine_J[:, None] * np.cos(east)
    assert SPHERE.slope(spectral) == pytest.approx(slope[None], abs=1e-12)


def test_solid_rotation_has_the_wind_and_carries_nothing_of_its_own():
    speed = 30.0
    stream = SPHERE.analyse(np.broadcast_to(-speed * RADIUS * SPHERE.sine_J[:, None], (1, 32, 64)))
    u, v = SPHERE.winds(stream)
    assert u[0] == pytest.approx(speed * SPHERE.cosine_J1 * np.ones(64), abs=1e-9)
    assert v == pytest.approx(0, abs=1e-9)
    assert SPHERE.advection(u, v, stream) == pytest.approx(0, abs=1e-6)


def test_advection_keeps_the_mean():
    planet = Planet(0)
    state = planet.begin(0) + 1e-6 * coefficients(12)
    wind = SPHERE.winds(SPHERE.inverse_laplacian(state[:4]))
    change = SPHERE.analyse(SPHERE.advection(*wind, state[4:8]))
    assert np.abs(change[:, 0, 0]).max() < 1e-12 * np.abs(state[4:8, 0, 0]).max()


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    directory = tmp_path_factory.mktemp("barotropic")
    write_weather(BarotropicConfig(steps=40, spin_up=12), directory / "raw")
    write_weather(BarotropicConfig(steps=3, spin_up=12), directory / "again")
    extract_weather(
        directory / "raw",
        directory / "weather.h5",
        WeatherConfig(),
        SplitConfig(train=0.5, validation=0.25, gap=2),
    )
    return directory


@pytest.mark.slow
def test_writes_what_the_reader_takes(samples):
    dataset = WeatherDataset(samples / "weather.h5", WeatherWindowConfig())
    assert dataset.shape == (32, 64)
    assert dataset.variables[:5] == ("2t", "10u", "10v", "msl", "z_300")
    assert len(dataset.variables) == 4 + 5 * 4
    assert dataset.step_hours == 6
    states = dataset.to_physical(dataset.core_states(0, np.arange(40)).movedim(0, 1))
    physical = dict(zip(dataset.variables, np.moveaxis(states, -1, 0), strict=True))
    assert 240 < physical["2t"].min() < physical["2t"].max() < 330
    assert np.abs(physical["u_500"]).max() < 120
    assert physical["q_850"].min() >= -1e-9


@pytest.mark.slow
def test_the_same_seed_is_the_same_weather(samples):
    with (
        netCDF4.Dataset(samples / "raw" / "weather.nc") as one,
        netCDF4.Dataset(samples / "again" / "weather.nc") as other,
    ):
        assert np.array_equal(one["temperature"][:3], other["temperature"][:3])
        assert not np.array_equal(one["temperature"][0], one["temperature"][1])


def test_refuses():
    with pytest.raises(ConfigError, match=r"demo\.steps: expected a whole number from 1 to"):
        BarotropicConfig.parse({"steps": 0}, "demo")
