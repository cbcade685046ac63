"""Blocks of the configuration that belong to weather, without torch; `model` is in `aurora.config`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from millrace.config import UNIQUE, Count, Names, Positive, Seed, Settings, SomeNames, option
from millrace.systems.settings import MissingConfig, Parts, SplitDatasetSettings


class BarotropicConfig(Settings):
    """Four levels of a barotropic atmosphere on 32 x 64 cells (spectral, truncated at wave number 21).

    Each is driven towards a jet that is unstable, over mountains; temperature and humidity are carried
    along. Time to simulate: about 0.03 s of one core for six hours.
    """

    steps: int = option(400, ge=1, le=100_000)
    """Output times, six hours apart."""
    seed: Seed = 0
    """Of the first disturbances and the mountains: another planet of the same kind."""
    spin_up: float = option(25.0, ge=0, le=1_000, unit="d")
    """Simulated before the first output, until the jets break up."""


Year = Annotated[int, Field(ge=1, le=9999)]
Store = Literal["copy", "reference"]


class AreaConfig(Settings):
    """A part of the globe: cells whose middles are in it, going east from `west`, also across 0 or 180."""

    north: float = option(90.0, ge=-90, le=90, unit="degrees")
    """Latitude of its northern edge."""
    south: float = option(-90.0, ge=-90, le=90, unit="degrees")
    """Of its southern edge."""
    west: float = option(-180.0, ge=-360, le=360, unit="degrees")
    """Longitude of its western edge, from 0 or from -180."""
    east: float = option(180.0, ge=-360, le=360, unit="degrees")
    """Of its eastern edge."""

    def model_post_init(self, _: Any) -> None:
        """Check that there is something in it."""
        if self.south >= self.north:
            raise ValueError(f"south {self.south:g} is not below north {self.north:g}")
        if self.east == self.west or self.east - self.west > 360:
            raise ValueError(
                f"west {self.west:g} and east {self.east:g} are no edges of an area; expected two that "
                "differ, by 360 at most"
            )

    @property
    def width(self) -> float:
        """Degrees from west to east."""
        return (self.east - self.west) % 360.0 or 360.0


class CompressConfig(Settings):
    """States that are rounded and packed: smaller files of slightly other numbers."""

    keep_bits: int = option(ge=1, le=23, unit="bits")
    """Bits of the mantissa of each number that are kept, for a relative error up to 2^-(bits + 1); with 23
    nothing is rounded."""


class WeatherConfig(Settings):
    """What is taken from the raw files, by the short names of ECMWF.

    The names of WeatherBench 2 (`2m_temperature` and so on) are found in the files by themselves. Levels
    are kept in ascending order, units are turned into SI.
    """

    surface: SomeNames = ("2t", "10u", "10v", "msl")
    """Variables at the surface: temperature, winds, pressure at sea level."""
    air: SomeNames = ("z", "u", "v", "t", "q")
    """Variables on pressure levels: geopotential, winds, temperature, specific humidity."""
    static: Names = ("z", "slt", "lsm")
    """Fields that do not change: geopotential of the ground, type of soil, share of land."""
    levels: Annotated[tuple[Positive, ...], *UNIQUE] = option((), unit="hPa")
    """Pressure levels; none named: all of the files. Fewer need less memory."""
    hours: Count = option(6, unit="h")
    """Between two states; files may hold more of them."""
    years: tuple[Year, Year] | None = None
    """First and last year; null: all of the files."""
    area: AreaConfig | None = None
    """Part of the globe, also if files hold no more than that; null: all of it."""

    def model_post_init(self, _: Any) -> None:
        """Check that the years are in order."""
        if self.years and self.years[0] > self.years[1]:
            raise ValueError(f"years {list(self.years)}: expected the first and the last one")


class WeatherExtraction(WeatherConfig):
    """What is taken from the raw files, and what looks like no value there."""

    missing: MissingConfig | None = None
    """What a no-data value such as -999 means."""
    store: Store = "copy"
    """Whether states are copied, or stay where they are."""
    compress: CompressConfig | None = None
    """How copies are rounded and packed."""

    @property
    def keep_bits(self) -> int | None:
        """Bits of the mantissa that are kept; None: copies are as they were."""
        return self.compress.keep_bits if self.compress else None


class WeatherDatasetSettings(SplitDatasetSettings):
    """States of the atmosphere: a Zarr store, or a directory of NetCDF, GRIB, Zarr or CSV files.

    `source` may be the address of a Zarr store, `https://`, `s3://` or `gs://`.
    """

    weather: WeatherConfig = WeatherConfig()
    """What is taken from the files."""
    missing: MissingConfig | None = None
    """What a no-data value such as -999 means; those that look like one are refused."""
    store: Store = "copy"
    """`copy` the states, or leave them where they are and read them from there when training asks for them
    (`reference`): of a Zarr store whose chunks hold whole fields of one time."""
    compress: CompressConfig | None = None
    """Round and pack copies, which changes their numbers; null: they are those of the raw files."""
    parts: Parts = None
    """Jobs that extract the samples; what they make does not depend on their number. null: one for every
    16 GiB of raw files."""


class WeatherWindowConfig(Settings):
    """Samples of weather: `input_steps` states, from which the next ones are forecast one by one.

    Each is forecast from the ones before; the time that the model is told advances with them.
    """

    input_steps: Count = option(2, unit="steps")
    """States given."""
    output_steps: Count = option(1, unit="steps")
    """States forecast; the loss is the mean over them. More to train rollouts, as fine-tuning."""
    stride: Count = option(1, unit="steps")
    """Between the starts of two training windows; scores are over all windows."""

    @property
    def length(self) -> int:
        """Steps from the first input to the last output."""
        return self.input_steps + self.output_steps
