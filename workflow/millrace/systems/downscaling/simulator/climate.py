"""Near-surface temperature on an icosahedral grid, in the layout of ICON output.

Pseudo-dynamics: this looks like weather and obeys no equation of motion. Random spherical harmonics
with a kinked spectrum (energy k^-3, then k^-5/3 at small scales, as Nastrom & Gage 1985 found it in
the atmosphere) are carried round by a solid-body rotation and by the westward drift of Rossby waves,
and forget themselves the faster the smaller they are. On top come the profile over latitudes, the
lapse rate over a random orography and a diurnal cycle over land.

Shape suffixes: N cells, A coefficients of spherical harmonics.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ducc0
import netCDF4
import numpy as np
from numpy.typing import NDArray

from millrace.files import atomic_directory
from millrace.systems.base import Progress
from millrace.systems.downscaling.icon_source import Floats
from millrace.systems.downscaling.settings import ClimateConfig
from millrace.systems.downscaling.simulator.icosphere import Icosphere, lonlat, write_grid
from millrace.systems.downscaling.spectrum import degrees_and_orders

Coefficients = NDArray[np.complex128]

PEAK, KINK, CUT = 6, 24, 127
"""Degrees of the largest energy, of the change of slope, and the last one."""
WEATHER_STD = 10.5
"""Standard deviation of the moving part (K)."""
EQUATOR, CONTRAST = 300.0, 42.0
"""Mean temperature at the equator (K) and how much colder the poles are."""
LAPSE_RATE = 6.5e-3
"""Cooling with height (K/m)."""
LAND_SHARE, MOUNTAIN_HEIGHT = 0.3, 1_200.0
"""Land among the area, and the standard deviation (m) of what becomes the orography."""
DIURNAL_AMPLITUDE, WARMEST_HOUR = 6.0, 15.0
"""Of land at the equator (K), and the local solar time (h)."""
ROTATION, ROSSBY = 10.0, 600.0
"""Eastward rotation (degrees of longitude a day), and the westward drift of degree 1, which falls
with l(l + 1)."""
MEMORY, MEMORY_DEGREE = 2.5, 10
"""Decorrelation time (d) of that degree; it falls with l^(-2/3)."""


@dataclass(frozen=True)
class Surface:
    """What does not move."""

    elevation_N: Floats
    """Height (m), 0 over the sea."""
    land_N: NDArray[np.bool_]
    mean_N: Floats
    """Temperature (K) without weather and day."""

    @classmethod
    def build(cls, grid: Icosphere, seed: int) -> "Surface":
        """Draw continents with mountains."""
        rng = np.random.default_rng([seed, 0])
        degree = np.arange(CUT + 1.0)
        energy = (degree + 1) ** -2.5 * np.exp(-((degree / 60) ** 2))
        raw_N = synthesis(draw(_spectrum(energy, 1.0), rng), grid)
        order = np.argsort(raw_N)
        share = np.cumsum(grid.area_N[order]) / (4 * np.pi)
        level = raw_N[order][np.searchsorted(share, 1 - LAND_SHARE)]
        land = raw_N > level
        elevation = MOUNTAIN_HEIGHT * np.maximum(raw_N - level, 0) * 2
        sine = grid.centres_N3[:, 2]
        return cls(elevation, land, EQUATOR - CONTRAST * sine**2 - LAPSE_RATE * elevation)


def write_climate(config: ClimateConfig, directory: Path, progress: Progress | None = None) -> None:
    """Simulate, and write ``grids/R2Bkk.nc`` for all levels and ``output/tas_NNNN.nc``.

    The same ``config`` gives the same numbers. The directory appears only when it is complete; raises
    `DataError` if it holds something already. ``progress`` is called with (times written, all).
    """
    with atomic_directory(Path(directory)) as partial:
        _write(config, partial, progress)


def simulate(config: ClimateConfig, grid: Icosphere, surface: Surface) -> Iterator[Floats]:
    """Yield the temperature (K) of each output time, [N]."""
    rng = np.random.default_rng([config.seed, 1])
    spectrum = weather_spectrum()
    state = draw(spectrum, rng)
    degree, order = degrees_and_orders(CUT)
    days = config.interval / 24
    decay = np.exp(-days / MEMORY * (np.maximum(degree, 1) / MEMORY_DEGREE) ** (2 / 3))
    drift = np.deg2rad(ROTATION - ROSSBY / np.maximum(degree * (degree + 1), 2)) * days
    carry = decay * np.exp(-1j * order * drift)
    lon, lat = lonlat(grid.centres_N3)
    for step in range(config.steps):
        hour = (step * config.interval + np.rad2deg(lon) / 15) % 24
        day = DIURNAL_AMPLITUDE * np.cos(lat) * np.cos(2 * np.pi * (hour - WARMEST_HOUR) / 24)
        yield surface.mean_N + surface.land_N * day + synthesis(state, grid)
        state = carry * state + np.sqrt(1 - decay**2) * draw(spectrum, rng)


def weather_spectrum() -> Floats:
    """Variance of each coefficient of degree l (K²), float64[CUT + 1]; all together `WEATHER_STD`²."""
    degree = np.maximum(np.arange(CUT + 1.0), 1)
    energy = np.where(degree < PEAK, degree / PEAK, (degree / PEAK) ** -3.0)
    kink = (KINK / PEAK) ** -3.0 * (degree / KINK) ** (-5 / 3)
    energy = np.where(degree > KINK, kink, energy)
    energy[0] = 0
    return _spectrum(energy, WEATHER_STD)


def draw(spectrum: Floats, rng: np.random.Generator) -> Coefficients:
    """Coefficients of a real random field on the unit sphere, complex128[A], m-major as in `ducc0`."""
    degree, order = degrees_and_orders(CUT)
    real, imaginary = rng.standard_normal((2, len(degree)))
    values = np.where(order == 0, real, (real + 1j * imaginary) / np.sqrt(2))
    return values * np.sqrt(spectrum[degree])


def synthesis(coefficients: Coefficients, grid: Icosphere) -> Floats:
    """Field at the centres of the cells, [N]."""
    lon, lat = lonlat(grid.centres_N3)
    place = np.column_stack([np.pi / 2 - lat, lon % (2 * np.pi)])
    return ducc0.sht.synthesis_general(
        alm=coefficients[None], spin=0, lmax=CUT, loc=place, epsilon=1e-6, nthreads=1
    )[0]


def _spectrum(energy: Floats, std: float) -> Floats:
    """Variance C_l that gives the degrees energies in these proportions and the field this deviation."""
    # The variance of a field at a point is the sum of (2l + 1) C_l / (4 pi).
    return energy / energy.sum() * std**2 * 4 * np.pi / (2 * np.arange(len(energy)) + 1)


def _write(config: ClimateConfig, directory: Path, progress: Progress | None) -> None:
    (directory / "grids").mkdir(parents=True)
    (directory / "output").mkdir()
    grid = Icosphere.build(config.level)
    surface = Surface.build(grid, config.seed)
    for level in range(config.level):
        write_grid(directory / f"grids/R2B{level:02d}.nc", Icosphere.build(level))
    path = directory / f"grids/R2B{config.level:02d}.nc"
    write_grid(path, grid, surface.elevation_N, surface.land_N)
    fields = simulate(config, grid, surface)
    for number, first in enumerate(range(0, config.steps, config.steps_per_file)):
        path = directory / f"output/tas_{number:04d}.nc"
        with netCDF4.Dataset(path, "w") as file:
            _describe(file, grid, config)
            for step in range(first, min(first + config.steps_per_file, config.steps)):
                file["time"][step - first] = _time(step, config)
                file["tas"][step - first, 0] = next(fields)
                if progress is not None:
                    progress(step + 1, config.steps)


def _describe(file: netCDF4.Dataset, grid: Icosphere, config: ClimateConfig) -> None:
    file.createDimension("time", None)
    file.createDimension("height", 1)
    file.createDimension("ncells", len(grid.cells_N3))
    time = file.createVariable("time", "f8", ("time",))
    time.calendar = "proleptic_gregorian"
    time.units = "day as %Y%m%d.%f" if config.absolute_time else "hours since 2020-01-01 00:00:00"
    file.createVariable("height", "f8", ("height",))[:] = 2.0
    file["height"].units = "m"
    shape = (1, 1, len(grid.cells_N3))
    tas = file.createVariable("tas", "f4", ("time", "height", "ncells"), chunksizes=shape)
    tas.long_name, tas.units = "temperature in 2 m", "K"
    tas.coordinates, tas.CDI_grid_type = "clat clon", "unstructured"
    for name, values in zip(("clon", "clat"), lonlat(grid.centres_N3), strict=True):
        file.createVariable(name, "f8", ("ncells",))[:] = values
        file[name].units = "radian"
    file.setncatts({"uuidOfHGrid": grid.uuid, "title": "Pseudo-dynamics made by Millrace"})


def _time(step: int, config: ClimateConfig) -> float:
    hours = step * config.interval
    if not config.absolute_time:
        return hours
    moment = np.datetime64("2020-01-01T00:00") + np.timedelta64(round(hours * 60), "m")
    day = moment.astype("datetime64[D]")
    return float(str(day).replace("-", "")) + float((moment - day) / np.timedelta64(1, "D"))
