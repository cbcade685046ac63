"""HDF5 files are complete or absent, and damage is noticed."""

import fcntl
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray

from millrace.data.hdf5 import create, create_dataset, open_checked, strings
from millrace.errors import DataError

SCHEMA = "millrace.test/1"


def write(path: Path) -> np.ndarray:
    values = np.random.default_rng(0).random((50, 40)).astype(np.float32)
    with create(path) as file:
        create_dataset(file, "values", values, chunks=(10, 40))
        create_dataset(file, "group/index", np.arange(7))
        file.attrs["names"] = strings([])
        file.attrs["schema"] = SCHEMA
    return values


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with open_checked(path, SCHEMA) as file:
        assert list(file.attrs["names"]) == []
        return file["values"][()], file["group/index"][()]


def test_round_trip(tmp_path) -> None:
    values = write(tmp_path / "a.h5")
    np.testing.assert_array_equal(read(tmp_path / "a.h5")[0], values)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["values"].fletcher32
        assert file["group/index"].fletcher32


def test_empty_datasets_can_be_written(tmp_path) -> None:
    with create(tmp_path / "a.h5") as file:
        create_dataset(file, "none", shape=(5, 3, 0), dtype=np.float32)
        assert file["none"].shape == (5, 3, 0)


def test_an_error_keeps_the_old_file_and_leaves_nothing(tmp_path) -> None:
    values = write(tmp_path / "a.h5")
    with pytest.raises(KeyError, match="nothing"), create(tmp_path / "a.h5") as file:
        create_dataset(file, "values", file["nothing"])
    np.testing.assert_array_equal(read(tmp_path / "a.h5")[0], values)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_what_a_killed_writer_left_is_cleared(tmp_path) -> None:
    code = f"""
        import os, signal
        from pathlib import Path
        from millrace.data.hdf5 import create
        with create(Path({str(tmp_path / "a.h5")!r})) as file:
            file["x"] = 1
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert not (tmp_path / "a.h5").exists()
    assert len(list(tmp_path.iterdir())) == 1
    write(tmp_path / "a.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.parametrize("shape", [(1000, 1000), (11, 1000)], ids=["data", "at the end"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, shape) -> None:
    code = f"""
        import resource, signal
        import numpy as np
        from pathlib import Path
        from millrace.data.hdf5 import create, create_dataset
        from millrace.files import OutputError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            with create(Path({str(tmp_path / "a.h5")!r})) as file:
                for name in "abc":
                    create_dataset(file, name, np.random.random({shape}))
        except OutputError as error:
            print(error.exit_code, error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    expected = f"74 {tmp_path / 'a.h5'}: cannot be written (File too large); nothing was kept\n"
    assert (done.stdout, done.stderr, done.returncode) == (expected, "", 0)
    assert list(tmp_path.iterdir()) == []


def test_missing_file_and_other_schema(tmp_path) -> None:
    with pytest.raises(DataError, match="no such file"), open_checked(tmp_path / "b.h5", SCHEMA):
        pass
    write(tmp_path / "a.h5")
    with (
        pytest.raises(
            DataError, match=r"expected schema 'other/2', found schema 'millrace\.test/1'"
        ),
        open_checked(tmp_path / "a.h5", "other/2"),
    ):
        pass


def test_files_that_another_process_has_locked_are_read(tmp_path):
    # As on file systems without locks, where none can be taken.
    with create(tmp_path / "a.h5") as file:
        file.attrs["schema"] = "s"
        file["x"] = [1, 2, 3]
    xarray.Dataset({"x": ("n", [1, 2, 3])}).to_netcdf(tmp_path / "a.nc")
    reading = (
        "import sys, millrace, xarray\n"
        "from millrace.data.hdf5 import open_checked\n"
        "with open_checked(sys.argv[1] + '/a.h5', 's') as file: print(*file['x'][:])\n"
        "print(*xarray.open_dataset(sys.argv[1] + '/a.nc')['x'].values)\n"
    )
    command = [sys.executable, "-c", reading, str(tmp_path)]
    with (tmp_path / "a.h5").open() as one, (tmp_path / "a.nc").open() as two:
        for file in (one, two):
            fcntl.flock(file, fcntl.LOCK_EX)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1", "2", "3"] * 2, done.stderr


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path, fraction) -> None:
    path = tmp_path / "a.h5"
    write(path)
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    with pytest.raises(DataError, match="truncated or damaged"):
        read(path)


def test_flipped_bits_are_refused_or_harmless(tmp_path) -> None:
    path = tmp_path / "a.h5"
    values = write(path)
    data = path.read_bytes()
    random = np.random.default_rng(5)
    refused = 0
    for position in random.integers(0, len(data), 200).tolist():
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(random.integers(8))
        path.write_bytes(bytes(flipped))
        try:
            found, index = read(path)
        except DataError:
            refused += 1
        else:
            np.testing.assert_array_equal(found, values)
            np.testing.assert_array_equal(index, np.arange(7))
    assert refused > 100
