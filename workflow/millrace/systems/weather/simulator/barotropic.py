"""Weather of a small planet, in the NetCDF layout of WeatherBench 2.

Four levels of a barotropic atmosphere on the sphere, weakly coupled, each driven towards a jet that is
unstable, over mountains, with temperature and humidity carried along: coherent for a day, then chaotic.
Heights and surface pressure follow from the winds by the linear balance.

Shape suffixes: P levels, J latitudes, I longitudes, M orders, L degrees.
"""

from collections.abc import Iterator
from pathlib import Path

import netCDF4
import numpy as np

from millrace.files import atomic_write
from millrace.systems.base import Progress
from millrace.systems.weather.settings import BarotropicConfig
from millrace.systems.weather.simulator.sphere import RADIUS, Complex, Floats, Sphere

ROTATION = 7.292e-5
"""Of the earth (1/s)."""
LEVELS = (300.0, 500.0, 700.0, 850.0)
"""hPa."""
JET = (160.0, 140.0, 120.0, 110.0)
"""Speed (m/s) of the jets that each level is driven to; their eddies leave about half of it."""
TEMPERATURE = (230.0, 253.0, 270.0, 280.0)
"""Mean temperature (K)."""
GEOPOTENTIAL = (89_800.0, 54_600.0, 29_500.0, 14_300.0)
"""Mean geopotential (m²/s²)."""
HUMIDITY = (3e-4, 1.5e-3, 4e-3, 8e-3)
"""Specific humidity (kg/kg) at the equator."""
JET_LATITUDE, JET_WIDTH = 45.0, 8.0
"""Degrees."""
DAY = 86_400.0
JET_TIME, TRACER_TIME, COUPLING_TIME = 8 * DAY, 8 * DAY, 100 * DAY
"""Times (s) of relaxation to the jets, of temperature and humidity, and between levels."""
DAMPING_TIME = 1.0 * DAY
"""Of the smallest scale (s), by a fourth-order diffusion."""
MOUNTAIN, SCALE_HEIGHT = 2_500.0, 9_000.0
"""Highest mountain and depth of the air (m)."""
TIME_STEP, OUTPUT_HOURS = 7_200.0, 6
TRUNCATION, ROWS = 21, 32
_SHAPE = (len(LEVELS), ROWS, 2 * ROWS)
_GRAVITY, _LAPSE, _DENSITY = 9.80665, 6.5e-3, 1.2

UNITS = {
    "2m_temperature": "K",
    "10m_u_component_of_wind": "m s**-1",
    "10m_v_component_of_wind": "m s**-1",
    "mean_sea_level_pressure": "Pa",
    "geopotential": "m**2 s**-2",
    "u_component_of_wind": "m s**-1",
    "v_component_of_wind": "m s**-1",
    "temperature": "K",
    "specific_humidity": "kg kg**-1",
    "geopotential_at_surface": "m**2 s**-2",
    "land_sea_mask": "1",
    "soil_type": "1",
}


