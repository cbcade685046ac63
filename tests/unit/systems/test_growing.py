"""Raw files that are added, changed or removed: parts of theirs are made, and all is as if read at once."""

import copy
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import netCDF4
import plans
import pytest
from motion_scenes import record, waymo
from travelling_waves import waves

from millrace.data.division import read_share
from millrace.data.split import SplitConfig
from millrace.plan import Plan
from millrace.systems.downscaling import blocks
from millrace.systems.downscaling.settings import BlockConfig
from millrace.systems.downscaling.simulator.climate import ClimateConfig, write_climate
from millrace.systems.groundwater import missing_nodes, series_parts
from millrace.systems.groundwater.series import RawSeries, preprocess
from millrace.systems.groundwater.settings import AquiferConfig, MaskedMissing
from millrace.systems.groundwater.simulator.aquifer import write_aquifer
from millrace.systems.groundwater.units import UNITS
from millrace.systems.traffic import scenarios
from millrace.systems.traffic.formats.waymo import message
from millrace.systems.traffic.settings import TokenConfig
from millrace.systems.weather import extract
from millrace.systems.weather.settings import WeatherConfig

SPLIT = {"train": 0.6, "validation": 0.2, "gap": 2}


def content(path):
    """Bytes of all datasets, and the attributes."""
    with h5py.File(path) as file:
        found = {k: str(v) for k, v in file.attrs.items() if k[:4] != "part"}

        def note(name, one):
            if isinstance(one, h5py.Dataset):
                values = one[()]
                found[name] = values.tolist() if values.dtype == object else values.tobytes()

        file.visititems(note)
    return found


@dataclass
class Case:
    """A system with raw files, of which some are added later."""

    folder: Path
    kind: str
    made: dict = field(default_factory=dict)
    """What the workflow keeps of each file of a part, to compare: its `raw`."""
    split: dict = field(default_factory=lambda: SPLIT)

    @property
    def raw(self):
        return self.folder / "raw"

    @property
    def divided(self):
        return SplitConfig(**self.split)

    @property
    def data(self):
        return self.folder / "results/data/set"

    def plan(self, record=True):
        config = self.config()
        config["datasets"] = {"set": {"source": str(self.raw), "parts": 3, **self.dataset()}}
        [*_, (name, block)] = config["experiments"].items()
        config["experiments"] = {name: block | {"dataset": "set"}}
        config["run"]["experiments"] = [name]
        plan = Plan(copy.deepcopy(config), root=self.folder)
        plan.count_parts(record=record)
        return plan

    def run(self):
        """Make what is planned, as the workflow does; numbers of the parts that were made."""
        plan = self.plan()
        again = [self.pass_over(plan, stem, make) for stem, make in self.passes()]
        self.gather(self.files(plan, self.kind))
        return again[0]

    def pass_over(self, plan, stem, make):
        made = []
        for path in self.files(plan, stem):
            number = int(path.stem.rpartition("_")[2])
            raw = plan.part_raw("set", self.kind, number)
            if not path.exists() or self.made.get(path) != raw:
                path.unlink(missing_ok=True)
                make(path, read_share(*plan.share("set", self.kind, number)))
                self.made[path] = raw
                made.append(number)
        return made

    def files(self, plan, stem):
        (self.data / "parts").mkdir(parents=True, exist_ok=True)
        return [self.folder / p for p in plan.part_files("set", self.kind, stem)]

    def state(self):
        """Identity of each part."""
        return {
            p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in self.data.glob("parts/*.h5")
        }

    def assert_as_a_whole(self):
        whole = self.folder / "whole"
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir()
        self.whole(whole)
        for name in sorted(path.name for path in whole.glob("*.h5")):
            assert content(self.data / name) == content(whole / name), name
        accounts = [folder / "samples.json" for folder in (whole, self.data)]
        assert len({path.read_bytes() for path in accounts}) == 1


