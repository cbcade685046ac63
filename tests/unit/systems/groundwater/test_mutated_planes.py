"""Folders of planes with one mutation each: read as their labels say, or refused with their folder.

The oracle looks up each value by plane, time and place in the clean arrays. Left out is what nobody can
tell: values moved in all arrays that hold them without their labels, and plausible values.
"""

import contextlib
import io
import random
import shutil

import h5py
import numpy as np
import pytest
from mutations import NUMBER, try_mutations

from millrace.data.split import SplitConfig
from millrace.systems.groundwater.plane_folders import convert_plane_folders

ALPHA, STEPS, POINTS, SPLIT = 4, 24, 3, SplitConfig(train=0.5, validation=0.25, gap=1)
LATENT = ["latent_geom", "latent_features", "output_latent_geom", "output_latent_features"]
BOUNDARY = ["input_geom", "input_data"]
SENTINELS = [1e30, 1e20, -9999.0, -99999.0, 9.96921e36]


def clean_planes(shape, channels):
    """Arrays of two planes, whose states are smooth, and what is true: see `by_label`."""
    source = np.random.default_rng(0)
    time = np.cumsum(source.uniform(0.4, 0.6, STEPS))
    planes, truth = {}, {}
    for name, north in (("plane_00", 0.0), ("plane_01", 25.0)):
        s, z = np.meshgrid(
            np.linspace(0, 90, shape[0]), np.linspace(-20, 2, shape[1]), indexing="ij"
        )
        tide = (
            0.2
            * np.sin(np.arange(STEPS))[:, None, None]
            * source.uniform(0.9, 1.1, (STEPS, *shape))
        )
        head = 0.5 + 0.01 * s + tide
        salt = 300 * (101 - s) + 20 * np.arange(STEPS)[:, None, None] + 10 * z
        field = np.stack([head, salt], axis=3)
        field[:, z < -20 + 0.1 * s] = -999
        labels = np.stack([s, z, 1000 + 0.6 * s, 500 - 0.8 * s + north], axis=2)
        full = np.concatenate([np.broadcast_to(labels, (STEPS, *labels.shape)), field], axis=3)
        times = np.broadcast_to(time[:, None, None, None], (STEPS, *shape, 1))
        full = np.concatenate([times, full], axis=3)
        place = np.array([[0.0, -5.0], [0.0, -15.0], [90.0, -8.0]])[:POINTS]
        value = np.stack(
            [np.repeat(tide[:, 0, :1], POINTS, 1), np.full((STEPS, POINTS), 35e3)], axis=2
        )
        value[:, -1, 1] = -999
        labelled = np.concatenate(
            [np.repeat(time[:, None, None], POINTS, 1), np.tile(place, (STEPS, 1, 1))], axis=2
        )
        starts = range(0, STEPS - 2 * ALPHA + 1, ALPHA // 2)
        parts = {
            "input_geom": (labelled, 0), "input_data": (value, 0), "latent_geom": (full[..., :3], 0),
            "latent_features": (full[..., -channels[0] :], 0), "output_latent_geom": (full[..., :3], ALPHA),
            "output_latent_features": (full[..., -channels[1] :], ALPHA),
        }  # fmt: skip
        planes[name] = {
            key: np.stack([values[i + after : i + after + ALPHA] for i in starts])
            for key, (values, after) in parts.items()
        }
        for key in BOUNDARY:
            planes[name][key] = planes[name][key].reshape(len(starts), ALPHA * POINTS, -1)
        for h, w in np.ndindex(shape):
            if field[0, h, w, 0] != -999:
                truth[name, "cell", round(s[h, w], 3), round(z[h, w], 3)] = field[:, h, w]
        known = np.where(np.arange(STEPS)[:, None, None] < STEPS - ALPHA, value, -999)
        for m, (at_s, at_z) in enumerate(place):
            truth[name, "boundary", at_s, at_z] = np.where(known == -999, np.nan, known)[:, m]
    truth["time"] = time
    return planes, truth


def by_label(path):
    """{(plane, kind, S, Z): values in time} of a file of samples."""
    with h5py.File(path) as file:
        found = {"time": file["time"][()]}
        for name in [one for one in file if one.startswith("plane")]:
            plane = file[name]
            mask = plane["mask"][()].astype(bool)
            for (s, z), values in zip(
                plane["coords"][()][mask], plane["field"][()][:, mask].swapaxes(0, 1), strict=True
            ):
                found[name, "cell", round(s, 3), round(z, 3)] = values
            given = np.where(plane["bc_mask"][()] == 1, plane["bc"][()], np.nan)
            for (s, z), values in zip(plane["bc_coords"][()], given.swapaxes(0, 1), strict=True):
                found[name, "boundary", round(s, 3), round(z, 3)] = values
        return found


def same(found, truth):
    return found.keys() == truth.keys() and all(
        np.allclose(found[key], truth[key], rtol=2e-7, atol=0, equal_nan=True) for key in truth
    )


class Case:
    def __init__(self, base, draw):
        self.base, self.draw = base, draw
        self.shape = draw.choice([(6, 5), (5, 5)])
        self.planes, self.truth = clean_planes(
            self.shape, (draw.choice([4, 7]), draw.choice([2, 4, 7]))
        )
        self.name = draw.choice([*self.planes])
        self.arrays = self.planes[self.name]
        self.place, self.warns, self.files = base / self.name, False, {}

    def some(self, names):
        """One of the arrays, or all of them."""
        return names if self.draw.random() < 0.4 else [self.draw.choice(names)]

    def write(self):
        shutil.rmtree(self.base, ignore_errors=True)
        for name, arrays in self.planes.items():
            (self.base / name).mkdir(parents=True)
            for key, values in arrays.items():
                np.save(self.base / name / f"{key}.npy", values)
        for path, change in self.files.items():
            path.write_bytes(change(path.read_bytes()))
        return self.place


def changed(case, names, change):
    for name in names:
        case.arrays[name] = np.ascontiguousarray(change(case.arrays[name]))


def flipped(case):
    axis = case.draw.choice([2, 3])
    changed(case, case.some(LATENT), lambda values: np.flip(values, axis))


def rolled(case):
    axis = case.draw.choice([0, 1, 2, 3])
    changed(case, case.some(LATENT), lambda values: np.roll(values, 1, axis))


def transposed(case):
    axes = case.draw.choice([(2, 3), (1, 2), (0, 1)])
    changed(case, case.some(LATENT), lambda values: values.swapaxes(*axes))


def columns_moved(case):
    by = case.draw.choice([1, 2, "flip"])
    names = [case.draw.choice([*LATENT, *BOUNDARY])]
    # Head and concentration alone have no label but their size.
    case.warns = case.arrays[names[0]].shape[-1] == 2 and by != 2
    changed(case, names, lambda v: v[..., ::-1] if by == "flip" else np.roll(v, by, -1))


def sequences_in_other_order(case):
    order = np.random.default_rng(case.draw.randrange(99)).permutation(
        len(case.arrays["input_data"])
    )
    changed(case, case.some([*LATENT, *BOUNDARY]), lambda values: values[order])


def sequences_doubled_or_cut(case):
    case.place, n = case.base, len(case.arrays["input_data"])
    rows = case.draw.choice(
        [[*range(n), 3], [*range(4), *range(5, n)], [*range(1, n)], [*range(n - 2)]]
    )
    changed(case, case.some([*LATENT, *BOUNDARY]), lambda values: values[rows])


def other_unit(case):
    v, factor = case.draw.choice([(-2, 100), (-2, 1000), (-1, 1e-3), (-1, 1e3)])
    names = case.some(["latent_features", "output_latent_features"])
    case.warns = len(names) == 2

    def change(values):
        values[..., v] = np.where(values[..., v] == -999, -999, values[..., v] * factor)
        return values

    changed(case, names, change)


def other_unit_of_a_label(case):
    name = case.draw.choice(["latent_geom", "output_latent_geom", "input_geom"])
    axis, factor = case.draw.choice([(0, 24), (0, 86400), (1, 1e3), (2, 100), (2, 1e3)])
    changed(case, [name], lambda v: v * np.where(np.arange(3) == axis, factor, 1))


def sentinel(case):
    name = case.draw.choice([*LATENT, *BOUNDARY])
    values = case.arrays[name]
    value = case.draw.choice(SENTINELS)
    at = tuple(case.draw.randrange(n) for n in values.shape)
    if name in LATENT:
        at = (*at[:2], case.shape[0] - 1, case.shape[1] - 1, at[4])  # a cell that has values
    values[at] = value


def sentinel_at_all_times(case):
    value, v = case.draw.choice(SENTINELS), case.draw.choice([-1, -2])
    for name in ("latent_features", "output_latent_features"):
        case.arrays[name][..., -1, -1, v] = value


def blanked(case):
    """No value in one copy, or in all of one time, at which the cell is left out."""
    q, value = case.draw.randrange(9), case.draw.choice([np.nan, -999])
    step = ALPHA + 2 * q if case.draw.random() < 0.5 else None
    if step is None:
        case.arrays["latent_features"][q, case.draw.randrange(ALPHA), -1, -1, -1] = value
        if q == 0:  # nothing overlaps the first two steps
            case.arrays["latent_features"][0, 0, -1, -1, -1] = value
        return
    for name in ("latent_geom", "output_latent_geom"):
        at = np.isclose(case.arrays[name][..., -1, -1, 0], case.truth["time"][step])
        case.arrays[name.replace("geom", "features")][..., -1, -1, -1][at] = value


def other_type(case):
    case.place = case.base  # times in single precision are not those of the other plane
    kinds = case.draw.choice(["<f4", ">f8", ">f4", "<f2", "<i4", "<U8", "F"])
    changed(
        case,
        case.some([*LATENT, *BOUNDARY]),
        lambda v: np.asfortranarray(v) if kinds == "F" else v.astype(kinds),
    )


def points_in_other_order(case):
    """Boundary points exchanged in both arrays, or all steps of a point before the next."""
    by_point = case.draw.random() < 0.5

    def change(values):
        split = values.reshape(len(values), ALPHA, POINTS, -1)
        moved = split.swapaxes(1, 2) if by_point else split[:, :, ::-1]
        return moved.reshape(values.shape)

    changed(case, case.some(BOUNDARY) if by_point else BOUNDARY, change)


def filled_up(case):
    """A boundary point without a place, to have as many in all folders."""
    for name in BOUNDARY:
        split = case.arrays[name].reshape(-1, ALPHA, POINTS, case.arrays[name].shape[-1])
        more = np.full((*split.shape[:2], 1, split.shape[3]), -999.0)
        if name == "input_geom":
            more[..., 0] = split[:, :, :1, 0]
        elif case.draw.random() < 0.3:
            more[2, 1, 0, 0] = 1.5
        joined = np.concatenate([split, more], axis=2)
        case.arrays[name] = joined.reshape(len(split), ALPHA * (POINTS + 1), -1)


def damaged_file(case):
    path = case.base / case.name / f"{case.draw.choice([*LATENT, *BOUNDARY])}.npy"
    cut = case.draw.choice([0, 5, 60, 200, -8, -1])
    case.files[path] = lambda data: data[:cut]


def missing_file(case):
    name = case.draw.choice([*LATENT, *BOUNDARY])
    values = case.arrays.pop(name)
    if case.draw.random() < 0.5:
        case.arrays[case.draw.choice([name.upper(), f"{name}_1"])] = values


def other_plane(case):
    """An array of the other plane, or one plane with other times."""
    other = case.planes["plane_00" if case.name == "plane_01" else "plane_01"]
    if case.draw.random() < 0.5:
        case.place = case.base
        for name in ("latent_geom", "output_latent_geom", "input_geom"):
            case.arrays[name][..., 0] += 1
    else:
        name = case.draw.choice(["latent_features", "output_latent_features"])
        case.arrays[name] = other[name]


MUTATIONS = [
    flipped, rolled, transposed, columns_moved, sequences_in_other_order, sequences_doubled_or_cut,
    other_unit, other_unit_of_a_label, sentinel, sentinel, sentinel_at_all_times, blanked, other_type,
    points_in_other_order, filled_up, damaged_file, missing_file, other_plane,
]  # fmt: skip


@pytest.mark.slow
def test_mutated_folders_of_planes_are_read_rightly_or_refused_with_their_folder(tmp_path):
    cases = []

    def write(mutation, draw):
        cases[:] = [Case(tmp_path / "raw", draw)]
        mutation(cases[0])
        return cases[0].write()

    def read():
        told = io.StringIO()
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            convert_plane_folders(tmp_path / "raw", tmp_path / "planes.h5", None, SPLIT)
        return by_label(tmp_path / "planes.h5"), told.getvalue()

    def fault(found, mutation):
        (samples, told), [case] = found, cases
        if case.warns:
            return None if f"WARNING: {case.place}" in told else "no warning"
        truth = case.truth
        if mutation is blanked:  # that cell is left out, if anything is
            cell = max(key for key in truth if key[:2] == (case.name, "cell"))
            truth = {key: value for key, value in truth.items() if key != cell}
        return None if same(samples, truth) else "other samples"

    write(lambda case: None, random.Random(0))
    assert same(read()[0], cases[0].truth)
    refused = try_mutations(MUTATIONS, write, read, fault)
    assert NUMBER / 3 < refused < NUMBER
