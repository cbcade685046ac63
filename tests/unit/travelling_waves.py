"""Weather that is quickly made: waves that travel east, as an `xarray` dataset of WeatherBench 2."""

import numpy as np
import xarray as xr


def waves(steps, rows=16, columns=32, levels=(300.0, 500.0, 850.0)):
    """Weather in the names and axes of WeatherBench 2, as an `xarray` dataset."""
    step = np.arange(steps)[:, None, None]
    latitude = np.linspace(-84, 84, rows)
    longitude = np.arange(columns) * 360 / columns
    north, east = np.deg2rad(latitude)[:, None], np.deg2rad(longitude)
    wave = np.cos(north) * np.sin(2 * east - 0.5 * step) + 0.4 * np.sin(
        3 * east + north - 0.9 * step
    )
    plane = ("time", "latitude", "longitude")
    shear = 1 + 0.2 * np.arange(len(levels))[None, :, None, None]
    layer = wave[:, None] * shear + 0.3 * np.cos(4 * east - 0.7 * step[:, None])
    air = ("time", "level", "latitude", "longitude")
    return xr.Dataset(
        {
            "2m_temperature": (plane, 280 + 10 * wave, {"units": "K"}),
            "mean_sea_level_pressure": (
                plane,
                101_000 + 900 * np.roll(wave, 3, 2),
                {"units": "Pa"},
            ),
            "geopotential": (air, 5e4 + 1e3 * layer, {"units": "m**2 s**-2"}),
            "u_component_of_wind": (air, 10 + 8 * np.roll(layer, 2, 3), {"units": "m s**-1"}),
            "land_sea_mask": (plane[1:], (np.sin(2 * east) * np.cos(north) > 0.2).astype(float)),
        },
        coords={
            "time": np.datetime64("2001-03-01T00", "ns")
            + np.arange(steps) * np.timedelta64(6, "h"),
            "level": ("level", np.array(levels), {"units": "hPa"}),
            "latitude": latitude,
            "longitude": longitude,
        },
    )