class Groundwater(Case):
    """Files of numbers that were left out, and of later times, are added."""

    first, later = ({*range(16)} - {3, 14}, (3, 16, 17))
    variables, missing = ("head", "mass_concentration"), None

    def config(self):
        made = plans.config()
        made["experiments"]["head"]["data"] |= {"input_steps": 1, "output_steps": 1}
        return made

    def dataset(self):
        return {"variables": [*self.variables], "forcings": ["head_bc"], "split": self.split}

    def opened(self, split):
        return RawSeries(
            self.raw,
            variables=self.variables,
            forcings=("head_bc",),
            split=split,
            missing=self.missing,
        )

    def begin(self):
        settings = AquiferConfig(slices=3, nodes_per_slice=40, steps=18, spin_up=1.0)
        write_aquifer(settings, self.folder / "pool")
        self.add(self.first)

    def add(self, numbers):
        for folder in ("all", "forcings_corrected_all"):
            (self.raw / folder).mkdir(parents=True, exist_ok=True)
            for n in numbers:
                shutil.copy(self.folder / f"pool/{folder}/{n:04d}.csv", self.raw / folder)

    def grow(self):
        self.add(self.later)

    def change(self):
        set_head(self.raw / "all/0001.csv", 2, "0.51234567890123456")

    def remove(self):
        for folder in ("all", "forcings_corrected_all"):
            (self.raw / folder / "0015.csv").unlink()

    def passes(self):
        def make(path, share):
            series_parts.preprocess_part(self.opened(None), path, share)

        return [("series", make)]

    def gather(self, files):
        series_parts.gather_series(self.opened(self.divided), files, self.data / "series.h5")

    def whole(self, folder):
        preprocess(
            self.raw,
            folder / "series.h5",
            variables=self.variables,
            forcings=("head_bc",),
            split=self.divided,
            missing=self.missing,
        )


def set_head(path, node, value):
    header, *lines = path.read_text().splitlines()
    cells = lines[node].split(",")
    cells[header.split(",").index("head")] = value
    lines[node] = ",".join(cells)
    path.write_text("\n".join([header, *lines]) + "\n")


class Masked(Groundwater):
    """The same in two passes; what is added has values wherever what was there had some."""

    missing = MaskedMissing(value=-999, then="mask")

    def dataset(self):
        return {**super().dataset(), "missing": {"value": -999, "then": "mask"}}

    def begin(self):
        super().begin()
        set_head(self.raw / "all/0006.csv", 3, "-999")

    @property
    def keys(self):
        return {"variables": self.variables, "units": UNITS, "value": -999.0}

    def passes(self):
        def find(path, share):
            missing_nodes.find_missing(self.raw, path, share=share, **self.keys)

        return [("missing", find)]

    def gather(self, files):
        plan, missing = self.plan(record=False), self.data / "missing.h5"
        missing_nodes.gather_missing(self.files(plan, "missing"), self.raw, missing, **self.keys)
        for path in files:  # all are planned, as the workflow cannot know that it is the same
            path.unlink(missing_ok=True)
            number = int(path.stem.rpartition("_")[2])
            share = read_share(*plan.share("set", "series", number))
            series_parts.preprocess_part(self.opened(None), path, share, missing)
        series = self.data / "series.h5"
        series_parts.gather_series(self.opened(self.divided), files, series, missing)


class Icon(Case):
    """Files of later times are added; groups of times whose sums are kept end in none of them."""

    settings = BlockConfig(levels=2)

    def config(self):
        return plans.icon()

    def dataset(self):
        return {
            "format": "icon",
            "variables": ["tas"],
            "split": self.split,
            "blocks": {"levels": 2},
        }

    def begin(self):
        write_climate(ClimateConfig(level=2, steps=63, steps_per_file=9), self.folder / "pool")
        shutil.copytree(self.folder / "pool", self.raw)
        for number in (5, 6):
            (self.raw / f"output/tas_{number:04d}.nc").unlink()

    def grow(self):
        for number in (5, 6):
            shutil.copy(self.folder / f"pool/output/tas_{number:04d}.nc", self.raw / "output")

    def change(self):
        with netCDF4.Dataset(self.raw / "output/tas_0001.nc", "r+") as file:
            file["tas"][3] += 1
            file.comment = "mended"

    def remove(self):
        (self.raw / "output/tas_0006.nc").unlink()

    def passes(self):
        def make(path, share):
            blocks.extract_part(self.raw, path, self.settings, share)

        return [("blocks", make)]

    def gather(self, files):
        blocks.gather(files, self.raw, self.data / "blocks.h5", self.settings, self.divided)

    def whole(self, folder):
        blocks.extract_blocks(self.raw, folder / "blocks.h5", self.settings, self.divided)


