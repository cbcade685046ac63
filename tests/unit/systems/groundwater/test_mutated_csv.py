"""FEFLOW files with one mutation each: read as by pandas, by the names of columns and nodes, or refused.

Left out is what nobody can tell: a plausible value in the place of another, values moved to other nodes in
all files, columns whose names are exchanged in all files, a forcing that is blank, and heads in feet.
"""

import contextlib
import gzip
import io
import random
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from mutations import NUMBER, try_mutations

from millrace.data.split import SplitConfig
from millrace.systems.groundwater.series import preprocess
from millrace.systems.groundwater.settings import MaskedMissing

ALL, FORCINGS = "all", "forcings_corrected_all"
STEPS = 8
FIELDS = ["mass_concentration", "pressure", "head"]
FORCED = ["mass_concentration_bc", "head_bc", "recharge_forcing", "sea_level_forcing"]
PLACE = ["X", "Y", "Z", "slice"]
SENTINELS = ["-999", "-9999", "-999.0", "-99999", "1e20", "1e30", "1E+30", "9.96921e36"]
SENTINELS += ["9.969209968386869e+36"]
SPLIT = SplitConfig(train=0.5, validation=0.25, gap=1)


def tables():
    """{(folder, number): table of text} of an aquifer whose states are smooth in space and time."""
    source = np.random.default_rng(0)
    slices = np.repeat([1, 2, 3], 12)
    x, y = (np.tile(source.uniform(0, 100, 12).round(2), 3) + far for far in (334_600, 6_249_800))
    z = (np.tile(source.uniform(0, 2, 12), 3) - 4.0 * slices).round(3)
    made = {}
    for step in range(STEPS):
        tide = 0.2 * np.sin(step)
        head = 0.4 + 0.01 * (x - 334_600) + tide * (1 + 0.1 * source.standard_normal(36))
        salt = 300 * (101 - x + 334_600) * (1 + 0.01 * source.standard_normal(36))
        made[ALL, step] = pd.DataFrame(
            {
                "node": np.arange(1, 37), "ts": step, "time (d)": 0.5 + 0.476 * step, "X": x, "Y": y,
                "Z": z, "slice": slices, "mass_concentration": salt, "pressure": 9.8046 * (head - z),
                "head": head,
            }
        )  # fmt: skip
        forced = pd.DataFrame({"node": np.arange(1, 37)})
        edge, top = forced["node"] % 5 == 0, slices == 1
        forced["mass_concentration_bc"] = np.where(edge, 35_000.0, np.nan)
        forced["head_bc"] = np.where(edge, 0.4 + tide, np.nan)
        forced["recharge_forcing"] = np.where(top, 1e-3 * source.uniform(0.5, 1, 36), np.nan)
        forced["sea_level_forcing"] = np.where(forced["node"] % 7 == 0, tide, np.nan)
        made[FORCINGS, step] = forced
    return {key: table.map(repr_of) for key, table in made.items()}


def repr_of(value):
    return "" if pd.isna(value) else repr(value)


class Case:
    """Files of a mutation, and what it says of them."""

    def __init__(self, base, draw):
        self.base, self.draw, self.place = base, draw, base
        self.tables, self.texts, self.missing = tables(), {}, None
        self.names = {key: f"{key[1]:04d}.csv" for key in self.tables}
        self.warns = None
        """Column of which a warning has to tell, as values have changed."""
        self.left_out = None
        """Whether other samples than the clean ones are right: those that pandas finds."""

    def path(self, key):
        return self.base / key[0] / self.names[key]

    def some(self, folder=None):
        """Keys of one file, or of all of a folder."""
        folder = folder or self.draw.choice([ALL, FORCINGS])
        if self.draw.random() < 0.3:
            return [key for key in self.tables if key[0] == folder]
        return [self.one(folder)]

    def one(self, folder=None):
        key = folder or self.draw.choice([ALL, FORCINGS]), self.draw.choice([0, 1, 3, STEPS - 1])
        self.place = self.path(key)
        return key

    def text(self, key):
        return self.texts.get(key) or self.tables[key].to_csv(index=False).encode()

    def write(self):
        shutil.rmtree(self.base, ignore_errors=True)
        for key in self.tables:
            self.path(key).parent.mkdir(parents=True, exist_ok=True)
            self.path(key).write_bytes(self.text(key))
        return self.place


