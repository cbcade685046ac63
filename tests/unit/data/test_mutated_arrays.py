"""Arrays of a plug-in with one mutation each: kept by name and sample, or refused with the field.

The oracle are the arrays themselves. Left out is what nobody can tell: plain arrays that are flipped,
rolled, in another unit, or whose axes of one length are exchanged, have no label that says so.
"""

import contextlib
import dataclasses
import io

import h5py
import numpy as np
import pytest
import xarray as xr
from array_fields import PERIODS, SPLIT, independent, series
from mutations import NUMBER, try_mutations

from millrace.data.arrays import extract_arrays
from millrace.systems.settings import MissingConfig

ROLES = ("inputs", "targets", "coordinates")


class Case:
    """Samples, the same by name as they should be read, and what a refusal must name."""

    def __init__(self, draw):
        self.draw = draw
        self.samples = independent() if draw.random() < 0.5 else series()
        self.fields = {role: dict(getattr(self.samples, role)) for role in ROLES}
        self.time = self.samples.time
        self.missing, self.place = None, "source"
        self.truth = truth_of(self.samples)

    def some(self, *roles):
        """A role and a field of it."""
        role = self.draw.choice(roles or ("inputs", "targets"))
        self.place = name = self.draw.choice([*self.fields[role]])
        return self.fields[role], name

    def change(self, change, *roles):
        fields, name = self.some(*roles)
        values, unit = fields[name]
        fields[name] = change(np.array(values)), unit

    def made(self):
        return dataclasses.replace(
            self.samples, **self.fields, time=self.time, missing=self.missing
        )


def truth_of(samples):
    named = {
        (role, name): field for role in ROLES for name, field in getattr(samples, role).items()
    }
    if samples.time is not None:
        named["time", ""] = samples.time
    return {
        key: (np.asarray(values, dtype=np.float64), unit) for key, (values, unit) in named.items()
    }


def read_back(path, is_series):
    with h5py.File(path) as file:
        named = {(role, name): data for role in ROLES for name, data in file.get(role, {}).items()}
        if is_series:
            named["time", ""] = file["time"]
        return {
            key: (data[()].astype(np.float64), data.attrs["unit"]) for key, data in named.items()
        }


def same(found, truth):
    return found.keys() == truth.keys() and all(
        found[key][1] == truth[key][1]
        and np.allclose(found[key][0], truth[key][0], rtol=1e-6, atol=0)
        for key in truth
    )


def other_order_of_fields(case):
    for role in ("inputs", "targets"):
        names = case.draw.sample([*case.fields[role]], len(case.fields[role]))
        case.fields[role] = {name: case.fields[role][name] for name in names}


def renamed(case):
    fields, name = case.some(*ROLES)
    to = case.draw.choice(["", "a/b", ".x", 7])
    case.place = repr(to)
    fields[to] = fields.pop(name)


def without_unit(case):
    fields, name = case.some(*ROLES)
    fields[name] = fields[name][0], case.draw.choice(["", None])


def transposed(case):
    case.change(lambda v: v.swapaxes(0, -1) if v.ndim > 1 else v[:, None])


def cut_or_doubled(case):
    at = case.draw.randrange(5)
    rows = case.draw.choice([lambda v: v[1:], lambda v: v[:-1], lambda v: np.repeat(v, 2, 0)])
    case.change(
        case.draw.choice(
            [rows, lambda v: np.delete(v, at, 0), lambda v: np.insert(v, at, v[at], 0)]
        ),
        *ROLES,
    )


def more_or_fewer_axes(case):
    case.change(
        case.draw.choice([lambda v: v[..., None], lambda v: v[None], lambda v: v[0]]), *ROLES
    )


def not_finite(case):
    value = case.draw.choice([np.nan, np.inf, -np.inf])

    def change(values):
        values = values.astype(np.float64)
        values.ravel()[case.draw.randrange(values.size)] = value
        return values

    case.change(change, *ROLES)


def masked(case):
    hidden = case.draw.random() < 0.7
    case.change(
        lambda v: np.ma.masked_array(v, mask=hidden & (np.arange(v.size) == 3).reshape(v.shape)),
        *ROLES,
    )