class Planet:
    """The equations of motion of all levels; ``seed`` is that of the mountains."""

    def __init__(self, seed: int) -> None:
        self.sphere = sphere = Sphere(TRUNCATION, ROWS)
        latitude = np.abs(sphere.latitude_J)
        self.coriolis_J1 = 2 * ROTATION * sphere.sine_J[:, None]
        self.height_JI = _mountains(sphere, np.random.default_rng([seed, 1]))
        profile_J = np.exp(-(((latitude - JET_LATITUDE) / JET_WIDTH) ** 2))
        profile_J1 = (profile_J * np.cos(np.deg2rad(latitude)))[:, None]
        # Vorticity of a zonal wind: -1/(a cos) d(u cos)/dlatitude.
        momentum = self._analysed(_by_level(JET) * profile_J1 * sphere.cosine_J1)
        self.jet_PML = sphere.analyse(-sphere.slope(momentum) / (RADIUS * sphere.cosine_J1**2))
        warmth_J1 = 25.0 * (np.cos(np.deg2rad(2 * sphere.latitude_J)))[:, None]
        self.warm_PML = self._analysed(_by_level(TEMPERATURE) + warmth_J1)
        moist_J1 = np.exp(-((latitude / 32.0) ** 2))[:, None]
        self.moist_PML = self._analysed(_by_level(HUMIDITY) * (0.05 + 0.95 * moist_J1))
        steering = self.coriolis_J1 * self.height_JI / SCALE_HEIGHT
        self.planetary_PML = self._analysed(
            self.coriolis_J1 + _by_level(LEVELS) / 1000.0 * steering
        )
        smallest = sphere.laplacian_L[-1]
        self._decay_L = np.exp(-TIME_STEP / DAMPING_TIME * (sphere.laplacian_L / smallest) ** 2)

    def _analysed(self, field: Floats) -> Complex:
        return self.sphere.analyse(np.broadcast_to(field, _SHAPE))

    def begin(self, seed: int) -> Complex:
        """Jets with small disturbances; vorticity, temperature, humidity of all levels, [3 P, M, L]."""
        noise = np.random.default_rng([seed, 0]).normal(scale=2e-5, size=_SHAPE)
        vorticity = self.jet_PML + self.sphere.analyse(noise)
        return np.concatenate([vorticity, self.warm_PML, self.moist_PML])

    def tendency(self, state: Complex) -> Complex:
        """Change per second of a state."""
        sphere = self.sphere
        vorticity, warm, moist = np.split(state, 3)
        u, v = sphere.winds(sphere.inverse_laplacian(vorticity))
        carried = np.concatenate([vorticity + self.planetary_PML, warm, moist])
        wind = (np.tile(u, (3, 1, 1)), np.tile(v, (3, 1, 1)))
        change = -sphere.analyse(sphere.advection(*wind, carried))
        change[: len(LEVELS)] += (self.jet_PML - vorticity) / JET_TIME
        change[: len(LEVELS)] += _neighbours(vorticity) / COUPLING_TIME
        lost = np.concatenate([self.warm_PML - warm, self.moist_PML - moist])
        change[len(LEVELS) :] += lost / TRACER_TIME
        return change

    def step(self, state: Complex) -> Complex:
        """Advance by `TIME_STEP`: Runge-Kutta of fourth order, diffusion exactly."""
        one = self.tendency(state)
        two = self.tendency(state + TIME_STEP / 2 * one)
        three = self.tendency(state + TIME_STEP / 2 * two)
        four = self.tendency(state + TIME_STEP * three)
        return (state + TIME_STEP / 6 * (one + 2 * two + 2 * three + four)) * self._decay_L

    def fields(self, state: Complex) -> dict[str, Floats]:
        """Variables of WeatherBench 2, [P, J, I] or [J, I] from the south."""
        sphere = self.sphere
        vorticity, warm, moist = np.split(state, 3)
        u, v = sphere.winds(sphere.inverse_laplacian(vorticity))
        temperature, humidity = sphere.synthesise(warm), sphere.synthesise(moist)
        # Linear balance: laplacian(phi) = div(f grad(psi)) = f zeta - u df/dy.
        slope_J1 = 2 * ROTATION * sphere.cosine_J1 / RADIUS
        forcing = self.coriolis_J1 * sphere.synthesise(vorticity) - slope_J1 * u
        balanced = sphere.synthesise(sphere.inverse_laplacian(sphere.analyse(forcing)))
        return {
            "2m_temperature": temperature[-1] + 9.0 - _LAPSE * self.height_JI,
            "10m_u_component_of_wind": 0.6 * u[-1] - 0.15 * v[-1],
            "10m_v_component_of_wind": 0.15 * u[-1] + 0.6 * v[-1],
            "mean_sea_level_pressure": 101_325.0 + _DENSITY * balanced[-1],
            "geopotential": _by_level(GEOPOTENTIAL) + balanced,
            "u_component_of_wind": u,
            "v_component_of_wind": v,
            "temperature": temperature,
            "specific_humidity": np.maximum(humidity, 0.0),
        }

    def constants(self) -> dict[str, Floats]:
        """Fields that do not change, [J, I]."""
        land = (self.height_JI > 0.15 * MOUNTAIN).astype(float)
        return {
            "geopotential_at_surface": _GRAVITY * self.height_JI,
            "land_sea_mask": land,
            "soil_type": land * (1 + (self.height_JI > 0.5 * MOUNTAIN)),
        }