def shuffled_columns(case):
    for key in case.some():
        table = case.tables[key]
        case.tables[key] = table[case.draw.sample([*table], table.shape[1])]


def shuffled_rows(case):
    for key in case.some():
        case.tables[key] = case.tables[key].sample(frac=1, random_state=case.draw.randrange(10**6))


def renamed(case):
    key = case.one()
    name = case.draw.choice([*case.tables[key]])
    to = case.draw.choice([name.upper(), name.lower(), f" {name}", f"{name}.1", f'"{name}"', "x"])
    case.texts[key] = case.text(key).replace(name.encode(), to.encode(), 1)


def doubled(case):
    row = case.draw.randrange(36)
    for key in case.some():
        table = case.tables[key]
        case.tables[key] = pd.concat([table.iloc[: row + 1], table.iloc[row:]])


def cut_rows(case):
    rows = case.draw.sample(range(36), case.draw.choice([1, 5]))
    case.left_out = True
    for key in case.some():
        case.tables[key] = case.tables[key].drop(index=rows)


def blanked(case):
    key = case.one()
    name, row = case.draw.choice([*case.tables[key]]), case.draw.randrange(36)
    value = case.draw.choice(["", "NaN", "?", " ", "n/a", "-"])
    case.left_out = key[0] == FORCINGS and value in ("", "NaN")
    case.tables[key].loc[row, name] = value


def sentinel(case):
    keys = case.some()
    name = case.draw.choice([n for n in case.tables[keys[0]] if n not in ("node", "ts")])
    rows = case.draw.sample(range(36), case.draw.choice([1, 3, 12, 36]))
    if name in FORCED and case.draw.random() < 0.7:
        rows = [row for row in rows if case.tables[keys[0]].loc[row, name]] or rows
    value = case.draw.choice(SENTINELS)
    for key in keys:
        case.tables[key].loc[rows, name] = value


def declared(case):
    """-999 in fields, which the configuration masks or refuses, or in forcings, where it is no value."""
    case.missing = MaskedMissing(value=-999, then=case.draw.choice(["mask", "refuse"]))
    case.left_out = True
    key, rows = case.one(), case.draw.sample(range(36), 3)
    name = case.draw.choice(FIELDS if key[0] == ALL else FORCED)
    case.tables[key].loc[rows, name] = case.draw.choice(["-999", "-999.0", "-9.99e2"])


def said_unit(case):
    """A unit in the header, with values in it."""
    name, unit, factor = case.draw.choice(
        [
            ("head", "m", 1), ("head", "meter", 1), ("head", "m a.s.l.", 1), ("head", "ft", 0.3048),
            ("head", "cm", 0.01), ("mass_concentration", "mg/l", 1), ("mass_concentration", "g/m3", 1),
            ("mass_concentration", "mg l-1", 1), ("mass_concentration", "g/l", 1e3), ("pressure", "kPa", 1),
            ("mass_concentration", "kg/m3", 1e3), ("mass_concentration", "µg/L", 1e-3), ("X", "km", 1e3),
            ("pressure", "bar", 100), ("pressure", "Pa", 1e-3), ("X", "m", 1), ("Z", "ft", 0.3048),
        ]
    )  # fmt: skip
    for key in case.some(ALL):
        table = case.tables[key]
        if factor != 1:
            table[name] = (table[name].astype(float) / factor).map(repr)
        case.tables[key] = table.rename(columns={name: f"{name} [{unit}]"})


def said_time(case):
    unit, factor = case.draw.choice([("days", 1), ("h", 24), ("s", 86400), ("a", 1 / 365.25)])
    for key in case.some(ALL):
        times = (case.tables[key]["time (d)"].astype(float) * factor).map(repr)
        table = case.tables[key].assign(**{"time (d)": times})
        case.tables[key] = table.rename(columns={"time (d)": f"time ({unit})"})


