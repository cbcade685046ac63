"""States that stay where they are: the samples of a copy, from a store here or elsewhere, or a sentence."""

import http.server
import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context

import h5py
import numpy as np
import pytest
import torch
from travelling_waves import waves

from millrace.data.shares import Share
from millrace.data.split import SplitConfig
from millrace.errors import DataError
from millrace.input_files import ADDRESS_SUFFIX, Address
from millrace.systems.weather import zarr_stores
from millrace.systems.weather.dataset import WeatherDataset
from millrace.systems.weather.extract import extract_part, extract_weather, gather
from millrace.systems.weather.settings import WeatherExtraction, WeatherWindowConfig

STEPS = 16
COPY = WeatherExtraction(surface=("2t", "msl"), air=("z", "u"), static=("lsm",))
REFERENCE = COPY.replaced(store="reference")
SPLIT = SplitConfig(train=0.5, validation=0.25, gap=2)
WINDOW = WeatherWindowConfig()


def write(path, data, chunks=None, zarr_format=2, **encoding):
    """Write a Zarr store; ``chunks`` are those that differ from whole fields of one time."""
    for name, one in data.data_vars.items():
        sizes = {axis: 1 if axis == "time" else one.sizes[axis] for axis in one.dims}
        sizes |= {axis: size for axis, size in (chunks or {}).items() if axis in one.dims}
        encoding.setdefault(name, {})["chunks"] = tuple(sizes.values())
    data.to_zarr(path, encoding=encoding, zarr_format=zarr_format, consolidated=zarr_format == 2)
    return path


PACKED = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -32768}


def celsius(data):
    degrees = (data["2m_temperature"] - 273.15).assign_attrs(units="degC")
    return data.assign({"2m_temperature": degrees})


def samples(path, **options):
    dataset = WeatherDataset(path, WINDOW, **options)
    batch = dataset.batch("train", 0, np.arange(2))
    return batch.past_BTCIJ, batch.y_BKCIJ, dataset.core_states(0, np.array([[0, 7], [9, 0]]))


def same_samples(one, other, **options):
    pairs = zip(samples(one, **options), samples(other, **options), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("changed", "options"),
    [
        (lambda d: d, {}),
        (lambda d: d, {"zarr_format": 3}),
        (lambda d: d, {"chunks": {"level": 1}}),
        (lambda d: d.isel(latitude=slice(None, None, -1), level=[2, 0, 1]), {}),
        (lambda d: d.roll(longitude=7, roll_coords=True).transpose("time", "longitude", ...), {}),
        (celsius, {}),
        (lambda d: d, {"2m_temperature": PACKED}),
        (lambda d: d.isel(time=np.random.default_rng(0).permutation(STEPS)), {}),
    ],
    ids=["v2", "v3", "a level a chunk", "flipped", "rolled", "degC", "packed", "shuffled"],
)
@pytest.mark.parametrize("cache_bytes", [1 << 30, 1])
def test_samples_are_those_of_a_copy_bit_by_bit(tmp_path, changed, options, cache_bytes):
    source = write(tmp_path / "w.zarr", changed(waves(STEPS).astype("float32")), **options)
    copy, reference = tmp_path / "copy.h5", tmp_path / "reference.h5"
    extract_weather(source, copy, COPY, SPLIT)
    extract_weather(source, reference, REFERENCE, SPLIT)
    assert same_samples(copy, reference, cache_bytes=cache_bytes)
    with h5py.File(copy) as one, h5py.File(reference) as other:
        assert one.attrs["digest"] == other.attrs["digest"]
        assert {*one} - {*other} == {"state"}
        for name in ("climatology", "static", "split", "stats/mean", "stats/increment_std"):
            assert np.array_equal(one[name], other[name])


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_refer_as_the_whole_does(tmp_path, parts):
    source = write(tmp_path / "w.zarr", waves(48, rows=8, columns=16))
    whole, gathered = tmp_path / "whole.h5", tmp_path / "gathered.h5"
    extract_weather(source, whole, REFERENCE, SPLIT)
    paths = [tmp_path / f"part{number}.h5" for number in range(parts)]
    for number, path in enumerate(paths):
        extract_part(source, path, REFERENCE, Share(number, parts))
    gather(paths, source, gathered, REFERENCE, SPLIT)
    with h5py.File(whole) as one, h5py.File(gathered) as other:
        assert {*one} == {*other}
        assert {**one.attrs}.keys() == {**other.attrs}.keys()
        for name in ("digest", "reference"):
            assert one.attrs[name] == other.attrs[name]
        assert np.array_equal(one["check"], other["check"])
    assert same_samples(whole, gathered, cache_bytes=1)


