"""Files of forecasts that cannot be written."""

import errno
import os

import numpy as np
import pytest
import xarray as xr

from millrace.evaluation.forecast_file import forecast_file
from millrace.files import OutputError

PIECE = xr.Dataset({"head": (("time", "node"), np.zeros((2, 3), np.float32))})


@pytest.fixture
def full(monkeypatch):
    """The library fails as it does on a full disk, without a reason; so does what is written then."""

    def fail(*arguments, **options):
        raise RuntimeError("NetCDF: HDF error")

    def no_space(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(xr.Dataset, "to_netcdf", fail)
    monkeypatch.setattr(os, "fsync", no_space)


def test_a_full_disk_is_named_although_the_library_does_not_say_so(tmp_path, full):
    with (
        pytest.raises(OutputError, match=r"new\.nc: cannot be written \(No space left"),
        forecast_file(tmp_path / "new.nc", {}, "millrace predict") as write,
    ):
        write(PIECE)
    assert not list(tmp_path.iterdir())


def test_pieces_follow_on_each_other(tmp_path):
    with forecast_file(tmp_path / "new.nc", {"model": "gino"}, "millrace predict") as write:
        for _ in range(2):
            write(PIECE)
    with xr.open_dataset(tmp_path / "new.nc") as written:
        assert dict(written.sizes) == {"time": 4, "node": 3}
        assert written.attrs["history"].endswith(": millrace predict")
