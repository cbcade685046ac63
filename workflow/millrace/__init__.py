"""Millrace: from raw scientific data to trained, evaluated surrogate models on any GPU layout."""

import os

__version__ = "0.2.0"

# HDF5 reads this when it is loaded. Files are written once, under another name, and then renamed, so that
# no reader needs a lock; where a file system has none, HDF5 and NetCDF files could not be opened with it.
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