@pytest.mark.parametrize(
    ("chunks", "told"),
    [
        ({"time": 4}, r"has chunks of 4 time x 16 latitude x 32 longitude, of 16 x 32 cells"),
        ({"latitude": 8}, r"has chunks of 1 time x 8 latitude x 32 longitude"),
        (
            {"longitude": 5},
            r"has chunks of 1 time x 16 latitude x 5 longitude.*whole fields of one time",
        ),
    ],
)
def test_other_chunks_are_refused(tmp_path, chunks, told):
    source = write(tmp_path / "w.zarr", waves(STEPS), chunks)
    with pytest.raises(DataError, match=rf"2m_temperature {told}.*take `store: copy`") as error:
        extract_weather(source, tmp_path / "weather.h5", REFERENCE, SPLIT)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "weather.h5").exists()


def test_netcdf_is_refused(tmp_path):
    waves(STEPS).to_netcdf(tmp_path / "w.nc")
    with pytest.raises(DataError, match=r"w\.nc: no Zarr store.*take `store: copy`"):
        extract_weather(tmp_path / "w.nc", tmp_path / "weather.h5", REFERENCE, SPLIT)


@pytest.fixture
def referring(tmp_path):
    """A store and the samples that refer to it."""
    source = write(tmp_path / "w.zarr", waves(STEPS))
    extract_weather(source, tmp_path / "weather.h5", REFERENCE, SPLIT)
    return source, tmp_path / "weather.h5"


def other_values(source):
    data = waves(STEPS).isel(time=[9])
    values = data["geopotential"].values.copy()
    values[0, 0, 0, 0] += 1
    changed = data.assign(geopotential=data["geopotential"].copy(data=values))
    changed = changed.drop_vars([n for n, v in changed.variables.items() if "time" not in v.dims])
    changed.to_zarr(source, region={"time": slice(9, 10)})


def longer(source):
    data = waves(STEPS + 1).isel(time=[STEPS])
    data.drop_vars("land_sea_mask").to_zarr(source, append_dim="time")


def without_a_chunk(source):
    (source / "geopotential/9.0.0.0").unlink()


def elsewhere(source):
    source.rename(source.with_name("moved.zarr"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            other_values,
            r"w\.zarr: the state at 2001-03-03T06:00 changed since the samples were made",
        ),
        (longer, r"w\.zarr: its metadata changed since"),
        (without_a_chunk, r"w\.zarr/geopotential/9\.0\.0\.0: this chunk is missing"),
        (elsewhere, r"w\.zarr: not there, but samples of `store: reference` are read from it"),
    ],
)
def test_a_source_that_changed_is_refused(referring, change, told):
    source, path = referring
    change(source)
    with pytest.raises(DataError, match=told):
        WeatherDataset(path, WINDOW, cache_bytes=1).core_states(0, np.arange(STEPS))


