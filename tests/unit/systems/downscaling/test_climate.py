"""The demo climate has the spectrum and the cycles that it claims, and writes what ICON writes."""

import netCDF4
import numpy as np
import pytest

from millrace.errors import ConfigError, DataError
from millrace.systems.downscaling.simulator import climate
from millrace.systems.downscaling.simulator.climate import ClimateConfig, Surface, write_climate
from millrace.systems.downscaling.simulator.icosphere import Icosphere
from millrace.systems.downscaling.spectrum import degrees_and_orders

CONFIG = ClimateConfig(level=1, steps=5, steps_per_file=3)


@pytest.fixture(scope="module")
def grid():
    return Icosphere.build(3)


def test_weather_has_the_deviation_and_the_slopes_of_the_spectrum(grid):
    rng = np.random.default_rng(3)
    spectrum = climate.weather_spectrum()
    fields = [climate.synthesis(climate.draw(spectrum, rng), grid) for _ in range(60)]
    assert np.std(fields) == pytest.approx(climate.WEATHER_STD, rel=0.1)
    energy = spectrum * (2 * np.arange(len(spectrum)) + 1)
    slope = np.diff(np.log(energy[1:])) / np.diff(np.log(np.arange(1, len(spectrum))))
    assert slope[climate.PEAK : climate.KINK - 2] == pytest.approx(-3)
    assert slope[climate.KINK + 1 :] == pytest.approx(-5 / 3)


def test_a_single_harmonic_is_the_one_of_the_textbook(grid):
    degree, order = degrees_and_orders(climate.CUT)
    alone = ((degree == 1) & (order == 0)).astype(complex)
    expected = np.sqrt(3 / (4 * np.pi)) * grid.centres_N3[:, 2]
    assert climate.synthesis(alone, grid) == pytest.approx(expected, abs=1e-5)


def test_weather_keeps_its_variance_and_forgets_small_scales_first(monkeypatch):
    for name in ("ROTATION", "ROSSBY"):
        monkeypatch.setattr(climate, name, 0.0)
    config = ClimateConfig(level=1, steps=300, interval=6.0, seed=2)
    coarse = Icosphere.build(1)
    still = Surface(np.zeros(320), np.zeros(320, dtype=bool), np.zeros(320))
    fields = np.array(list(climate.simulate(config, coarse, still)))
    assert fields[:100].std() == pytest.approx(fields[-100:].std(), rel=0.25)
    smooth = fields.reshape(len(fields), -1, 16).mean(axis=2, keepdims=True)
    rough = fields.reshape(len(fields), -1, 16) - smooth

    def memory(x):
        return np.mean(x[4:] * x[:-4]) / np.mean(x * x)

    assert memory(smooth) > memory(rough) + 0.05


def test_land_is_warmest_in_the_afternoon(grid):
    config = ClimateConfig(level=3, steps=40, interval=3.0)
    surface = Surface.build(grid, 0)
    assert grid.area_N[surface.land_N].sum() / (4 * np.pi) == pytest.approx(0.3, abs=0.02)
    assert surface.elevation_N[~surface.land_N].max() == 0
    fields = np.array(list(climate.simulate(config, grid, surface))) - surface.mean_N
    lon, lat = climate.lonlat(grid.centres_N3)
    hour = (3.0 * np.arange(40)[:, None] + np.rad2deg(lon) / 15) % 24
    cycle = np.cos(2 * np.pi * (hour - climate.WARMEST_HOUR) / 24) * np.cos(lat)
    amplitude = [
        (fields * cycle)[:, m].mean() / (cycle**2)[:, m].mean()
        for m in (surface.land_N, ~surface.land_N)
    ]
    assert amplitude[0] - amplitude[1] == pytest.approx(climate.DIURNAL_AMPLITUDE, abs=2.0)


def test_files_are_those_of_icon(tmp_path):
    write_climate(CONFIG, tmp_path / "raw")
    names = sorted(p.relative_to(tmp_path / "raw").as_posix() for p in tmp_path.rglob("*.nc"))
    assert names == [
        "grids/R2B00.nc",
        "grids/R2B01.nc",
        "output/tas_0000.nc",
        "output/tas_0001.nc",
    ]
    with netCDF4.Dataset(tmp_path / "raw/output/tas_0001.nc") as file:
        assert file["tas"].dimensions == ("time", "height", "ncells")
        assert file["tas"].CDI_grid_type == "unstructured"
        assert file.uuidOfHGrid == Icosphere.build(1).uuid
        assert file["time"][:].tolist() == [20200101.75, 20200102.0]
        assert 200 < file["tas"][:].min() < file["tas"][:].max() < 340


def test_same_config_same_numbers_and_relative_time(tmp_path):
    write_climate(CONFIG, tmp_path / "one")
    write_climate(CONFIG.replaced(absolute_time=False), tmp_path / "two")
    with (
        netCDF4.Dataset(tmp_path / "one/output/tas_0000.nc") as one,
        netCDF4.Dataset(tmp_path / "two/output/tas_0000.nc") as two,
    ):
        assert np.array_equal(one["tas"][:], two["tas"][:])
        assert two["time"].units.startswith("hours since 2020-01-01")
        assert two["time"][:].tolist() == [0, 6, 12]


def test_refuses_bad_values_and_full_directories(tmp_path):
    with pytest.raises(ConfigError, match="steps: expected a whole number from 1"):
        ClimateConfig.parse({"steps": 0}, "demo")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="new or empty directory for simulated files"):
        write_climate(CONFIG, tmp_path)
