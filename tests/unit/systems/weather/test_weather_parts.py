"""Weather extracted in parts: the same file, bit by bit, whatever their number."""

import h5py
import numpy as np
import pytest
from travelling_waves import waves

from millrace.data.hdf5 import open_checked
from millrace.data.parts import Record
from millrace.data.shares import Share
from millrace.data.split import SplitConfig
from millrace.errors import DataError
from millrace.systems.weather.dataset import WeatherDataset
from millrace.systems.weather.extract import extract_part, extract_weather, gather
from millrace.systems.weather.settings import WeatherConfig, WeatherWindowConfig
from millrace.systems.weather.units import SCHEMA

CONFIG = WeatherConfig(surface=("2t", "msl"), air=("z", "u"), static=("lsm",))
# The training period ends within a block of states whose sum is kept.
SPLIT = SplitConfig(train=0.6, validation=0.2, gap=2)
STEPS = 70


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    waves(STEPS).to_netcdf(folder / "weather.nc")
    return folder


def in_parts(raw, folder, parts, config=CONFIG):
    (folder / "parts").mkdir(parents=True)
    files = [folder / f"parts/weather_{number}.h5" for number in range(parts)]
    for number in reversed(range(parts)):
        extract_part(raw, files[number], config, Share(number, parts))
    gather(files, raw, folder / "weather.h5", config, SPLIT)
    return files


def content(path):
    """Bytes of all datasets, and the attributes."""
    with open_checked(path, SCHEMA) as file:
        found = {}
        file.visititems(
            lambda name, one: (
                found.update({name: one[()].tobytes()}) if isinstance(one, h5py.Dataset) else None
            )
        )
        return found | {
            name: str(value) for name, value in file.attrs.items() if name[:4] != "part"
        }


@pytest.mark.parametrize("parts", [1, 3, 50])
def test_parts_do_not_show(raw, tmp_path, parts):
    extract_weather(raw, tmp_path / "whole/weather.h5", CONFIG, SPLIT)
    in_parts(raw, tmp_path / "parted", parts)
    whole = content(tmp_path / "whole/weather.h5")
    assert {"state", "climatology", "stats/std", "stats/increment_std", "digest"} <= whole.keys()
    assert content(tmp_path / "parted/weather.h5") == whole
    accounts = [tmp_path / f"{name}/samples.json" for name in ("whole", "parted")]
    assert len({path.read_bytes() for path in accounts}) == 1