def test_a_missing_chunk_is_no_field_of_fill_values(tmp_path):
    source = write(tmp_path / "w.zarr", waves(STEPS).fillna(0.0), geopotential={"_FillValue": None})
    (source / "geopotential/9.0.0.0").unlink()
    with pytest.raises(DataError, match=r"geopotential/9\.0\.0\.0: this chunk is missing"):
        extract_weather(source, tmp_path / "weather.h5", REFERENCE, SPLIT)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files; some fail as often as the server says."""

    def do_GET(self):
        self.server.asked[self.path] += 1
        if self.server.failing.get(self.path, 0) >= self.server.asked[self.path]:
            self.send_error(500)
        else:
            super().do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    """A server of the files below a folder, which counts what it is asked for."""
    (tmp_path / "served").mkdir()
    handler = partial(Handler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as one:
        one.asked, one.failing, one.folder = Counter(), {}, tmp_path / "served"
        one.address = Address(f"http://127.0.0.1:{one.server_port}/w.zarr")
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield one
        one.shutdown()


@pytest.fixture
def served(server, tmp_path, monkeypatch):
    """Samples that refer to a store of the server; nothing is kept here."""
    monkeypatch.delenv("MILLRACE_CACHE", raising=False)
    monkeypatch.setattr(zarr_stores, "RETRY_AFTER", [0.01, 0.01])
    source = write(server.folder / "w.zarr", waves(STEPS))
    extract_weather(source, tmp_path / "copy.h5", COPY, SPLIT)
    extract_weather(server.address, tmp_path / "weather.h5", REFERENCE, SPLIT)
    server.asked.clear()
    return tmp_path / "copy.h5", tmp_path / "weather.h5"


CHUNK = "/w.zarr/geopotential/9.0.0.0"


def test_samples_come_from_an_address(server, served):
    copy, path = served
    assert same_samples(copy, path, cache_bytes=1)
    with h5py.File(copy) as one, h5py.File(path) as other:
        assert one.attrs["digest"] == other.attrs["digest"]
    # What rules have as input is a file.
    pointer = path.with_name(f"w{ADDRESS_SUFFIX}")
    pointer.write_text(f"{server.address}\n")
    extract_weather(pointer, path.with_name("other.h5"), COPY, SPLIT)
    assert same_samples(copy, path.with_name("other.h5"))


def test_only_the_chunks_of_a_state_are_asked_for(server, served):
    dataset = WeatherDataset(served[1], WINDOW, cache_bytes=1)
    dataset.core_states(0, np.array([0]))
    server.asked.clear()
    dataset.core_states(0, np.array([9]))
    names = ["2m_temperature/9.0.0", "mean_sea_level_pressure/9.0.0"]
    names += ["geopotential/9.0.0.0", "u_component_of_wind/9.0.0.0"]
    assert server.asked == {f"/w.zarr/{name}": 1 for name in names}


def test_what_fails_is_asked_for_again(server, served):
    server.failing[CHUNK] = 2
    copy, path = served
    assert same_samples(copy, path)
    assert server.asked[CHUNK] == 3


@pytest.mark.parametrize("extracting", [True, False])
def test_what_goes_on_failing_is_named(server, served, extracting):
    server.failing[CHUNK] = 99
    dataset = WeatherDataset(served[1], WINDOW, cache_bytes=1)
    read = (
        partial(extract_weather, server.address, served[0], REFERENCE, SPLIT)
        if extracting
        else partial(dataset.core_states, 0, np.array([9]))
    )
    with pytest.raises(DataError, match=r"w\.zarr/geopotential/9\.0\.0\.0: cannot be read \(500"):
        read()
    assert server.asked[CHUNK] == 3


@pytest.mark.slow
@pytest.mark.parametrize("config", [COPY, REFERENCE], ids=["copy", "reference"])
def test_what_an_address_lacks_is_no_field_of_fill_values(server, served, config):
    (server.folder / CHUNK[1:]).unlink()
    with pytest.raises(DataError, match=r"geopotential/9\.0\.0\.0: this chunk is missing"):
        extract_weather(server.address, served[0], config, SPLIT)
    with pytest.raises(DataError, match=r"geopotential/9\.0\.0\.0: this chunk is missing"):
        WeatherDataset(served[1], WINDOW, cache_bytes=1).core_states(0, np.array([9]))


def test_chunks_are_kept_where_a_folder_is_named(server, served, tmp_path, monkeypatch):
    monkeypatch.setenv("MILLRACE_CACHE", str(tmp_path / "kept"))
    copy, path = served
    assert same_samples(copy, path, cache_bytes=1)
    assert server.asked[CHUNK] == 1
    server.asked.clear()
    assert same_samples(copy, path, cache_bytes=1)
    assert server.asked[CHUNK] == 0


def test_a_full_disk_keeps_nothing(server, served, tmp_path, monkeypatch):
    monkeypatch.setenv("MILLRACE_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(zarr_stores, "KEEP_FREE", 1.0)
    assert same_samples(*served, cache_bytes=1)
    assert not [one for one in (tmp_path / "kept").rglob("*") if one.is_file()]


def states(path, steps):
    dataset = WeatherDataset(path, WINDOW, cache_bytes=1)
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda step: dataset.core_states(0, np.array([step])).numpy(), steps)
    return np.concatenate(list(found), axis=1)


@pytest.mark.slow
def test_ranks_and_their_threads_read_at_once(served, tmp_path, monkeypatch):
    monkeypatch.setenv("MILLRACE_CACHE", str(tmp_path / "kept"))
    copy, path = served
    expected = WeatherDataset(copy, WINDOW).core_states(0, np.arange(STEPS)).numpy()
    with ProcessPoolExecutor(2, get_context("spawn")) as ranks:
        for found in ranks.map(states, [path, path], [range(STEPS)] * 2):
            assert np.array_equal(found, expected)


@pytest.mark.slow
def test_ranks_train_on_an_address_as_on_a_copy(server, served, experiments, train_on_ranks):
    """Losses, norms of gradients and the validation of two ranks, bit by bit."""
    definition, _ = experiments["aurora"]
    on_a_copy, here = (train_on_ranks(2, definition, {"weather": str(one)}, 5) for one in served)
    assert here == on_a_copy
    assert server.asked[CHUNK] > 0


def test_nothing_at_an_address_is_a_sentence(server, tmp_path):
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:\d+/w\.zarr: not readable as Zarr"):
        extract_weather(server.address, tmp_path / "weather.h5", REFERENCE, SPLIT)


def test_a_protocol_without_its_package_names_the_extra(tmp_path):
    with pytest.raises(DataError, match=r"gs://bucket/w\.zarr: install .* the extra remote"):
        extract_weather(Address("gs://bucket/w.zarr"), tmp_path / "weather.h5", COPY, SPLIT)