def sentinel(case):
    value = case.draw.choice([-999.0, -9999.0, 1e30, 1e20, 9.96921e36, -99999.0])
    number = case.draw.choice([1, 3, 8])

    def change(values):
        values = values.astype(np.float64)
        values.ravel()[case.draw.sample(range(values.size), min(number, values.size // 2))] = value
        return values

    case.change(change, *ROLES)


def declared(case):
    then = case.draw.choice(["refuse", "keep"])
    case.missing = MissingConfig(value=-999, then=then)
    fields, name = case.some()
    values = np.array(fields[name][0], dtype=np.float64)
    values.ravel()[:3] = -999
    fields[name] = values, fields[name][1]
    if then == "keep":
        case.truth = truth_of(case.made())


def times(case):
    if case.time is None:
        return
    case.place = "time"
    values, unit = case.time
    change = case.draw.choice(
        [
            lambda v: v[::-1], lambda v: np.roll(v, 1), lambda v: v[:-1], lambda v: v[:, None],
            lambda v: np.insert(v, 3, v[3])[:-1], lambda v: v[0], lambda v: v.astype("datetime64[D]"),
            lambda v: np.where(np.arange(v.size) == 9, np.nan, v),
            lambda v: np.where(np.arange(v.size) == v.size - 1, 1e30, v),
            lambda v: np.where(np.arange(v.size) == 0, -9999, v),
        ]
    )  # fmt: skip
    case.time = change(values), unit


def other_type(case):
    kind = case.draw.choice(["<f4", ">f8", "F", "list", "c16", "U12", "O", "datetime64[s]"])
    case.change(
        lambda v: (
            v.tolist()
            if kind == "list"
            else np.asfortranarray(v)
            if kind == "F"
            else v.astype(kind)
        ),
        *ROLES,
    )


def labelled(case):
    """Arrays of xarray, one of them with its axes, or the values along one, in another order."""
    grid = [*case.fields["coordinates"]]
    for role in ("inputs", "targets"):
        for name, (values, unit) in case.fields[role].items():
            dims = ["sample", *grid][: np.ndim(values)]
            coords = {axis: case.fields["coordinates"][axis][0] for axis in dims[1:]}
            case.fields[role][name] = xr.DataArray(values, coords, dims), unit
    fields, name = case.some("targets")
    values, unit = fields[name]
    change = case.draw.choice(
        [
            lambda v: v,
            lambda v: v.transpose(),
            lambda v: v.isel({grid[-1]: slice(None, None, -1)}),
            lambda v: v.roll({grid[0]: 1}, roll_coords=True),
            lambda v: v.assign_coords({grid[0]: v[grid[0]] + 1}),
            lambda v: v.where(v != v[0, 0]),
        ]
    )
    fields[name] = change(values), unit


def of_a_file(case):
    """Variables of an open HDF5 file, which are read in pieces."""
    path = case.base / "raw.h5"
    path.unlink(missing_ok=True)
    file = h5py.File(path, "w")
    for role in ("inputs", "targets"):
        for name, (values, unit) in case.fields[role].items():
            case.fields[role][name] = file.create_dataset(f"{role}/{name}", data=values), unit


def nothing(case):
    case.fields[case.draw.choice(["inputs", "targets"])] = {}
    if not case.fields["inputs"] and case.time is not None:  # a series needs none
        case.truth = truth_of(case.made())


MUTATIONS = [
    other_order_of_fields, renamed, without_unit, transposed, cut_or_doubled, more_or_fewer_axes,
    not_finite, masked, sentinel, sentinel, declared, times, other_type, labelled, labelled, of_a_file,
    nothing,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
def test_mutated_arrays_are_kept_by_name_or_refused_with_their_field(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    cases = []

    def write(mutation, draw):
        case = Case(draw)
        case.base = tmp_path
        cases[:] = [case]
        mutation(case)
        return case.place

    def read():
        samples = cases[0].made()
        is_series = cases[0].time is not None
        split = PERIODS if is_series else SPLIT
        output = tmp_path / "samples.h5"
        with contextlib.redirect_stdout(io.StringIO()):
            extract_arrays(source, output, None, split, None, lambda *_: samples, is_series)
        return read_back(output, is_series)

    def fault(found, _):
        return None if same(found, cases[0].truth) else "other samples"

    refused = try_mutations(MUTATIONS, write, read, fault)
    assert NUMBER / 3 < refused < NUMBER
