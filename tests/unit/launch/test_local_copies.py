"""Copies of samples on the disk of a node: opened instead, removed afterwards, and no reason to fail."""

import fcntl
import os
import shutil
import socket
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from millrace.data import hdf5
from millrace.data.samples import open_dataset
from millrace.launch.local_copies import local_copies


@pytest.fixture
def node(tmp_path, monkeypatch):
    """The disk of the node."""
    folder = tmp_path / "node"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def files(tmp_path):
    """A sample file whose rows are in two others."""
    folder = tmp_path / "planet"
    (folder / "parts").mkdir(parents=True)
    parts = []
    for number in range(2):
        path = folder / f"parts/weather_{number}.h5"
        with hdf5.create(path) as file:
            hdf5.create_dataset(file, "state", np.full((3, 2), float(number)))
        parts.append((path, (3, 2), range(3)))
    with hdf5.create(folder / "weather.h5") as file:
        file.attrs["schema"] = "test/1"
        hdf5.create_virtual(file, "state", parts, np.float64, folder)
    return {"weather": str(folder / "weather.h5")}


class Opened:
    """A dataset that tells which file it was given, and what it holds."""

    roles = ("weather",)

    class config_type:
        parse = staticmethod(lambda *_: None)

    def __init__(self, path, **_):
        self.path = path
        with hdf5.open_checked(path, "test/1") as file:
            self.rows = file["state"][:, 0].tolist()


@pytest.fixture
def opened(files, monkeypatch):
    monkeypatch.setattr("millrace.data.samples.dataset_class", lambda _: Opened)
    return lambda: open_dataset("test", files, {}, None)


def test_datasets_open_copies_with_their_parts_while_there_are_some(
    node, files, opened, monkeypatch
):
    original = Path(files["weather"])
    with local_copies(files) as environment, monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        parts = original.with_name("parts")
        away = parts.rename(original.with_name("away"))
        assert node in opened().path.parents
        assert opened().rows == [0, 0, 0, 1, 1, 1]
        away.rename(parts)
    assert not [*node.iterdir()]
    assert opened().path == original


def test_without_room_files_are_read_where_they_are(node, files, monkeypatch, capsys):
    usage = shutil.disk_usage(node)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with local_copies(files) as environment:
        assert environment == {}
    assert "no room for" in capsys.readouterr().err
    assert not [*node.iterdir()]


def test_a_disk_that_fails_is_no_reason_to_fail(node, files, monkeypatch, capsys):
    def refused(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", refused)
    with local_copies(files) as environment:
        assert environment == {}
        assert not [*node.iterdir()], "what was copied takes room"
    assert "No space left on device" in capsys.readouterr().err


def test_what_a_killed_job_left_is_removed_and_what_another_uses_is_not(node, files):
    start = f"millrace_samples_{os.getuid()}_{socket.gethostname()}_"
    dead, used, elsewhere = (
        node / name for name in (f"{start}dead", f"{start}used", "millrace_samples_0_other_x")
    )
    for folder in (dead, used, elsewhere):
        folder.mkdir()
        folder.with_suffix(".lock").touch()
    with used.with_suffix(".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with local_copies(files) as environment:
            assert environment
            assert used.is_dir()
            assert elsewhere.is_dir()
            assert not dead.exists()
            assert not dead.with_suffix(".lock").exists()


def test_a_damaged_file_is_left_to_those_who_read_it(node, files, capsys):
    Path(files["weather"]).write_bytes(b"no HDF5")
    with local_copies(files) as environment:
        assert environment == {}
    assert "damaged HDF5" in capsys.readouterr().err


def test_an_error_of_the_training_is_passed_on_and_copies_are_removed(node, files):
    with pytest.raises(OSError, match="of the training"), local_copies(files):
        raise OSError("of the training")
    assert not [*node.iterdir()]


def test_parts_outside_the_folder_are_read_where_they_are(node, files, capsys):
    with h5py.File(files["weather"], "a") as file:
        file.attrs["parts"] = hdf5.strings(["../elsewhere/part_0.h5"])
    with local_copies(files) as environment:
        assert environment == {}
    assert "outside its folder" in capsys.readouterr().err
