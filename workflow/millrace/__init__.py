"""Millrace: from raw scientific data to trained, evaluated surrogate models on any GPU layout."""

import importlib
import os
from typing import Any

__version__ = "0.2.0"

# HDF5 reads this when it is loaded. Files are written once, under another name, and then renamed, so that
# no reader needs a lock; where a file system has none, HDF5 and NetCDF files could not be opened with it.
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")


def load(checkpoint: Any, **options: Any) -> Any:
    """Load a trained model from its checkpoint alone, see `millrace.evaluation.loaded.load`."""
    # Imported here: planning does without PyTorch.
    return importlib.import_module("millrace.evaluation.loaded").load(checkpoint, **options)