class Weather(Case):
    """Files of later times are added; blocks of states end in none of them."""

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


class Traffic(Case):
    """Files are added between others, of training too, so that vocabularies change."""

    settings = TokenConfig(
        motion=64, road=16, tolerance=0.2, train=0.6, validation=0.2, block=1, splits="official"
    )
    first = ("testing/0", "training/0", "training/2", "training/4", "validation/0", "validation/3")

    def config(self):
        return plans.traffic()

    def dataset(self):
        return {"format": "waymo", "tokens": self.settings.model_dump(mode="json")}

    def begin(self):
        for name in self.first:
            self.write(name)

    def write(self, name, scenes=3, speed=0.0):
        path = self.raw / name.replace("/", "/part.tfrecord-0000")
        path.parent.mkdir(parents=True, exist_ok=True)
        start = 1 + 0.02 * int(name[-1])
        names = [f"{name.replace('/', '')}{i}" for i in range(scenes)]
        made = (waymo(one, start + 0.01 * i, 91, 1, 91) for i, one in enumerate(names))
        path.write_bytes(b"".join(record(moving(one, speed)) for one in made))

    def grow(self):
        self.write("training/1", speed=1.0)
        self.write("validation/1")

    def change(self):
        self.write("training/0", scenes=2)

    def remove(self):
        (self.raw / "validation/part.tfrecord-00003").unlink()

    def passes(self):
        def sample(path, share):
            scenarios.sample_motion(self.raw, path, self.settings, share, raw="waymo")

        return [("motion", sample)]

    def gather(self, files):
        plan, vocabulary = self.plan(record=False), self.data / "vocabulary.h5"
        motion = self.files(plan, "motion")
        scenarios.gather_vocabulary(motion, self.raw, vocabulary, self.settings, raw="waymo")
        for path in files:  # all are planned, as the workflow cannot know that it is the same
            path.unlink(missing_ok=True)
            number = int(path.stem.rpartition("_")[2])
            share = read_share(*plan.share("set", "scenarios", number))
            scenarios.tokenise_part(self.raw, vocabulary, path, self.settings, share, raw="waymo")
        scenarios.gather_scenarios(
            files, self.raw, vocabulary, self.data / "scenarios.h5", self.settings, raw="waymo"
        )

    def whole(self, folder):
        vocabulary = folder / "vocabulary.h5"
        scenarios.build_vocabulary(self.raw, vocabulary, self.settings, raw="waymo")
        scenarios.tokenise(
            self.raw, vocabulary, folder / "scenarios.h5", self.settings, raw="waymo"
        )


def moving(scene, speed):
    """A scene in which the agent drives (m/s)."""
    scenario = message("Scenario")
    scenario.ParseFromString(scene)
    for step, state in enumerate(scenario.tracks[0].states):
        state.center_x += 0.1 * step * speed
        state.velocity_x = speed
    return scenario.SerializeToString()


CASES = {
    "groundwater": (Groundwater, "series"),
    "masked groundwater": (Masked, "series"),
    "ICON": (Icon, "blocks"),
    "weather in files": (Weather, "weather"),
    "weather in a store": (WeatherStore, "weather"),
    "weather in a file": (WeatherFile, "weather"),
    "traffic": (Traffic, "scenarios"),
}


@pytest.fixture
def make(tmp_path):
    def begin(name):
        kind, samples = CASES[name]
        case = kind(tmp_path, samples)
        case.begin()
        assert case.run() == [0, 1, 2]
        return case

    return begin


def kept(case, before, stem):
    """Numbers of the parts that are the same files as before."""
    now = case.state()
    same = (name for name in before if name.startswith(stem) and now.get(name) == before[name])
    return {int(name[:-3].rpartition("_")[2]) for name in same}


