"""What the HDF5 files of this system have in common: statistics, origin, groups."""

import hashlib
import json
from collections.abc import Sequence

import h5py
import numpy as np

from millrace.data.hdf5 import create_dataset, strings
from millrace.data.split import MINIMUM_STD, Moments
from millrace.provenance import code_version


class Statistics:
    """Running statistics of fields, of their changes over one step, and of forcings (numbers of each)."""

    def __init__(self, fields: int, forcings: int) -> None:
        self.fields, self.increments = Moments(fields), Moments(fields)
        self.forcings = Moments(forcings)

    def write(self, file: h5py.File, forcings: str = "forcing") -> None:
        """Write means and standard deviations to the group ``stats``; forcings have a name of their own."""
        for name, values, size in (
            ("obs", self.fields, self.fields),
            ("increment", self.increments, self.fields),
            (forcings, self.forcings, self.forcings),
        ):
            minimum = MINIMUM_STD * np.maximum(1, np.abs(size.mean))
            create_dataset(file, f"stats/{name}_std", np.maximum(values.std, minimum))
            if values is size:
                create_dataset(file, f"stats/{name}_mean", values.mean)


def write_origin(
    file: h5py.File, schema: str, source_digest: str, options: object, **names: Sequence[str]
) -> None:
    """Write as attributes what samples were made of: source, settings, ``digest`` of both, and names."""
    config = json.dumps(options, sort_keys=True)
    file.attrs.update(
        schema=schema,
        digest=hashlib.sha256((source_digest + config).encode()).hexdigest(),
        source_digest=source_digest,
        code_version=code_version(),
        config=config,
        **{key: strings(values) for key, values in names.items()},
    )


def group_names(file: h5py.File) -> list[str]:
    """Groups of the patches or planes in a file, in order."""
    groups = (name for name in file if name.startswith(("patch_", "plane_")))
    return sorted(groups, key=lambda name: int(name[6:]))