def simulate(config: BarotropicConfig, planet: Planet) -> Iterator[dict[str, Floats]]:
    """Yield the fields of each output time after the spin-up."""
    state = planet.begin(config.seed)
    per_output = round(OUTPUT_HOURS * 3_600 / TIME_STEP)
    for _ in range(round(config.spin_up * DAY / TIME_STEP)):
        state = planet.step(state)
    for _ in range(config.steps):
        for _ in range(per_output):
            state = planet.step(state)
        yield planet.fields(state)


def write_weather(
    config: BarotropicConfig, directory: Path, progress: Progress | None = None
) -> None:
    """Simulate and write ``weather.nc``: 32 x 64 cells, 4 levels, latitude ascending.

    The directory is made if it is missing; ``progress`` is called with (times written, all).
    """
    planet, path = Planet(config.seed), Path(directory) / "weather.nc"
    with atomic_write(path) as partial, netCDF4.Dataset(partial, "w") as file:
        _define(file, planet)
        for index, fields in enumerate(simulate(config, planet)):
            file["time"][index] = index * OUTPUT_HOURS
            for name, values in fields.items():
                file[name][index] = values
            if progress is not None:
                progress(index + 1, config.steps)


def _define(file: netCDF4.Dataset, planet: Planet) -> None:
    sphere = planet.sphere
    axes = {
        "level": (np.array(LEVELS), "hPa"),
        "latitude": (sphere.latitude_J, "degrees_north"),
        "longitude": (sphere.longitude_I, "degrees_east"),
    }
    file.createDimension("time", None)
    file.createVariable("time", "f8", ("time",)).units = "hours since 2000-01-01"
    for name, (values, unit) in axes.items():
        file.createDimension(name, len(values))
        variable = file.createVariable(name, "f8", (name,))
        variable[:], variable.units = values, unit
    plane = ("latitude", "longitude")
    for name, values in planet.constants().items():
        variable = file.createVariable(name, "f4", plane)
        variable[:], variable.units = values, UNITS[name]
    for name, values in planet.fields(planet.begin(0)).items():
        shape = ("time", "level", *plane) if values.ndim == 3 else ("time", *plane)
        chunks = (1, *values.shape)
        file.createVariable(name, "f4", shape, chunksizes=chunks).units = UNITS[name]


def _by_level(values: tuple[float, ...]) -> Floats:
    return np.array(values)[:, None, None]


def _neighbours(vorticity_PML: Complex) -> Complex:
    """Differences to the levels above and below."""
    step = np.diff(vorticity_PML, axis=0)
    edge = np.zeros_like(vorticity_PML[:1])
    return np.concatenate([step, edge]) - np.concatenate([edge, step])


def _mountains(sphere: Sphere, random: np.random.Generator) -> Floats:
    """A few smooth massifs (m)."""
    latitude = sphere.latitude_J[:, None]
    height = np.zeros((ROWS, 2 * ROWS))
    for _ in range(6):
        north, east = random.uniform(-60, 60), random.uniform(0, 360)
        wide, tall = random.uniform(10, 20), random.uniform(0.4, 1.0)
        away = (sphere.longitude_I - east + 180) % 360 - 180
        square = ((latitude - north) / wide) ** 2 + (away / (1.5 * wide)) ** 2
        height = np.maximum(height, tall * np.exp(-square))
    smooth = sphere.synthesise(sphere.analyse(height[None]))[0]
    return MOUNTAIN * np.maximum(smooth, 0) / smooth.max()