@pytest.mark.parametrize("name", CASES)
def test_only_parts_of_new_changed_and_removed_files_are_made(make, name):
    case = make(name)
    stem = case.passes()[0][0]
    before = case.state()
    assert case.run() == []
    case.grow()
    made = case.run()
    assert min(made) > 2, "new parts"
    assert kept(case, before, stem) == {0, 1, 2}
    case.assert_as_a_whole()

    before = case.state()
    case.change()
    assert case.run() == [0]
    assert kept(case, before, stem) == {1, 2, *made}
    case.assert_as_a_whole()

    if case.remove is not None:
        before = case.state()
        case.remove()
        assert len(case.run()) <= 1
        assert len(kept(case, before, stem)) >= len(made) + 1
        case.assert_as_a_whole()


def run_second_pass(case, stem):
    """Numbers of the parts that only the second pass may make again, and whether they were kept."""
    before = case.state()
    made = case.run()
    now = case.state()
    inodes = {n: now[n][0] == before[n][0] for n in before if n.startswith(stem) and n in now}
    return made, inodes


def test_scenarios_of_the_same_vocabulary_are_kept(make, capsys):
    case = make("traffic")
    case.write("validation/4")
    made, same = run_second_pass(case, "scenarios")
    assert made == [3]
    assert same == {f"scenarios_{n}.h5": True for n in range(3)}
    assert "kept, vocabulary.h5 holds what it held before" in capsys.readouterr().out
    case.assert_as_a_whole()
    case.write("training/5", speed=2.0)
    _, same = run_second_pass(case, "scenarios")
    assert not any(same.values())
    assert "vocabulary.h5 holds something else than before" in capsys.readouterr().out
    case.assert_as_a_whole()


def test_states_of_the_same_nodes_are_kept(make, capsys):
    case = make("masked groundwater")
    case.add([16])
    made, same = run_second_pass(case, "series")
    assert made == [3]
    assert same == {f"series_{n}.h5": True for n in range(3)}
    assert "kept, missing.h5 holds what it held before" in capsys.readouterr().out
    set_head(case.folder / "pool/all/0017.csv", 7, "-999")
    case.add([17])
    _, same = run_second_pass(case, "series")
    assert not any(same.values())
    case.assert_as_a_whole()


def test_earlier_times_are_as_if_read_at_once(make):
    """Sums are relative to what comes first, which parts that are there did not know."""
    case = make("weather in files")
    before = case.state()
    early = case.states.isel(time=slice(0, 10))
    early = early.assign_coords(time=early.time - early.time.size * (early.time[1] - early.time[0]))
    early.to_netcdf(case.raw / "earlier.nc")
    assert case.run() == [3]
    assert kept(case, before, "weather") == {0, 1, 2}
    case.assert_as_a_whole()


def test_parts_do_not_depend_on_the_split(make):
    case = make("weather in files")
    before = case.state()
    for split in (SPLIT | {"train": 0.5}, SPLIT):
        case.split = split
        assert case.run() == []
        assert kept(case, before, "weather") == {0, 1, 2}
        case.assert_as_a_whole()


def test_a_part_whose_raw_files_are_gone_goes(make):
    case = make("weather in files")
    case.grow()
    assert case.run() == [3]
    for number in (4, 5):
        (case.raw / f"states_{number}.nc").unlink()
    before = case.state()
    assert case.run() == []
    assert kept(case, before, "weather") == {0, 1, 2}
    assert not (case.data / "parts/weather_3.h5").exists()
    case.assert_as_a_whole()


def test_what_was_not_made_is_divided_again_with_what_is_new(make):
    """As after a run that ended before all parts were made, or where one was deleted."""
    case = make("weather in files")
    (case.data / "parts/weather_1.h5").unlink()
    before = case.state()
    case.grow()
    assert min(case.run()) > 2
    assert kept(case, before, "weather") == {0, 2}
    case.assert_as_a_whole()


def test_a_file_that_no_part_is_of_makes_no_part_again(make):
    case = make("weather in files")
    before = case.state()
    (case.raw / "README").write_text("ours")
    case.run()
    case.assert_as_a_whole()
    again = case.plan()
    (case.raw / "README").write_text("ours, in more words")
    assert [*again.part_files("set", "weather")] == [*case.plan().part_files("set", "weather")]
    assert kept(case, before, "weather") == {0, 1, 2}
