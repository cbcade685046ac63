"""A part of the globe and of the years: the same cells as by their labels, and nothing else is read."""

import json
import re
from collections import Counter

import h5py
import numpy as np
import pytest
import torch
import zarr
from travelling_waves import waves

from millrace.data.shares import Share
from millrace.data.split import SplitConfig
from millrace.errors import ConfigError, DataError
from millrace.evaluation.trained_model import TrainedModel
from millrace.systems.weather.aurora.config import TINY
from millrace.systems.weather.aurora.encodings import place_encodings
from millrace.systems.weather.aurora.spec import SPEC
from millrace.systems.weather.aurora.swin import SwinBlock, window_labels
from millrace.systems.weather.dataset import WeatherDataset
from millrace.systems.weather.evaluation import EVALUATION
from millrace.systems.weather.extract import extract_part, extract_weather, gather
from millrace.systems.weather.grids import goes_round
from millrace.systems.weather.outline import outline
from millrace.systems.weather.settings import (
    AreaConfig,
    WeatherConfig,
    WeatherExtraction,
    WeatherWindowConfig,
)

STEPS = 16
CONFIG = WeatherConfig(surface=("2t",), air=("z", "u"), static=("lsm",))
SPLIT = SplitConfig(train=0.5, validation=0.25, gap=2)
ACROSS = {"north": 62.0, "south": -30.0, "west": -46.0, "east": 46.0}
"""Across 0 degrees: 9 of 16 rows and 9 of 32 columns, of which the last ones are cut."""


def asked(**keys):
    return CONFIG.replaced(**keys)


def content(path):
    with h5py.File(path) as file:
        return {
            name: file[name][()] for name in ("state", "static", "latitude", "longitude", "time")
        }


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


def by_label(data, latitude, longitude):
    """States as xarray selects them by the labels that the samples have."""
    cells = {"latitude": latitude, "longitude": longitude % 360}
    fields = [data["2m_temperature"]]
    fields += [
        data[name].sel(level=level)
        for name in ("geopotential", "u_component_of_wind")
        for level in data.level
    ]
    return np.stack([one.sel(cells, method="nearest").values for one in fields], 1).astype(
        "float32"
    )


def west(data):
    return data.assign_coords(longitude=(data.longitude + 180) % 360 - 180).sortby("longitude")


def shuffled(data):
    order = np.random.default_rng(0).permutation
    return data.isel(latitude=order(16), longitude=order(32))


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
@pytest.mark.parametrize(
    "changed",
    [
        lambda d: d,
        lambda d: d.isel(latitude=slice(None, None, -1)),
        west,
        shuffled,
        lambda d: d.transpose("longitude", "latitude", ...),
    ],
    ids=["as it is", "flipped", "west", "shuffled", "order of axes"],
)
@pytest.mark.parametrize(
    ("area", "rows", "columns"),
    [
        (ACROSS, (61.6, -16.8), (-45.0, 33.75)),
        ({**ACROSS, "west": 314.0}, (61.6, -16.8), (-45.0, 33.75)),
        ({**ACROSS, "west": 146.0, "east": -123.0}, (61.6, -16.8), (146.25, 225.0)),
        ({**ACROSS, "west": 90.0, "east": 179.0}, (61.6, -16.8), (90.0, 168.75)),
        ({"west": -45.0, "east": 0.0}, (84.0, -84.0), (-45.0, -11.25)),
        ({"north": -10.0}, (-16.8, -50.4), (0.0, 348.75)),
        ({"west": -45.0, "east": 310.0}, (84.0, -84.0), (0.0, 348.75)),
    ],
    ids=[
        "across 0", "from 0 to 360", "across the date line", "inside", "pole to pole", "a band",
        "all columns",
    ],
)  # fmt: skip
def test_an_area_is_what_its_labels_say(tmp_path, suffix, changed, area, rows, columns):
    data, path = waves(STEPS), tmp_path / f"w.{suffix}"
    changed(data).to_netcdf(path) if suffix == "nc" else changed(data).to_zarr(path, zarr_format=2)
    extract_weather(path, tmp_path / "weather.h5", asked(area=AreaConfig(**area)), SPLIT)
    found = content(tmp_path / "weather.h5")
    ends = [tuple(found[axis][[0, -1]]) for axis in ("latitude", "longitude")]
    assert ends == [pytest.approx(rows), pytest.approx(columns)]
    assert np.diff(found["longitude"]) == pytest.approx(11.25)
    assert found["state"].shape[2] % 4 == found["state"].shape[3] % 4 == 0
    assert np.array_equal(found["state"], by_label(data, found["latitude"], found["longitude"]))
    lsm = data["land_sea_mask"].sel(
        latitude=found["latitude"], longitude=found["longitude"] % 360, method="nearest"
    )
    assert np.array_equal(found["static"][0], lsm)