def test_statistics_are_those_of_all_values_at_once(raw, tmp_path):
    in_parts(raw, tmp_path, 3)
    with h5py.File(tmp_path / "weather.h5") as file:
        end = file["split"][0, 1]
        states = file["state"][:end].astype(np.float64)
        stats = {name: values[()] for name, values in file["stats"].items()}
        climatology = file["climatology"][()]
    assert end % 16
    np.testing.assert_allclose(stats["mean"], states.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(stats["std"], states.std(axis=(0, 2, 3)), rtol=1e-9)
    changes = np.diff(states, axis=0).std(axis=(0, 2, 3))
    np.testing.assert_allclose(stats["increment_std"], changes, rtol=1e-9)
    np.testing.assert_array_equal(climatology, states.mean(axis=0).astype(np.float32))


def test_batches_come_from_the_parts_wherever_the_folder_is(raw, tmp_path):
    extract_weather(raw, tmp_path / "whole.h5", CONFIG, SPLIT)
    in_parts(raw, tmp_path / "made", 3)
    (tmp_path / "made").rename(tmp_path / "moved")
    config, index = WeatherWindowConfig(), np.array([0, 14, 15, 30])
    whole, parted = (
        WeatherDataset(path, config, cache_bytes=0).batch("train", 0, index)
        for path in (tmp_path / "whole.h5", tmp_path / "moved/weather.h5")
    )
    assert np.array_equal(whole.past_BTCIJ, parted.past_BTCIJ)
    assert np.array_equal(whole.y_BKCIJ, parted.y_BKCIJ)


def _header_of(path, name):
    """Where the description of a dataset is."""
    with h5py.File(path) as file:
        return h5py.h5o.get_info(file[name].id).addr


@pytest.mark.parametrize("damage", ["missing", "another", "superblock", "header"])
def test_a_part_that_is_not_there_as_it_was_is_no_missing_value(raw, tmp_path, damage):
    part = in_parts(raw, tmp_path, 3)[1]
    content = bytearray(part.read_bytes())
    if damage == "missing":
        part.unlink()
    elif damage == "another":
        part.write_bytes(content[:-1])
    else:
        # HDF5 reads no values, without a word, where it cannot open what a dataset refers to.
        content[9 if damage == "superblock" else _header_of(part, "state") + 8] ^= 0xFF
        part.write_bytes(content)
    with (
        pytest.raises(DataError, match=r"parts/weather_1\.h5: .* make the samples again"),
        open_checked(tmp_path / "weather.h5", SCHEMA),
    ):
        pass


def test_a_damaged_part_is_noticed_when_it_is_read(raw, tmp_path):
    part = in_parts(raw, tmp_path, 3)[1]
    with h5py.File(part) as file:
        at = file["state"].id.get_chunk_info(0).byte_offset
    content = bytearray(part.read_bytes())
    content[at + 100] ^= 1
    part.write_bytes(content)
    with (
        pytest.raises(DataError, match="truncated or damaged"),
        open_checked(tmp_path / "weather.h5", SCHEMA) as file,
    ):
        file["state"][()]


def test_parts_of_other_settings_or_times_are_refused(raw, tmp_path):
    files, output = in_parts(raw, tmp_path, 3), tmp_path / "other.h5"
    with pytest.raises(DataError, match=r"other\.h5: its parts do not hold what the raw files do"):
        gather(files[:2], raw, output, CONFIG, SPLIT)
    with pytest.raises(DataError, match=r"weather_1\.h5: holds .*, as .*weather_1\.h5 does"):
        gather([*files, files[1]], raw, output, CONFIG, SPLIT)
    extract_part(raw, files[2], CONFIG.replaced(static=()), Share(2, 3))
    with pytest.raises(
        DataError, match=r"weather_2\.h5: of other raw files or settings \(config\)"
    ):
        gather(files, raw, output, CONFIG, SPLIT)


def test_a_no_data_value_is_found_in_parts_as_in_the_whole(tmp_path):
    data = waves(STEPS)
    field = data["2m_temperature"].values
    for step in (3, 25, 60):  # once in each part
        field[step, 4, 5] = -999.0
    (tmp_path / "raw").mkdir()
    data.to_netcdf(tmp_path / "raw/weather.nc")
    told = []
    for make in (
        lambda: extract_weather(tmp_path / "raw", tmp_path / "weather.h5", CONFIG, SPLIT),
        lambda: in_parts(tmp_path / "raw", tmp_path / "parted", 3),
    ):
        with pytest.raises(DataError, match=r"-999 at .* stands there 3 times") as error:
            make()
        told.append(str(error.value))
    assert told[0] == told[1]
    assert not (tmp_path / "parted/weather.h5").exists()


@pytest.mark.parametrize(("length", "first"), [(32, 64), (20, 48)])
def test_chunks_of_the_source_are_not_divided_where_parts_are_long(tmp_path, length, first):
    """Where they are not, a part begins with a block of states, 16."""
    data = waves(STEPS)
    chunks = {name: {"chunks": (length, *one.shape[1:])} for name, one in data.items()}
    chunks["land_sea_mask"] = {}
    data.to_zarr(tmp_path / "store.zarr", encoding=chunks, zarr_format=2)
    extract_part(tmp_path / "store.zarr", tmp_path / "1.h5", CONFIG, Share(1, 2))
    begin = int(data.time.values[first].astype("datetime64[s]").astype(int))
    assert Record.read(tmp_path / "1.h5").units[0] == begin
