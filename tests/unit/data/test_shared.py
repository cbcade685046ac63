"""What ranks of a node have in common is made once, the same bit by bit, and no reason to fail."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from millrace.data.samples import open_dataset
from millrace.data.shared import KEPT, shared, shared_in_group, tensors_in
from millrace.errors import DataError
from millrace.processes import SHARED_SAMPLES
from millrace.systems.registry import models
from millrace.systems.weather.dataset import WeatherDataset
from millrace.systems.weather.settings import WeatherWindowConfig


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(SHARED_SAMPLES, str(tmp_path))
    return tmp_path


def made(value=3.0):
    return {"a": torch.full((1000,), value)}


def test_one_makes_it_for_all_that_ask_at_once(folder):
    begun, calls = threading.Barrier(3), []

    def ask(_):
        begun.wait()
        return shared("key", lambda: calls.append(1) or made())

    with ThreadPoolExecutor(3) as ranks:
        found = [*ranks.map(ask, range(3))]
    assert calls == [1]
    assert all(torch.equal(one["a"], made()["a"]) for one in found)
    assert str(folder) in Path("/proc/self/maps").read_text(), "mapped, not copied"
    other = shared(["key", {"a": [0.1]}], lambda: made(4.0))
    assert other["a"][0] == 4.0


def test_what_cannot_be_made_is_tried_again_by_the_next_one(folder):
    def failed():
        raise DataError("damaged")

    for _ in range(2):
        with pytest.raises(DataError, match="damaged"):
            shared("key", failed)
    assert shared("key", made)["a"][0] == 3.0


def test_what_belongs_to_no_module_is_made_by_each(folder):
    @dataclass
    class Series:
        state: torch.Tensor

    for value in (3.0, 4.0):
        found = shared("key", lambda value=value: Series(torch.full((10,), value)))
        assert found.state[0] == value
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


@pytest.mark.parametrize("fault", ["no room", "full"])
def test_without_room_each_makes_it(folder, monkeypatch, fault):
    usage = shutil.disk_usage(folder)
    if fault == "no room":
        free = int(0.05 * usage.total) + 3999  # it takes 4000 bytes
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    else:
        monkeypatch.setattr(torch, "save", lambda *_: Path("/dev/full").write_text("it"))
    for value in (3.0, 4.0):
        assert shared("key", lambda value=value: made(value))["a"][0] == value
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


def test_batches_of_a_group_are_made_once_and_the_last_ones_kept(folder):
    calls = []

    def ask(number, group="0"):
        made_now = shared_in_group(
            number, lambda: calls.append((group, number)) or made(number), group
        )
        assert torch.equal(made_now["a"], made(number)["a"])

    def rank(_):
        for number in range(20):
            ask(number)
            step.wait()  # of the training, which ranks of a group do together

    step = threading.Barrier(3)
    with ThreadPoolExecutor(3) as ranks:
        list(ranks.map(rank, range(3)))
    assert calls == [("0", number) for number in range(20)]
    assert len([*folder.glob("*.pt")]) == KEPT
    ask(19, "1")
    ask(19)
    ask(0)  # gone
    assert calls[20:] == [("1", 19), ("0", 0)]


def test_batches_that_a_rank_of_the_group_has_read_are_not_read_again(
    weather_samples, folder, tmp_path
):
    path = tmp_path / "weather.h5"
    shutil.copy(weather_samples, path)
    one, same, other = (
        WeatherDataset(path, WeatherWindowConfig(), cache_bytes=0) for _ in range(3)
    )
    one.group_of_ranks = same.group_of_ranks = "0"
    index = np.array([2, 0])
    read = [*tensors_in(one.batch("train", 0, index))]
    path.unlink()
    assert all(map(torch.equal, [*tensors_in(same.batch("train", 0, index))], read))
    with pytest.raises((DataError, OSError)):
        other.batch("train", 0, index)


@pytest.mark.parametrize("model", models())
def test_samples_are_those_that_a_rank_reads_alone(experiments, folder, monkeypatch, model):
    definition, files = experiments[model]
    kind = models()[model].kind

    def samples():
        dataset = open_dataset(kind, files, definition["data"], torch.device("cpu"))
        return [*tensors_in(dataset.batch("train", 0, np.array([1, 0])))]

    with monkeypatch.context() as alone:
        alone.delenv(SHARED_SAMPLES)
        expected = samples()
    assert not [*folder.iterdir()]
    found = [samples(), samples()]
    [path] = folder.glob("*.pt")
    size, held = path.stat().st_size, path.stat().st_mtime_ns
    assert size > 1000
    for one in found:
        assert len(one) == len(expected) > 3
        assert all(map(torch.equal, one, expected))
    samples()
    assert path.stat().st_mtime_ns == held