@pytest.mark.parametrize(
    "regional",
    [
        lambda d: west(d).sel(longitude=slice(-46, 46), latitude=slice(-30, 62)),
        lambda d: west(d).sel(longitude=slice(-60, 46)).isel(latitude=slice(3, None)),
        lambda d: d.isel(longitude=[*range(28, 32), *range(5)], latitude=slice(13, 3, -1)),
    ],
    ids=["the area", "more than it", "from 0 to 360"],
)
def test_files_of_an_area_are_read_as_a_part_of_the_globe(tmp_path, regional):
    waves(STEPS).to_netcdf(tmp_path / "globe.nc")
    regional(waves(STEPS)).to_netcdf(tmp_path / "area.nc")
    config = asked(area=AreaConfig(**ACROSS))
    for name in ("globe", "area"):
        extract_weather(tmp_path / f"{name}.nc", tmp_path / f"{name}.h5", config, SPLIT)
    assert same(*(content(tmp_path / f"{name}.h5") for name in ("globe", "area")))


@pytest.mark.parametrize(
    ("area", "told"),
    [
        (
            {**ACROSS, "north": 80.0},
            r"latitudes reach from -28 to 61\.6, but weather\.area from -30 to 80",
        ),
        (
            {**ACROSS, "west": -70.0},
            r"do not cover weather\.area from -70 to 46.*between -70 and -45",
        ),
        ({**ACROSS, "east": 80.0}, r"from -46 to 80 in equal steps.*between 45 and 80"),
        (
            {"north": 60.0, "south": 0.0},
            r"longitudes do not go once around .*none between 45 and 315",
        ),
        ({**ACROSS, "south": 30.0}, r"3 x 9 cells; expected 4 x 4 or more"),
    ],
)
def test_an_area_that_files_do_not_cover_is_refused(tmp_path, area, told):
    region = west(waves(STEPS)).sel(longitude=slice(-46, 46), latitude=slice(-30, 62))
    region.to_netcdf(tmp_path / "area.nc")
    with pytest.raises(DataError, match=rf"area\.nc: .*{told}|area\.nc: {told}"):
        extract_weather(
            tmp_path / "area.nc", tmp_path / "w.h5", asked(area=AreaConfig(**area)), SPLIT
        )


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"area": {"north": 10, "south": 20}}, r"south 20 is not below north 10"),
        ({"area": {"west": 10, "east": 10}}, r"west 10 and east 10 are no edges"),
        ({"area": {"west": -180, "east": 190}}, r"differ, by 360 at most"),
        ({"area": {"north": 100}}, r"north"),
        ({"years": [2000, 1999]}, r"years \[2000, 1999\]: expected the first and the last"),
    ],
)
def test_an_area_or_years_without_anything_in_them_are_refused(keys, told):
    with pytest.raises(ConfigError, match=told):
        WeatherConfig.parse(keys, "weather")


@pytest.fixture
def reads(monkeypatch):
    """How often each chunk of states of a Zarr store is read."""
    counts = Counter()
    original = zarr.storage.LocalStore.get

    async def get(store, key, *args, **kwargs):
        if re.search(r"/\d+[./]\d+[./]\d+", key):
            counts[key] += 1
        return await original(store, key, *args, **kwargs)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", get)
    return counts


def in_pieces(path, data):
    sizes = {"time": 4, "level": 1, "latitude": 4, "longitude": 4}
    chunks = {
        name: {"chunks": tuple(sizes[axis] for axis in v.dims)}
        for name, v in data.data_vars.items()
    }
    data.to_zarr(path, encoding=chunks, zarr_format=2)
    return path


