"""States with fewer bits: how far they are from those of the raw files is bounded, measured and told."""

import json

import h5py
import numpy as np
import pytest
import torch
from travelling_waves import waves

from millrace.data.account import read_accounts
from millrace.data.shares import Share
from millrace.data.split import SplitConfig
from millrace.systems.weather.dataset import WeatherDataset
from millrace.systems.weather.extract import extract_part, extract_weather, gather
from millrace.systems.weather.rounding import Rounding
from millrace.systems.weather.settings import WeatherExtraction, WeatherWindowConfig

PLAIN = WeatherExtraction(surface=("2t", "msl"), air=("z", "u"), static=("lsm",))
SPLIT = SplitConfig(train=0.5, validation=0.25, gap=2)
STEPS = 48


def rounded(keep_bits):
    return WeatherExtraction.parse(
        {**PLAIN.model_dump(exclude_none=True), "compress": {"keep_bits": keep_bits}}, "weather"
    )


@pytest.fixture
def source(tmp_path):
    waves(STEPS).to_netcdf(tmp_path / "w.nc")
    extract_weather(tmp_path / "w.nc", tmp_path / "plain.h5", PLAIN, SPLIT)
    return tmp_path / "w.nc"


@pytest.mark.parametrize(
    ("keep_bits", "value", "expected"),
    [
        (2, 1.125, 1.0),  # halfway: to even
        (2, 1.375, 1.5),
        (2, 1.126, 1.25),
        (1, -1.9, -2.0),
        (3, 0.0, 0.0),
        (23, 1.1, 1.1),
    ],
)
def test_numbers_are_rounded_to_the_nearest_of_few_bits(keep_bits, value, expected):
    block = np.full((1, 1, 1, 1), value, dtype=np.float32)
    Rounding(keep_bits, 1).apply(block)
    assert block[0, 0, 0, 0] == np.float32(expected)


@pytest.mark.parametrize("keep_bits", [6, 10, 14])
def test_the_largest_error_is_named(tmp_path, source, capsys, keep_bits):
    capsys.readouterr()
    extract_weather(source, tmp_path / "rounded.h5", rounded(keep_bits), SPLIT)
    with h5py.File(tmp_path / "plain.h5") as one, h5py.File(tmp_path / "rounded.h5") as other:
        true, found = one["state"][()].astype(float), other["state"][()].astype(float)
        step = other["stats/increment_std"][()]
        told = json.loads(other.attrs["compression"])
        names = list(other.attrs["channels"])
        assert one.attrs["digest"] != other.attrs["digest"]
        trained = found[slice(*other["split"][0])]
        assert other["stats/mean"][()] == pytest.approx(trained.mean(axis=(0, 2, 3)), rel=1e-6)
    error = np.abs(found - true)
    relative = error[true != 0] / np.abs(true[true != 0])
    assert told["largest relative error"] == pytest.approx(relative.max(), rel=0.01)
    assert relative.max() <= 2.0 ** -(keep_bits + 1)
    shares = error.max(axis=(0, 2, 3)) / step
    assert told["largest error over a typical change in a step"] == pytest.approx(
        shares.max(), rel=0.01
    )
    assert told["of channel"] == names[np.argmax(shares)]
    assert json.loads((tmp_path / "samples.json").read_text())["compression"] == told
    log = capsys.readouterr().err
    assert f"bits kept of the mantissa {keep_bits}, largest relative error" in log


def test_an_account_with_an_error_is_read_as_one_without(tmp_path, source):
    folder = tmp_path / "data/planet"
    folder.mkdir(parents=True)
    extract_weather(source, folder / "weather.h5", rounded(10), SPLIT)
    found, damaged = read_accounts(tmp_path)
    assert not damaged
    assert [one["what"] for one in found] == ["cells", "files", "levels", "states", "variables"]


def test_all_bits_are_a_copy_that_is_packed(tmp_path, source):
    extract_weather(source, tmp_path / "packed.h5", rounded(23), SPLIT)
    with h5py.File(tmp_path / "plain.h5") as one, h5py.File(tmp_path / "packed.h5") as other:
        assert np.array_equal(one["state"], other["state"])
        assert one.attrs["digest"] == other.attrs["digest"]
        assert "compression" not in one.attrs
        assert one["state"].compression is None


def test_fewer_bits_take_less_space(tmp_path, source):
    sizes = []
    for keep_bits in (23, 14, 8):
        extract_weather(source, tmp_path / "w.h5", rounded(keep_bits), SPLIT)
        with h5py.File(tmp_path / "w.h5") as file:
            sizes.append(file["state"].id.get_storage_size())
    assert sizes[0] > 1.2 * sizes[1] > 1.2 * 1.2 * sizes[2]


def test_parts_are_rounded_as_the_whole_is(tmp_path, source):
    extract_weather(source, tmp_path / "whole.h5", rounded(10), SPLIT)
    paths = [tmp_path / f"part{number}.h5" for number in range(3)]
    for number, path in enumerate(paths):
        extract_part(source, path, rounded(10), Share(number, 3))
    gather(paths, source, tmp_path / "gathered.h5", rounded(10), SPLIT)
    with h5py.File(tmp_path / "whole.h5") as one, h5py.File(tmp_path / "gathered.h5") as other:
        for name in ("digest", "compression"):
            assert one.attrs[name] == other.attrs[name]
        for name in ("mean", "std", "increment_std"):
            assert np.array_equal(one[f"stats/{name}"], other[f"stats/{name}"])
    steps = np.arange(STEPS)
    states = [
        WeatherDataset(tmp_path / f"{name}.h5", WeatherWindowConfig(), cache_bytes=1).core_states(
            0, steps
        )
        for name in ("whole", "gathered")
    ]
    assert torch.equal(*states)
