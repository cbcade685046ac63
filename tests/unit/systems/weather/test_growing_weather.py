"""Raw files of weather that are added, changed or removed: their parts are made."""

import plans
import pytest
from growing import (
    SPLIT,
    Case,
    assert_only_new_parts_are_made,
    begun,
    kept,
)
from travelling_waves import waves

from millrace.systems.weather import extract
from millrace.systems.weather.settings import WeatherConfig


class Weather(Case):
    """Files of later times are added; blocks of states end in none of them."""

    kind = "weather"
    settings = WeatherConfig(surface=("2t",), air=("z",), static=("lsm",))

    def config(self):
        return plans.weather()

    def dataset(self):
        keys = {"surface": ["2t"], "air": ["z"], "static": ["lsm"]}
        return {"format": "weather", "split": self.split, "weather": keys}

    def begin(self):
        self.states = waves(60)
        self.raw.mkdir()
        for number in range(4):
            self.write(number)

    def write(self, number, **changes):
        times = slice(10 * number, 10 * (number + 1))
        states = self.states.isel(time=times).assign_attrs(**changes)
        states.to_netcdf(self.raw / f"states_{number}.nc")

    def grow(self):
        for number in (4, 5):
            self.write(number)

    def change(self):
        self.states["2m_temperature"][2] += 1
        self.write(0, history="mended" * 1000)

    def remove(self):
        (self.raw / "states_5.nc").unlink()

    def passes(self):
        def make(path, share):
            extract.extract_part(self.raw, path, self.settings, share)

        return [("weather", make)]

    def gather(self, files):
        extract.gather(files, self.raw, self.data / "weather.h5", self.settings, self.divided)

    def whole(self, folder):
        extract.extract_weather(self.raw, folder / "weather.h5", self.settings, self.divided)


class WeatherStore(Weather):
    """A Zarr store that grows along its axis of time."""

    def begin(self):
        self.states = waves(60)
        names = ("2m_temperature", "geopotential")
        chunks = {name: {"chunks": (1, *self.states[name].shape[1:])} for name in names}
        early = self.states.isel(time=slice(0, 40))
        early.to_zarr(self.raw, encoding=chunks, zarr_format=2)

    def grow(self):
        static = [name for name, one in self.states.items() if "time" not in one.dims]
        late = self.states.isel(time=slice(40, 60)).drop_vars(static)
        late.to_zarr(self.raw, append_dim="time", zarr_format=2)

    def change(self):
        path = self.raw / "2m_temperature/2.0.0"
        path.write_bytes((self.raw / "2m_temperature/7.0.0").read_bytes())
        self.states["2m_temperature"][2] = self.states["2m_temperature"][7]

    remove = None


class WeatherFile(Weather):
    """A NetCDF file that grows along its axis of time."""

    def begin(self):
        self.states = waves(60)
        self.raw.mkdir()
        self.write_until(40)

    def write_until(self, end):
        chunks = {
            name: {"chunksizes": (1, *self.states[name].shape[1:]), "zlib": True}
            for name in ("2m_temperature", "geopotential")
        }
        states = self.states.isel(time=slice(0, end))
        states.to_netcdf(self.raw / "states.nc", encoding=chunks, unlimited_dims=["time"])

    def grow(self):
        self.write_until(60)

    def change(self):
        self.states["2m_temperature"][2] = 280.0
        self.write_until(60)

    remove = None


@pytest.mark.parametrize("kind", [Weather, WeatherStore, WeatherFile])
def test_only_parts_of_new_changed_and_removed_files_are_made(kind, tmp_path):
    assert_only_new_parts_are_made(begun(kind, tmp_path))


def test_earlier_times_are_as_if_read_at_once(tmp_path):
    """Sums are relative to what comes first, which parts that are there did not know."""
    case = begun(Weather, tmp_path)
    before = case.state()
    early = case.states.isel(time=slice(0, 10))
    early = early.assign_coords(time=early.time - early.time.size * (early.time[1] - early.time[0]))
    early.to_netcdf(case.raw / "earlier.nc")
    assert case.run() == [3]
    assert kept(case, before, "weather") == {0, 1, 2}
    case.assert_as_a_whole()


def test_parts_do_not_depend_on_the_split(tmp_path):
    case = begun(Weather, tmp_path)
    before = case.state()
    for split in (SPLIT | {"train": 0.5}, SPLIT):
        case.split = split
        assert case.run() == []
        assert kept(case, before, "weather") == {0, 1, 2}
        case.assert_as_a_whole()


def test_a_part_whose_raw_files_are_gone_goes(tmp_path):
    case = begun(Weather, tmp_path)
    case.grow()
    assert case.run() == [3]
    for number in (4, 5):
        (case.raw / f"states_{number}.nc").unlink()
    before = case.state()
    assert case.run() == []
    assert kept(case, before, "weather") == {0, 1, 2}
    assert not (case.data / "parts/weather_3.h5").exists()
    case.assert_as_a_whole()


def test_what_was_not_made_is_divided_again_with_what_is_new(tmp_path):
    """As after a run that ended before all parts were made, or where one was deleted."""
    case = begun(Weather, tmp_path)
    (case.data / "parts/weather_1.h5").unlink()
    before = case.state()
    case.grow()
    assert min(case.run()) > 2
    assert kept(case, before, "weather") == {0, 2}
    case.assert_as_a_whole()


def test_a_file_that_no_part_is_of_makes_no_part_again(tmp_path):
    case = begun(Weather, tmp_path)
    before = case.state()
    (case.raw / "README").write_text("ours")
    case.run()
    case.assert_as_a_whole()
    again = case.plan()
    (case.raw / "README").write_text("ours, in more words")
    assert [*again.data.part_files("set", "weather")] == [
        *case.plan().data.part_files("set", "weather")
    ]
    assert kept(case, before, "weather") == {0, 1, 2}