def test_chunks_outside_are_not_read(tmp_path, reads):
    source = in_pieces(tmp_path / "w.zarr", waves(STEPS))
    config = asked(area=AreaConfig(**ACROSS), levels=(300.0, 850.0))
    extract_weather(source, tmp_path / "weather.h5", config, SPLIT)
    # Rows 6 to 13 and columns 28 to 31 and 0 to 3.
    cells = {(row, column) for row in (1, 2, 3) for column in (7, 0)}
    expected = {f"2m_temperature/{t}.{i}.{j}" for t in range(4) for i, j in cells}
    for name in ("geopotential", "u_component_of_wind"):
        expected |= {f"{name}/{t}.{k}.{i}.{j}" for t in range(4) for k in (0, 2) for i, j in cells}
    assert reads.keys() == expected
    assert set(reads.values()) == {1}


def test_times_of_other_years_are_not_read(tmp_path, reads):
    hours = np.datetime64("1999-12-30T00", "ns") + np.arange(40) * np.timedelta64(6, "h")
    data = waves(40).assign_coords(time=hours)
    source = in_pieces(tmp_path / "w.zarr", data)
    extract_weather(source, tmp_path / "weather.h5", asked(years=(2000, 2001)), SPLIT)
    assert {int(re.split("[/.]", key)[1]) for key in reads} == set(range(2, 10))
    found = content(tmp_path / "weather.h5")
    assert found["time"][0] == 10957.0, "days from 1970 to 2000"
    assert np.array_equal(
        found["state"][:, 0, ::-1], data["2m_temperature"].values[8:].astype("f4")
    )
    account = json.loads((tmp_path / "samples.json").read_text())
    assert account["states"]["left_out"]["at times of other years"] == 8
    assert account["states"]["read"] == 40
    with pytest.raises(
        DataError, match=r"no times in weather\.years 2005 to 2006; it has 1999-12-30"
    ):
        extract_weather(source, tmp_path / "w.h5", asked(years=(2005, 2006)), SPLIT)


def test_an_account_says_what_is_outside(tmp_path):
    waves(STEPS).to_netcdf(tmp_path / "w.nc")
    config = asked(area=AreaConfig(**ACROSS))
    extract_weather(tmp_path / "w.nc", tmp_path / "weather.h5", config, SPLIT)
    cells = json.loads((tmp_path / "samples.json").read_text())["cells"]
    cut = "in the last rows and columns, cut to multiples of 4"
    assert cells == {
        "read": 512,
        "kept": 64,
        "left_out": {"outside of the area": 512 - 81, cut: 81 - 64},
    }


def test_what_is_not_asked_for_changes_no_digest(tmp_path):
    """Samples of before are those of now, byte by byte."""
    waves(STEPS).to_netcdf(tmp_path / "w.nc")
    extract_weather(tmp_path / "w.nc", tmp_path / "weather.h5", CONFIG, SPLIT)
    with h5py.File(tmp_path / "weather.h5") as file:
        assert json.loads(file.attrs["config"]).keys() == {
            "air", "hours", "levels", "split", "static", "surface",
        }  # fmt: skip


@pytest.fixture
def area_samples(tmp_path):
    """Samples of an area across 0 degrees, of 8 x 12 cells."""
    config = asked(area=AreaConfig(**{**ACROSS, "west": -91.0}))
    waves(40).to_zarr(tmp_path / "w.zarr", zarr_format=2)
    split = SplitConfig(train=0.6, validation=0.2, gap=2)
    extract_weather(tmp_path / "w.zarr", tmp_path / "weather.h5", config, split)
    return tmp_path / "weather.h5"


def test_parts_and_references_have_areas_too(tmp_path, area_samples):
    data, source = waves(40), tmp_path / "steps.zarr"
    chunks = {n: {"chunks": (1, *v.shape[1:])} for n, v in data.items() if "time" in v.dims}
    data.to_zarr(source, encoding=chunks, zarr_format=2)
    area = AreaConfig(**{**ACROSS, "west": -91.0})
    config = WeatherExtraction(**dict(asked(area=area)), store="reference")
    split = SplitConfig(train=0.6, validation=0.2, gap=2)
    paths = [tmp_path / f"part{number}.h5" for number in range(2)]
    for number, path in enumerate(paths):
        extract_part(source, path, config, Share(number, 2))
    gather(paths, source, tmp_path / "gathered.h5", config, split)
    one, other = (
        WeatherDataset(path, WeatherWindowConfig(), cache_bytes=1)
        for path in (area_samples, tmp_path / "gathered.h5")
    )
    assert one.digest == other.digest
    steps = np.arange(40)
    assert torch.equal(one.core_states(0, steps), other.core_states(0, steps))