def unsaid_unit(case):
    name, factor = case.draw.choice(
        [("head", 100), ("head", 1000), ("pressure", 1000), ("pressure", 0.01), ("pressure", 10),
         ("mass_concentration", 1e-3), ("mass_concentration", 1e3), ("pressure", 1 / 9.8)]
    )  # fmt: skip
    keys, case.warns = case.some(ALL), name
    for key in keys:
        case.tables[key][name] = (case.tables[key][name].astype(float) * factor).map(repr)


def moved(case):
    """A label of some rows that contradicts other files."""
    key = case.one(ALL)
    name = case.draw.choice(["X", "Y", "Z", "slice", "time (d)"])
    rows = case.draw.sample(range(36), case.draw.choice([1, 36]) if name != "time (d)" else 3)
    changed = case.tables[key].loc[rows, name].astype(float) + 1
    case.tables[key].loc[rows, name] = changed.map(repr)


def rolled_nodes(case):
    key = case.one(ALL)
    case.tables[key]["node"] = np.roll(case.tables[key]["node"], case.draw.choice([1, 5, 12]))


def flipped_nodes(case):
    key = case.one(ALL)
    case.tables[key]["node"] = case.tables[key]["node"].to_numpy()[::-1]


def labelled_forcings(case):
    """Times and places in forcings, right ones or those of another file."""
    right = case.draw.random() < 0.5
    names = case.draw.sample(["time (d)", *PLACE], 2)
    for key in case.some(FORCINGS):
        other = case.tables[ALL, key[1]].copy()
        if not right:
            other["time (d)"] = case.tables[ALL, (key[1] + 1) % STEPS]["time (d)"]
            other[PLACE] = other[PLACE].to_numpy()[::-1]
        for name in names:
            case.tables[key][name] = other[name]


def exchanged_files(case):
    one, other = (ALL, case.draw.randrange(STEPS - 1)), (ALL, STEPS - 1)
    case.tables[one], case.tables[other] = case.tables[other], case.tables[one]


def copied_file(case):
    key = case.one(ALL)
    case.tables[key] = case.tables[ALL, (key[1] + case.draw.choice([1, 2])) % STEPS]


def left_out_file(case):
    """Directories thinned in time are read, a missing file of forcings is refused."""
    key, case.left_out = case.one(), True
    case.place = case.base / key[0]
    del case.tables[key]
    if key[0] == ALL and case.draw.random() < 0.5:
        del case.tables[FORCINGS, key[1]]


def times_in_one_file(case):
    first = case.draw.randrange(STEPS - 1)
    case.place = case.path((ALL, first))
    case.tables[ALL, first] = pd.concat([case.tables.pop((ALL, n)) for n in (first, first + 1)])


def divided_by_variable(case):
    name = case.draw.choice(FIELDS)
    for key in [key for key in case.tables if key[0] == ALL]:
        case.tables[ALL, key[1] + 100] = case.tables[key][["node", "time (d)", *PLACE, name]]
        case.names[ALL, key[1] + 100] = f"{key[1] + 100:04d}.csv"
        case.tables[key] = case.tables[key].drop(columns=name)


def renumbered(case):
    for key in case.tables:
        case.names[key] = f"{7 * key[1]}.csv"


def cut(case):
    key = case.one()
    text = case.text(key)
    case.texts[key] = text[: case.draw.randrange(5, len(text))].removesuffix(b"\n")


def no_newline(case):
    """In no file, and one of them is cut in its last row."""
    for key in case.tables:
        case.texts[key] = case.text(key).removesuffix(b"\n")
    if case.draw.random() < 0.7:
        key = case.one()
        case.texts[key] = case.texts[key][: -case.draw.choice([1, 2, 5, 7, 12, 18])]


def cell_more_or_less(case):
    key = case.one()
    lines = case.text(key).decode().split("\n")
    row = case.draw.randrange(1, len(lines) - 1)
    line = lines[row]
    lines[row] = case.draw.choice(
        [
            f"{line},1",
            f"{line},",
            line.rpartition(",")[0],
            "",
            f"{line}\n{lines[0]}",
            f"# {line}",
            f'"{line}',
        ]
    )
    case.texts[key] = "\n".join(lines).encode()


