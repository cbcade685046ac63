"""Weather with one mutation each: read as by xarray, by labels, or refused with its file.

Mutations are those of real files: axes permuted, flipped, rolled and shuffled, other names and units,
values that stand for none, rows and cells cut, doubled and blanked, labels that contradict each other, in
files divided by variable, time and level. What is read is compared with what xarray selects by label.
"""

import itertools
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from mutations import NUMBER, try_mutations

from millrace.data.split import SplitConfig
from millrace.systems.weather.extract import extract_weather
from millrace.systems.weather.settings import WeatherConfig

TIMES, LEVELS = 8, (500.0, 850.0)
CONFIG = WeatherConfig(surface=("2t", "msl"), air=("z", "t"), static=("z", "lsm"), levels=LEVELS)
SPLIT = SplitConfig(train=0.5, validation=0.25, gap=1)
LATITUDE, LONGITUDE = np.linspace(78.75, -78.75, 8), np.arange(12) * 30.0
SURFACE = {"2t": "2m_temperature", "msl": "mean_sea_level_pressure"}
AIR = {"z": "geopotential", "t": "temperature"}
GROUND = ["geopotential_at_surface", "land_sea_mask"]
CDS = {
    "2m_temperature": "t2m", "mean_sea_level_pressure": "msl", "geopotential": "z", "temperature": "t",
    "land_sea_mask": "lsm",
}  # fmt: skip
CMIP = {
    "2m_temperature": "tas", "mean_sea_level_pressure": "psl", "geopotential": "zg", "temperature": "ta",
    "geopotential_at_surface": "orog", "land_sea_mask": "sftlf",
}  # fmt: skip
SENTINELS = [-999.0, -9999.0, 1e20, 1e30, 9.96921e36]


def planet():
    """Fields that are unlike their mirror images, in the layout of WeatherBench 2."""
    step = np.arange(TIMES)[:, None, None]
    y, x = np.deg2rad(LATITUDE)[:, None], np.deg2rad(LONGITUDE)
    noise = np.random.default_rng(0).normal(size=(TIMES, 8, 12))
    wave = np.cos(y) * np.sin(2 * x - 0.5 * step) + 0.4 * np.sin(y + 3 * x - step) + 0.2 * noise
    both = np.stack([wave, 0.7 * wave + 0.3 * np.roll(wave, 1, 2)], axis=1)
    plane, air = ("time", "latitude", "longitude"), ("time", "level", "latitude", "longitude")
    height = np.array([54_000.0, 14_000.0])[:, None, None]
    land = np.round(0.5 + 0.5 * np.cos(y) * np.sin(x + y), 2)
    return xr.Dataset(
        {
            "2m_temperature": (plane, 280 + 12 * wave, {"units": "K"}),
            "mean_sea_level_pressure": (plane, 101_000 + 900 * wave, {"units": "Pa"}),
            "geopotential": (air, height + 1_500 * both, {"units": "m**2 s**-2"}),
            "temperature": (air, 260 + 12 * both, {"units": "K"}),
            "geopotential_at_surface": (plane[1:], 9.81 * 2_000 * land, {"units": "m**2 s**-2"}),
            "land_sea_mask": (plane[1:], land, {"units": "1"}),
        },
        {
            "time": np.datetime64("2020-01-31", "ns") + np.arange(TIMES) * np.timedelta64(6, "h"),
            "level": ("level", np.array(LEVELS), {"units": "hPa"}),
            "latitude": LATITUDE,
            "longitude": LONGITUDE,
        },
    ).astype("float32")


def by_label(data):
    """State and static fields as xarray selects them by label."""
    place = {
        "latitude": data.latitude.sortby(data.latitude, ascending=False),
        "longitude": LONGITUDE,
    }
    fields = [data[name].sel(place) for name in SURFACE.values()]
    fields += [data[name].sel(level=level).sel(place) for name in AIR.values() for level in LEVELS]
    order = ("time", "latitude", "longitude")
    state = np.stack([f.sortby("time").transpose(*order).values for f in fields], axis=1)
    return state, np.stack([data[name].sel(place).transpose(*order[1:]).values for name in GROUND])


# What is done to the labels and the order of one dataset. None of it changes what is read.


def permuted(data, draw):
    return data.transpose(*draw.sample(list(data.dims), len(data.dims)))


def flipped(data, draw):
    axes = draw.sample(list(data.dims), draw.randint(1, len(data.dims)))
    return data.isel({axis: slice(None, None, -1) for axis in axes})


