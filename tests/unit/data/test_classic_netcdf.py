"""Files of classic NetCDF that are cut off: their library reads zeros where nothing is left."""

import contextlib
import random

import netCDF4
import numpy as np
import pytest

from millrace.data.classic_netcdf import check_whole
from millrace.errors import DataError

VERSIONS = ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"]


def write(path, version, records=3, alone=False):
    """Variables of odd sizes, which are padded; ``alone``: one has records, which are not."""
    with netCDF4.Dataset(path, "w", format=version) as file:
        file.createDimension("time", None)
        file.createDimension("cell", 7)
        file.title, file.numbers = "a title", np.arange(3, dtype="i2")
        file.createVariable("name", "S1", ("cell",))[:] = np.array(list("abcdefg"), "S1")
        file.createVariable("height", "f8", ())[...] = 2.0
        if not alone:
            file.createVariable("time", "f8", ("time",))[:] = np.arange(records)
        tas = file.createVariable("tas", "i2", ("time", "cell"))
        tas.units = "K"
        tas[:] = np.full((records, 7), 280)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("records", [0, 1, 3])
def test_whole_files_are_told_from_cut_ones(tmp_path, version, alone, records):
    path = tmp_path / "a.nc"
    write(path, version, records, alone)
    check_whole(path)
    content = path.read_bytes()
    for left in random.Random(0).sample(range(8, len(content) - 4), 40):
        path.write_bytes(content[:left])
        with pytest.raises(DataError, match=r"a\.nc: (cut off|its header is damaged)"):
            check_whole(path)


def test_what_is_missing_is_told_in_bytes(tmp_path):
    path = tmp_path / "a.nc"
    write(path, VERSIONS[0], alone=True)
    path.write_bytes(path.read_bytes()[:-10])
    with netCDF4.Dataset(path) as file:
        assert 0 in file["tas"][:], "the library reads zeros"
    with pytest.raises(DataError, match=r"cut off, \d+ bytes are missing"):
        check_whole(path)


@pytest.mark.parametrize("version", [*VERSIONS, "NETCDF4"])
def test_a_damaged_byte_ends_in_no_other_error(tmp_path, version):
    path, draw = tmp_path / "a.nc", random.Random(1)
    write(path, version)
    content = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(content)
        damaged[draw.randrange(4, min(300, len(content)))] = draw.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):
            check_whole(path)
