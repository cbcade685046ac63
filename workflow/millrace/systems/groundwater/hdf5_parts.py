"""What the HDF5 files of this system have in common: statistics, origin, groups."""

import hashlib
import json
from collections.abc import Sequence
from typing import Self

import h5py
import numpy as np
from numpy.typing import NDArray

from millrace.data.hdf5 import create_dataset, strings
from millrace.data.split import MINIMUM_STD, Moments
from millrace.provenance import code_version


class Terms:
    """Sums over the values of single times, of which `Moments` are made in the order of time.

    They are relative to the first values of each column, as those of `Moments`: times that are summed apart
    give the same moments, bit by bit, if `begin` gets what came first.
    """

    def __init__(self, columns: int) -> None:
        self._shift, self._begun = np.zeros(columns), np.zeros(columns, bool)
        self._times: list[NDArray[np.float64]] = []

    def begin(self, values_NC: NDArray, mask_NC: NDArray | None = None) -> None:
        """Take sums relative to these values, in columns that have had none before."""
        values, weight = _weighted(values_NC, mask_NC)
        new = ~self._begun & (Moments.count_of(values, weight) > 0)
        if new.any():
            self._shift = np.where(new, Moments.shift_of(values, weight), self._shift)
            self._begun |= new

    def add(self, values_NC: NDArray, mask_NC: NDArray | None = None) -> None:
        """Add the values of the next time; one whose mask is 0 does not count."""
        self.begin(values_NC, mask_NC)
        values, weight = _weighted(values_NC, mask_NC)
        count = Moments.count_of(values, weight)
        self._times.append(np.stack([count, *Moments.terms(values, self._shift, weight)]))

    def __len__(self) -> int:
        return len(self._times)

    def fits(self, later: "Terms") -> bool:
        """Whether the sums of later times are relative to the same values.

        They are not in a column that had no values at the very first time: who summed the later times could
        not know what came first.
        """
        both = self._begun & later._begun
        return np.array_equal(self._shift[both], later._shift[both])

    def join(self, later: "Terms") -> None:
        """Add later times that fit."""
        self._shift = np.where(self._begun, self._shift, later._shift)
        self._begun |= later._begun
        self._times += later._times

    def moments(self) -> Moments:
        """Moments of all values that were added."""
        terms = self._array()
        return Moments.of_terms(terms[:, 0], self._shift, terms[:, 1], terms[:, 2])

    def write(self, group: h5py.Group) -> None:
        """Store in an HDF5 file."""
        create_dataset(group, "shift", self._shift)
        create_dataset(group, "begun", self._begun, dtype=np.uint8)
        create_dataset(group, "times", self._array())

    def _array(self) -> NDArray[np.float64]:
        """Number of values, their sum and that of their squares, [T, 3, columns]."""
        return np.array(self._times).reshape(len(self._times), 3, len(self._shift))

    @classmethod
    def read(cls, group: h5py.Group) -> Self:
        """Read what `write` stored."""
        made = cls(len(group["shift"]))
        made._shift, made._begun = group["shift"][()], group["begun"][()].astype(bool)
        made._times = [*group["times"][()]]
        return made


def _weighted(
    values_NC: NDArray, mask_NC: NDArray | None
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    weight = None if mask_NC is None else mask_NC.astype(np.float64)
    return np.asarray(values_NC, dtype=np.float64), weight


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