def rolled(data, draw):
    return data.roll(longitude=draw.randrange(1, 12), roll_coords=True)


def westward(data, draw):
    longitude = data.longitude.values
    return data.assign_coords(longitude=np.where(longitude >= 180, longitude - 360, longitude))


def shuffled(data, draw):
    axis = draw.choice(list(data.dims))
    return data.isel({axis: draw.sample(range(data.sizes[axis]), data.sizes[axis])})


def as_it_is(data, draw):
    return data


SAME = [permuted, flipped, rolled, westward, shuffled, as_it_is]


def axes_renamed(data, draw):
    names = {
        "latitude": ["lat"],
        "longitude": ["lon"],
        "time": ["valid_time"],
        "level": ["pressure_level", "plev", "isobaricInhPa", "lev"],
    }
    return data.rename(
        {axis: draw.choice(names[axis]) for axis in data.dims if draw.random() < 0.7}
    )


def variables_renamed(data, draw):
    names = draw.choice([CDS, CMIP])
    changed = {name: new for name, new in names.items() if name in data and draw.random() < 0.7}
    return data.rename(changed)


def levels_in_pascal(data, draw):
    if "level" not in data.dims:
        return data
    return data.assign_coords(level=("level", 100 * data.level.values, {"units": "Pa"}))


UNITS = {
    "2m_temperature": [("degC", lambda v: v - 273.15), ("°F", lambda v: (v - 273.15) * 1.8 + 32)],
    "temperature": [("degrees_C", lambda v: v - 273.15), ("Celsius", lambda v: v - 273.15)],
    "mean_sea_level_pressure": [("mb", lambda v: v / 100), ("millibars", lambda v: v / 100)],
    "geopotential": [("m", lambda v: v / 9.80665), ("gpm", lambda v: v / 9.80665)],
    "geopotential_at_surface": [("m", lambda v: v / 9.80665), ("km", lambda v: v / 9806.65)],
    "land_sea_mask": [("%", lambda v: 100 * v), ("percent", lambda v: 100 * v)],
}


def in_other_unit(data, draw):
    name = draw.choice([name for name in UNITS if name in data])
    unit, change = draw.choice(UNITS[name])
    return data.assign({name: change(data[name].astype(float)).assign_attrs(units=unit)})


LIKE = [axes_renamed, variables_renamed, levels_in_pascal, in_other_unit]


# What is wrong, and has to be refused where it is in what is asked for.


def unit_not_said(data, draw):
    name = draw.choice([name for name in UNITS if name in data])
    _, change = draw.choice(UNITS[name])
    return data.assign({name: change(data[name].astype(float)).drop_attrs()})


def unit_said_wrongly(data, draw):
    name = draw.choice([name for name in UNITS if name in data])
    unit, _ = draw.choice(UNITS[name])
    return data.assign({name: data[name].assign_attrs(units=unit)})


