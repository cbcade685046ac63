"""What the HDF5 files of this system have in common: statistics, origin, groups."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Self

import h5py
import numpy as np
from numpy.typing import NDArray

from millrace.data.hdf5 import create_dataset, strings
from millrace.data.parts import Parts
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
        self._times.append(self._sums(values_NC, mask_NC))

    def skip(self) -> None:
        """Add the next time without its values, which `complete` looks up."""
        self._times.append(np.full((3, len(self._shift)), np.nan))

    def _sums(self, values_NC: NDArray, mask_NC: NDArray | None) -> NDArray[np.float64]:
        values, weight = _weighted(values_NC, mask_NC)
        count = Moments.count_of(values, weight)
        return np.stack([count, *Moments.terms(values, self._shift, weight)])

    def moments(self, stop: int, start: int = 0) -> Moments:
        """Moments of a range of times."""
        terms = self._array()[start:stop]
        shift = np.where(terms[:, 0].sum(axis=0) > 0, self._shift, 0.0)
        return Moments.of_terms(terms[:, 0], shift, terms[:, 1], terms[:, 2])

    def write(self, group: h5py.Group) -> None:
        """Store in an HDF5 file."""
        create_dataset(group, "shift", self._shift)
        create_dataset(group, "begun", self._begun, dtype=np.uint8)
        create_dataset(group, "times", self._array())

    def _array(self) -> NDArray[np.float64]:
        """Number of values, their sum and that of their squares, [T, 3, columns]."""
        return np.array(self._times).reshape(len(self._times), 3, len(self._shift))

    @classmethod
    def complete(
        cls,
        parts: Parts,
        name: str,
        times: range,
        values: Callable[[int], tuple[NDArray, NDArray | None]],
        before: int = 0,
    ) -> Self:
        """Those of all times that parts stored below ``name``, of which a range is needed.

        ``values`` gives those of a time and their mask, made of it and so many times ``before``. It is
        asked where these are in other parts or were not known, and where a part summed relative to other
        values than those that come first, which it could not know: they were added since, or there were
        none of a column at the very first time.
        """
        every_T3C = parts.rows(f"{name}/times")
        made = cls(every_T3C.shape[2])
        stored = [
            (file[f"{name}/shift"][()], file[f"{name}/begun"][()] != 0) for file in parts.files
        ]
        for time in times:
            # Numbers of values are known, but of skipped times, whose columns have some.
            if not (made._begun | (every_T3C[time, 0] == 0)).all():
                made.begin(*values(time))
        for time, terms_3C in enumerate(every_T3C):
            if time not in times:
                made._times.append(terms_3C)
                continue
            shift, begun = stored[parts.places[time][0]]
            fits = np.array_equal(shift[begun & made._begun], made._shift[begun & made._begun])
            part, at = parts.places[time]
            fits &= before == 0 or parts.places[time - before] == (part, at - before)
            again = not fits or np.isnan(terms_3C).any()
            made._times.append(made._sums(*values(time)) if again else terms_3C)
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
