"""The shape of weather samples without the samples: what planning builds a model on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from millrace.input_files import resolve_address
from millrace.systems.base import Block
from millrace.systems.weather.catalogue import grid_of
from millrace.systems.weather.dataset import WeatherBatch
from millrace.systems.weather.extract import WeatherConfig
from millrace.systems.weather.grids import columns_of, rows_of
from millrace.systems.weather.settings import WeatherWindowConfig
from millrace.systems.weather.simulator import barotropic
from millrace.systems.weather.simulator.sphere import Sphere
from millrace.systems.weather.source import open_sources


def outline(
    dataset: Block, data: Block, grid: tuple[int, int] | None, levels: int | None
) -> "WeatherOutline":
    """Outline of an experiment's samples: `millrace.systems.base.SampleKind.outline`."""
    weather = WeatherConfig.parse(dataset.get("weather", {}), "weather")
    window = WeatherWindowConfig.parse(data, "data")
    if grid is None or not (weather.levels or levels):
        found, present = _size(dataset["source"], weather)
        grid, levels = grid or found, levels or present
    return WeatherOutline(weather, window, grid, len(weather.levels) or levels or 0)


def _size(source: str, weather: WeatherConfig) -> tuple[tuple[int, int], int]:
    """Rows and columns, and pressure levels, of the demo or of the headers of raw files."""
    if source == "demo":
        sphere, demo = Sphere(0, barotropic.ROWS), Path(source)
        rows, _ = rows_of(demo, sphere.latitude_J, weather.area)
        columns, *_ = columns_of(demo, sphere.longitude_I, weather.area)
        return (len(rows), len(columns)), len(barotropic.LEVELS)
    grid = grid_of(open_sources(resolve_address(source)), weather)
    return grid.shape, len(grid.level)


@dataclass(frozen=True)
class WeatherOutline:
    """Stands in for a `WeatherDataset` where only sizes count."""

    weather: WeatherConfig
    config: WeatherWindowConfig
    shape: tuple[int, int]
    """Rows and columns of cells, which planning spreads over the whole globe, also those of an area."""
    pressure_levels: int

    @property
    def surface(self) -> tuple[str, ...]:
        """Variables of the surface."""
        return self.weather.surface

    @property
    def air(self) -> tuple[str, ...]:
        """Variables of the air."""
        return self.weather.air

    @property
    def levels(self) -> np.ndarray:
        """Pressure levels, hPa."""
        return np.linspace(50.0, 1000.0, self.pressure_levels)

    @property
    def latitude(self) -> np.ndarray:
        """Degrees, of the rows."""
        return 90 - 180 / self.shape[0] * (np.arange(self.shape[0]) + 0.5)

    @property
    def longitude(self) -> np.ndarray:
        """Degrees, of the columns."""
        return 360 / self.shape[1] * np.arange(self.shape[1])

    @property
    def static(self) -> np.ndarray:
        """Fields that do not change, [F, I, J]."""
        return np.zeros((len(self.weather.static), *self.shape), dtype=np.float32)

    @property
    def static_names(self) -> tuple[str, ...]:
        """Names of these fields."""
        return self.weather.static

    @property
    def static_mean(self) -> np.ndarray:
        """Of these fields, [F]; `static_std` their deviations."""
        return np.zeros(len(self.weather.static))

    @property
    def static_std(self) -> np.ndarray:
        """See `static_mean`."""
        return np.ones(len(self.weather.static))

    @property
    def mean(self) -> np.ndarray:
        """Of the channels, [C]; `std` their deviations."""
        return np.zeros(self.channels)

    @property
    def std(self) -> np.ndarray:
        """See `mean`."""
        return np.ones(self.channels)

    @property
    def step_hours(self) -> float:
        """Length of a step."""
        return float(self.weather.hours)

    @property
    def channels(self) -> int:
        """Numbers of a cell."""
        return len(self.surface) + len(self.air) * self.pressure_levels

    @property
    def increment_scale(self) -> np.ndarray:
        """Typical change in one step over the typical value, [C]."""
        return np.ones(self.channels)

    def batch(self, samples: int) -> WeatherBatch:
        """A batch of no particular content."""
        steps = (self.config.input_steps, self.config.output_steps)
        past, future = (torch.empty(samples, n, self.channels, *self.shape) for n in steps)
        hours, weight = torch.empty(samples, dtype=torch.float64), torch.empty(samples)
        return WeatherBatch(past, hours, future, torch.empty(self.channels), weight)