def with_sentinel(data, draw):
    name = draw.choice(list(data.data_vars))
    values = data[name].values.copy()
    count = draw.choice([1, 3, values.size // 4])
    values.flat[draw.sample(range(values.size), count)] = draw.choice(SENTINELS)
    changed = data[name].copy(data=values)
    if draw.random() < 0.5:  # declared: read as no number
        changed.encoding["_FillValue"] = np.float32(draw.choice(SENTINELS))
    return data.assign({name: changed})


def with_holes(data, draw):
    name = draw.choice(list(data.data_vars))
    values = data[name].values.copy()
    values.flat[draw.sample(range(values.size), draw.choice([1, 50]))] = np.nan
    return data.assign({name: data[name].copy(data=values)})


def cut(data, draw):
    axis = draw.choice(list(data.dims))
    gone = draw.randrange(data.sizes[axis])
    return data.isel({axis: [n for n in range(data.sizes[axis]) if n != gone]})


def doubled(data, draw):
    axis = draw.choice(list(data.dims))
    at = draw.randrange(data.sizes[axis])
    return data.isel({axis: [*range(at + 1), *range(at, data.sizes[axis])]})


def shifted(data, draw):
    axis = draw.choice([axis for axis in ("latitude", "longitude") if axis in data.dims])
    return data.assign_coords({axis: data[axis] + draw.choice([0.5, 5.0, -3.0])})


def without_coordinates(data, draw):
    return data.drop_vars(draw.choice(list(data.dims)))


def levels_exchanged(data, draw):
    """Labels of levels that contradict the geopotential at them."""
    return data.assign_coords(level=data.level[::-1].values)


def blank_label(data, draw):
    axis = draw.choice(list(data.dims))
    labels = data[axis].values.copy()
    labels[draw.randrange(len(labels))] = np.datetime64("NaT") if axis == "time" else np.nan
    return data.assign_coords({axis: labels})


def contradicting(data, draw):
    """A second name of a variable that is there, with other values."""
    name = draw.choice([name for name in CDS if name in data])
    return data.assign({CMIP[name]: data[name].roll(longitude=1)})


def member_axis(data, draw):
    name = draw.choice(list(data.data_vars))
    two = xr.concat([data[name], data[name].roll(latitude=1)], "number")
    return data.assign({name: two})


def renamed_beyond_recognition(data, draw):
    name = draw.choice(list(data.data_vars))
    return data.rename({name: f"{name}_x"})


WRONG = [
    unit_not_said, unit_said_wrongly, with_sentinel, with_holes, cut, doubled, shifted,
    levels_exchanged, without_coordinates, blank_label, contradicting, member_axis,
    renamed_beyond_recognition,
]  # fmt: skip


def rows_shuffled(table, draw):
    return table.sample(frac=1, random_state=draw.randrange(10**6))


def row_doubled(table, draw):
    row = draw.randrange(len(table))
    return pd.concat([table.iloc[: row + 1], table.iloc[row:]])


def row_cut(table, draw):
    return table.drop(index=table.index[draw.randrange(len(table))])


def cell_blanked(table, draw):
    table = table.astype(object)
    row, column = draw.randrange(len(table)), draw.randrange(table.shape[1])
    table.iloc[row, column] = draw.choice(["", "NA", "?", " "])
    return table


def column_renamed(table, draw):
    name = draw.choice(list(table.columns))
    return table.rename(columns={name: draw.choice([f" {name}", f"{name} [1]", "x"])})


def text_cut(text, draw):
    """Anywhere but at the end of a line, where the row that is missing tells."""
    return text[: draw.randrange(10, len(text))].removesuffix("\n")


def other_dialect(text, draw):
    changes = [(",", ";"), (".", ","), ("\n", "\r\n"), ("time", "\ufefftime")]
    return text.replace(*draw.choice(changes))


def cell_more_or_less(text, draw):
    lines = text.split("\n")
    row = draw.randrange(1, len(lines) - 1)
    lines[row] = draw.choice([f"{lines[row]},1", lines[row].rpartition(",")[0], ""])
    return "\n".join(lines)


TABLES = [rows_shuffled, row_doubled, row_cut, cell_blanked, column_renamed]
TEXTS = [text_cut, other_dialect, cell_more_or_less]
MUTATIONS = SAME + LIKE + WRONG + TABLES + TEXTS
# The place is in the file itself, not beside another one.
OF_ONE_FILE = [unit_not_said, with_sentinel, with_holes, blank_label, row_doubled, text_cut]


# Divisions of the whole into files.


def one_file(data, draw):
    return {"all": data}


def by_variable(data, draw):
    return {name: data[[name]] for name in data.data_vars}


def by_time(data, draw):
    bounds = [0, *sorted(draw.sample(range(1, TIMES), 2)), TIMES]
    changing = data.drop_vars(GROUND)
    parts = {f"part{a}": changing.isel(time=slice(a, b)) for a, b in itertools.pairwise(bounds)}
    return parts | {"static": data[GROUND]}


def single_times(data, draw):
    single = {f"t{k}": data.isel(time=k) for k in range(TIMES - 2, TIMES)}
    return {"early": data.isel(time=slice(0, TIMES - 2))} | single


def by_level(data, draw):
    levels = {f"l{k}": data[list(AIR.values())].isel(level=k) for k in range(len(LEVELS))}
    return levels | {"surface": data[list(SURFACE.values())], "static": data[GROUND]}


def pair_of_cds(data, draw):
    single = data[[*SURFACE.values(), *GROUND]].drop_vars("level", errors="ignore")
    for name in GROUND:  # which the CDS gives at every time
        single[name] = single[name].expand_dims(time=data.time)
    return {"pressure-levels": data[list(AIR.values())], "single-levels": single}


def as_of_cds(data):
    names = {"time": "valid_time", "level": "pressure_level", **CDS, "geopotential_at_surface": "z"}
    there = {old: new for old, new in names.items() if old in data.variables or old in data.dims}
    scalars = {"number": 0, "expver": "0001"}
    return data.rename(there).assign_coords(
        {n: v for n, v in scalars.items() if n not in data.dims}
    )


DIVISIONS = [one_file, by_variable, by_time, single_times, by_level, pair_of_cds]


def to_store(data, path, draw):
    length = draw.choice([1, 3, TIMES, 100])
    chunks = {
        name: {"chunks": tuple(length if d == "time" else n for d, n in v.sizes.items())}
        for name, v in data.data_vars.items()
        if "time" in v.dims
    }
    data.to_zarr(path, encoding=chunks, zarr_format=draw.choice([2, 3]), consolidated=False)


def fits_a_table(data):
    """Whether all variables have a time, or all have none."""
    return len({"time" in v.dims for v in data.data_vars.values()}) == 1


def to_table(data, path, change, draw):
    """CSV as the documentation gives it: the level of surface variables is blank."""
    data = data.rename({"latitude": "lat", "longitude": "lon"})
    tables = []
    for dims in {v.dims: None for v in data.data_vars.values()}:
        names = [name for name, v in data.data_vars.items() if v.dims == dims]
        tables.append(data[names].to_dataframe().reset_index())
    table = pd.concat(tables)
    if "time" in table and "level" not in table:
        table["level"] = np.nan
    table = table.reset_index(drop=True)
    if change in TABLES:
        table = change(table, draw)
    text = table.to_csv(index=False, float_format="%.9g")
    path.write_bytes((change(text, draw) if change in TEXTS else text).encode())


def write_file(folder, name, data, mutation, draw):
    kinds = ["nc", "nc", "zarr"]
    plain = mutation not in [axes_renamed, without_coordinates]
    if plain and {"latitude", "longitude"} <= set(data.dims) and fits_a_table(data):
        kinds = ["csv"] if mutation in TABLES + TEXTS else [*kinds, "csv"]
    path = folder / f"{name}.{draw.choice(kinds)}"
    if path.suffix == ".csv":
        to_table(data, path, mutation, draw)
    elif path.suffix == ".zarr":
        to_store(data, path, draw)
    else:
        data.to_netcdf(path)
    return path


def applies(mutation, part, parts):
    if mutation is shifted:  # all files together are another grid
        return len(parts) > 1
    if mutation in TABLES + TEXTS:
        return fits_a_table(part)
    if mutation is levels_exchanged:
        return "level" in part.dims and "geopotential" in part
    if mutation is contradicting:
        return any(name in CDS for name in part.data_vars)
    return mutation is not levels_in_pascal or "level" in part.dims


@pytest.fixture
def extract(tmp_path):
    def extracted(folder):
        extract_weather(folder, tmp_path / "weather.h5", CONFIG, SPLIT)
        with h5py.File(tmp_path / "weather.h5") as file:
            return file["time"][()], file["state"][()], file["static"][()]

    return extracted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mutated_weather_is_read_rightly_or_refused_with_its_file(extract, tmp_path):
    data, folder = planet(), tmp_path / "raw"
    state, static = by_label(data)
    time = (data.time.values - np.datetime64("1970-01-01")) / np.timedelta64(1, "D")

    def write(mutation, draw):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        divide = draw.choice(DIVISIONS[1:5] if mutation in TABLES + TEXTS else DIVISIONS)
        parts = divide(data, draw)
        victim = draw.choice(
            [name for name, part in parts.items() if applies(mutation, part, parts)] or [""]
        )
        place = folder
        for name, part in parts.items():
            changed, change = part, as_it_is
            if name == victim:
                change = mutation
                changed = part if mutation in TABLES + TEXTS else mutation(part, draw)
            if (
                divide is pair_of_cds
                and change is not axes_renamed
                and change is not variables_renamed
            ):
                changed = as_of_cds(changed)
            path = write_file(folder, name, changed, change, draw)
            if name == victim and mutation in OF_ONE_FILE:
                place = path
        return place

    def fault(found, mutation):
        found_time, found_state, found_static = found
        kept = np.isin(time, found_time)
        # A series that ends earlier or begins later is a shorter one.
        whole = kept.all() or (mutation is cut and kept[1:-1].all() and kept.sum() == TIMES - 1)
        exact = {"rtol": 0, "atol": 0} if mutation in SAME else {"rtol": 3e-6, "atol": 1e-4}
        pairs = [(found_time, time[kept]), (found_state, state[kept]), (found_static, static)]
        if not whole or not all(
            a.shape == b.shape and np.allclose(a, b, **exact) for a, b in pairs
        ):
            return f"other samples without a message: {sorted(p.name for p in folder.iterdir())}"
        return None

    refused = try_mutations(MUTATIONS, write, lambda: extract(folder), fault)
    assert NUMBER / 4 < refused < NUMBER