def other_dialect(case):
    change = case.draw.choice(
        [
            lambda text: text.replace(b",", b";"),
            lambda text: text.replace(b",", b";").replace(b".", b","),
            lambda text: text.replace(b".", b","),
            lambda text: text.replace(b",", b"\t"),
            lambda text: text.replace(b",", b" "),
            lambda text: text.replace(b",", b", "),
            lambda text: text.replace(b"\n", b"\r\n"),
            lambda text: text.replace(b"\n", b"\r"),
            lambda text: b"\xef\xbb\xbf" + text,
            lambda text: text.decode().encode("utf-16"),
            lambda text: b"# FEFLOW 8\n" + text,
            lambda text: text + b"\n\n",
            lambda text: text.replace(b"node", b'"node"', 1),
            lambda text: b"",
        ]
    )
    for key in case.some():
        case.texts[key] = change(case.text(key))


def packed(case):
    is_cut = case.draw.random() < 0.5
    for key in case.some():
        case.place = case.base if case.place == case.base else case.path(key).with_suffix(".csv.gz")
        case.names[key] += ".gz"
        case.texts[key] = gzip.compress(case.text(key))
        if is_cut:
            case.texts[key] = case.texts[key][: case.draw.randrange(len(case.texts[key]))]


MUTATIONS = [
    shuffled_columns, shuffled_rows, renamed, doubled, cut_rows, blanked, sentinel, sentinel, sentinel,
    declared, said_unit, said_time, unsaid_unit, moved, rolled_nodes, flipped_nodes, labelled_forcings,
    exchanged_files, copied_file, left_out_file, times_in_one_file, divided_by_variable, renumbered, cut,
    cut, no_newline, cell_more_or_less, other_dialect, other_dialect, packed,
]  # fmt: skip


def by_pandas(case):
    """Samples by node and time, of whatever files there are, by the names of columns alone."""
    found, nodes = {}, None
    for path in sorted((case.base / ALL).iterdir(), key=lambda one: int(one.name.split(".")[0])):
        fields, forced = (
            pd.read_csv(case.base / folder / path.name).set_index("node")
            for folder in (ALL, FORCINGS)
        )
        if case.missing:
            bad = (fields[FIELDS] == -999).any(axis=1)
            nodes = (fields.index if nodes is None else nodes).difference(fields.index[bad])
            forced = forced.mask(forced == -999)
        found[float(fields["time (d)"].iloc[0])] = fields.join(forced)[[*PLACE, *FIELDS, *FORCED]]
    return {time: table if nodes is None else table.loc[nodes] for time, table in found.items()}


def by_millrace(case, output):
    preprocess(
        case.base, output, variables=FIELDS, forcings=FORCED, split=SPLIT, missing=case.missing
    )
    with h5py.File(output) as file:
        forced = np.where(file["forcing_mask"][()] == 1, file["forcing"][()], np.nan)
        return {
            time: pd.DataFrame(
                np.c_[file["coords"], file["slice"], file["obs"][step], forced[step]],
                index=file["node"][()],
                columns=[*PLACE, *FIELDS, *FORCED],
            )
            for step, time in enumerate(file["time"][()])
        }


def same(one, other):
    return [*one] == [*other] and all(
        set(one[time].index) == set(other[time].index)
        and np.allclose(
            one[time], other[time].loc[one[time].index], rtol=2e-7, atol=0, equal_nan=True
        )
        for time in one
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dtype")
def test_mutated_files_of_a_mesh_are_read_rightly_or_refused_with_their_file(tmp_path):
    cases = []

    def write(mutation, draw):
        case = Case(tmp_path / "raw", draw)
        cases[:] = [case]
        mutation(case)
        return case.write()

    def read():
        with (
            contextlib.redirect_stderr(io.StringIO()) as told,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            found = by_millrace(cases[0], tmp_path / "series.h5")
        return found, told.getvalue()

    def fault(found, _):
        (samples, told), [case] = found, cases
        if case.warns:
            return None if f"{case.warns} " in told else f"no warning of {case.warns}"
        expected = by_pandas(case) if case.left_out else clean
        return None if same(samples, expected) else "other samples"

    write(renumbered, random.Random(0))
    clean = by_pandas(cases[0])
    assert same(read()[0], clean)
    refused = try_mutations(MUTATIONS, write, read, fault)
    assert NUMBER / 3 < refused < NUMBER