MODEL = TINY.replaced(embed_dim=8, patch_size=2, latent_levels=2, window=(1, 2, 2))


def test_windows_of_an_area_do_not_join_east_and_west(area_samples, weather_samples):
    for path, periodic in ((area_samples, False), (weather_samples, True)):
        dataset = WeatherDataset(path, WeatherWindowConfig())
        assert goes_round(dataset.longitude) == periodic
        blocks = [one for one in SPEC.build(MODEL, dataset).modules() if isinstance(one, SwinBlock)]
        shifted = [one for one in blocks if one.shift[2]]
        assert shifted
        for one in shifted:
            expected = window_labels(one.size, one.window, one.shift, periodic)
            assert np.array_equal(one.labels_WS.numpy(), expected)


def test_labels_keep_the_edges_of_an_area_apart():
    label = window_labels((1, 4, 8), (1, 4, 4), (0, 0, 2), periodic=False)
    # The last window holds columns 6 and 7, and 0 and 1, which came there by wrapping.
    assert len({*label[0]}) == 1
    assert [len({*label[1].reshape(4, 4)[:, k]}) for k in range(4)] == [1] * 4
    assert label[1].reshape(4, 4)[0].tolist()[:2] != label[1].reshape(4, 4)[0].tolist()[2:]
    assert window_labels((1, 4, 8), (1, 4, 4), (0, 0, 2)) is None


def test_a_place_has_one_encoding():
    """Weights of the globe know where the cells of an area are."""
    latitude, longitude = np.linspace(88, -88, 16), np.arange(32) * 11.25
    position, scale = (x.reshape(4, 8, -1) for x in place_encodings(latitude, longitude, 4, 32))
    area = place_encodings(latitude[4:12], np.arange(-8, 8) * 11.25, 4, 32)
    found = [x.reshape(2, 4, -1) for x in area]
    columns = [6, 7, 0, 1]
    assert torch.equal(found[0], position[1:3][:, columns])
    assert torch.allclose(found[1], scale[1:3][:, columns], atol=1e-3)


@pytest.mark.slow
def test_a_model_of_an_area_is_scored_and_drawn(area_samples, tmp_path):
    dataset = WeatherDataset(area_samples, WeatherWindowConfig())
    model = TrainedModel(SPEC, SPEC.build(MODEL, dataset).eval(), dataset)
    scores, draw = EVALUATION.run(model, {})
    assert scores["test"]["channels"]["z_500"]["rmse"]["model"][0] > 0
    draw(tmp_path / "figures")
    drawn = {path.name for path in (tmp_path / "figures/z").glob("*.png")}
    assert drawn == {"by_lead.png", "maps.png", "spectra.png"}


@pytest.mark.parametrize("area", [None, ACROSS, {"north": -10.0}])
def test_planning_knows_the_size_of_an_area(tmp_path, area):
    latitude = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(32)[0]))
    globe = waves(STEPS, rows=32, columns=64, levels=(300.0, 500.0, 700.0, 850.0))
    globe.assign_coords(latitude=latitude).to_netcdf(tmp_path / "w.nc")
    keys = {} if area is None else {"area": area}
    sizes = [
        outline({"source": source, "weather": keys}, {}, None, None)
        for source in ("demo", str(tmp_path / "w.nc"))
    ]
    assert sizes[0].shape == sizes[1].shape
    assert sizes[0].pressure_levels == sizes[1].pressure_levels == 4
    extract_weather(
        tmp_path / "w.nc", tmp_path / "w.h5", asked(**keys and {"area": AreaConfig(**area)}), SPLIT
    )
    assert WeatherDataset(tmp_path / "w.h5", WeatherWindowConfig()).shape == sizes[0].shape
