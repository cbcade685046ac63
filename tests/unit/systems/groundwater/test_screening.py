"""No-data values and other units in the files of a mesh are refused, masked or told."""

import re

import h5py
import numpy as np
import pandas as pd
import pytest

from millrace.data.split import SplitConfig
from millrace.errors import DataError
from millrace.systems.groundwater.patches import extract_patches
from millrace.systems.groundwater.planes import extract_planes
from millrace.systems.groundwater.series import preprocess
from millrace.systems.groundwater.settings import MaskedMissing, PatchConfig, PlaneConfig

OPTIONS = {
    "variables": ("mass_concentration", "pressure", "head"),
    "forcings": None,
    "split": SplitConfig(train=0.5, validation=0.2, gap=1),
}
FIELDS, FORCINGS = "all", "forcings_corrected_all"


def edit(base, folder, number, column, nodes, value) -> None:
    """Write a value into a column at some nodes of a file, and leave the rest of its text as it is."""
    path = base / folder / f"{number:04d}.csv"
    header, *lines = path.read_text().splitlines()
    field = header.split(",").index(column)
    for node in nodes:
        cells = lines[node - 1].split(",")
        cells[field] = value
        lines[node - 1] = ",".join(cells)
    path.write_text("\n".join([header, *lines]) + "\n")


# name: (folder, files, column, nodes, text)
NO_DATA = {
    "dry nodes at all times": (FIELDS, range(12), "head", [3, 4, 50], "1e30"),
    "a fill value of NetCDF, once": (FIELDS, [11], "head", [7], "9.96921e36"),
    "in the test period only": (FIELDS, [10, 11], "head", [30], "-999"),
    "among concentrations, once": (FIELDS, [5], "mass_concentration", [9], "-9999"),
    "an unusual number at all times": (FIELDS, range(12), "pressure", [12], "-123456"),
    "a whole file": (FIELDS, [4], "head", range(1, 121), "-999.0"),
    "a boundary value": (FORCINGS, [2, 3], "head_bc", [11], "1e20"),
    "recharge": (FORCINGS, [2], "recharge_forcing", [1], "-9999"),
    "an elevation": (FIELDS, range(12), "Z", [20], "-9999"),
}


@pytest.mark.parametrize("case", NO_DATA)
def test_a_no_data_value_is_refused_where_it_stands_first(aquifer, tmp_path, case) -> None:
    folder, files, column, nodes, text = NO_DATA[case]
    for number in files:
        edit(aquifer.base, folder, number, column, nodes, text)
    path = aquifer.base / folder / f"{files[0]:04d}.csv"
    lines = path.read_text().splitlines()
    before = lines[nodes[0]].split(",")[: lines[0].split(",").index(column)]
    place = f"{path}:{nodes[0] + 1}:{len(','.join(before)) + 2}: "
    with pytest.raises(DataError) as caught:
        preprocess(aquifer.base, tmp_path / "series.h5", **OPTIONS)
    assert str(caught.value).startswith(
        f"{place}{float(text):g} at node {nodes[0]} in {column!r} looks like a no-data value"
    )
    assert re.search(r"missing of the dataset.*then: (mask|keep)", str(caught.value))
    assert not list(tmp_path.glob("*.h5"))


@pytest.fixture
def dry(aquifer):
    """Nodes that are dry at all times or at some, of which one in a forcing as well."""
    for number in range(12):
        edit(aquifer.base, FIELDS, number, "head", [3, 40], "-999")
    edit(aquifer.base, FIELDS, 11, "pressure", [77], "-999")
    edit(aquifer.base, FORCINGS, 6, "head_bc", [11], "-999")
    return aquifer


def test_masked_nodes_are_left_out_of_samples_and_statistics(dry, tmp_path) -> None:
    """The oracle is the same directory without their rows, and with a blank boundary value."""
    mask = MaskedMissing(value=-999, then="mask")
    preprocess(dry.base, tmp_path / "masked.h5", **OPTIONS, missing=mask)
    for path in (dry.base / FIELDS).glob("*.csv"):
        table = pd.read_csv(path, dtype=str)
        table[~table.node.isin(["3", "40", "77"])].to_csv(path, index=False)
    for path in (dry.base / FORCINGS).glob("*.csv"):
        table = pd.read_csv(path, dtype=str).replace("-999", "")
        table[~table.node.isin(["3", "40", "77"])].to_csv(path, index=False)
    preprocess(dry.base, tmp_path / "clean.h5", **OPTIONS)
    with h5py.File(tmp_path / "masked.h5") as found, h5py.File(tmp_path / "clean.h5") as expected:
        names = ["obs", "forcing", "forcing_mask", "coords", "node", "slice", "time", "split"]
        for name in [*names, *(f"stats/{one}" for one in expected["stats"])]:
            np.testing.assert_array_equal(found[name][()], expected[name][()], name)
        assert len(found["masked/coords"]) == 3
    extract_patches(tmp_path / "masked.h5", tmp_path / "p.h5", PatchConfig(clusters=2))
    with h5py.File(tmp_path / "p.h5") as file:
        patches = [file[name] for name in file if name.startswith("patch_")]
        assert sum(len(patch["core_node"]) for patch in patches) == 117
        assert min(patch["obs"][..., 2].min() for patch in patches) > -100


def test_cells_of_sections_beside_masked_nodes_are_outside(dry, tmp_path) -> None:
    plan = dry.coords[:, :2]
    ends = (tuple(plan.min(axis=0) + 15), tuple(plan.max(axis=0) - 15))
    config = PlaneConfig(transects=(ends,), shape=(24, 24))
    masks = {}
    for then in ("keep", "mask"):
        missing = MaskedMissing(value=-999, then=then)
        preprocess(dry.base, tmp_path / f"{then}.h5", **OPTIONS, missing=missing)
        extract_planes(tmp_path / f"{then}.h5", tmp_path / f"planes_{then}.h5", config)
        with h5py.File(tmp_path / f"planes_{then}.h5") as file:
            masks[then] = file["plane_00/mask"][()].astype(bool)
            field = file["plane_00/field"][()]
    with h5py.File(tmp_path / "planes_keep.h5") as file:
        touched = (file["plane_00/field"][..., 1:] < -20).any(axis=(0, 3))
    assert touched.any()
    assert not (masks["mask"] & touched).any()
    assert masks["mask"].sum() > 0.4 * masks["keep"].sum()
    assert (field[:, ~masks["mask"]] == 0).all()


def test_a_directory_of_missing_nodes_is_refused(aquifer, tmp_path) -> None:
    edit(aquifer.base, FIELDS, 4, "head", range(1, 121), "-999")
    missing = MaskedMissing(value=-999, then="mask")
    with pytest.raises(DataError, match="every node is -999 at some time"):
        preprocess(aquifer.base, tmp_path / "s.h5", **OPTIONS, missing=missing)


def test_a_value_that_is_declared_as_data_is_kept(dry, tmp_path) -> None:
    missing = MaskedMissing(value=-999, then="keep")
    preprocess(dry.base, tmp_path / "s.h5", **OPTIONS, missing=missing)
    with h5py.File(tmp_path / "s.h5") as file:
        assert (file["obs"][:, 2, 2] == -999).all()


# name: (column, factor, offset, words of the warning, None: there is none)
UNITS = {
    "as expected": ("head", 1, 0, None),
    "heads in cm": ("head", 100, 50, "look like cm"),
    "heads in mm": ("head", 1000, 0, "look like mm"),
    "heads above another datum": ("head", 1, 6_000, "head is 6000"),
    "salt in g/L": ("mass_concentration", None, 35, "look like g/L"),
    "salt as a share of mass": ("mass_concentration", None, 0.035, "look like kg/kg"),
    "salt in µg/L": ("mass_concentration", None, 3.5e7, "look like µg/L"),
    "nitrate in mg/L": ("mass_concentration", None, 50, None),
    "pressure in Pa": ("pressure", 1000, 0, "look like Pa"),
    "pressure in bar": ("pressure", 0.01, 0, "look like bar"),
    "pressure in hPa": ("pressure", 10, 0, "look like hPa"),
}


@pytest.mark.parametrize("case", UNITS)
def test_values_in_another_unit_are_told_with_the_likely_one(
    aquifer, tmp_path, capfd, case
) -> None:
    column, factor, other, words = UNITS[case]
    for path in (aquifer.base / FIELDS).glob("*.csv"):
        table = pd.read_csv(path)
        if column == "mass_concentration":
            table[column] = np.linspace(0, other, len(table))
        else:
            table[column] = table[column] * factor + other
        table.to_csv(path, index=False)
    options = OPTIONS | {"variables": ("head", column) if column != "head" else ("head",)}
    preprocess(aquifer.base, tmp_path / "s.h5", **options)
    warnings = [line for line in capfd.readouterr().err.splitlines() if "WARNING" in line]
    assert len(warnings) == (words is not None)
    assert (words or "") in "".join(warnings)
    preprocess(aquifer.base, tmp_path / "t.h5", **options, units={column: "1"})
    assert "WARNING" not in capfd.readouterr().err


# name: (column, function of the values, words, whether it is refused)
OTHER_FILES = {
    "concentrations in g/L": (
        "mass_concentration",
        lambda v: v / 1000,
        "0.001 times that of",
        True,
    ),
    "pressures in bar": ("pressure", lambda v: v / 100, r"0\.0100\d times that of", True),
    "heads in cm beside a tide": ("head", lambda v: 100 * (v + 0.1), "times that of", False),
    "temperatures in K": ("temperature", lambda v: v + 273.15, r"273\.\d+ above that of", True),
    "a tide": ("head", lambda v: v + 0.5, None, False),
    "a storm": ("mass_concentration", lambda v: v * np.linspace(1, 30, len(v)), None, False),
}


@pytest.mark.parametrize("case", OTHER_FILES)
@pytest.mark.parametrize("number", [3, 11])
def test_a_file_in_another_unit_than_the_one_before_is_refused_or_told(
    aquifer, tmp_path, capfd, case, number
) -> None:
    column, change, words, is_refused = OTHER_FILES[case]
    for path in (aquifer.base / FIELDS).glob("*.csv"):
        table = pd.read_csv(path)
        step = 1 + 0.001 * int(path.stem)  # states that change little
        table["mass_concentration"] = step * np.linspace(50, 30_000, len(table))
        table["pressure"] = step * np.linspace(10, 200, len(table))
        table["head"] = step * np.linspace(1.0, 3.0, len(table))
        table["temperature"] = step * np.linspace(8.0, 25.0, len(table))
        if int(path.stem) == number:
            table[column] = change(table[column].to_numpy())
        table.to_csv(path, index=False)
    options = {**OPTIONS, "variables": (*OPTIONS["variables"], "temperature")}
    path = aquifer.base / FIELDS / f"{number:04d}.csv"
    try:
        preprocess(aquifer.base, tmp_path / "s.h5", **options, units={"temperature": "degC"})
        told, refused = capfd.readouterr().err, False
    except DataError as error:
        told, refused = str(error), True
    assert refused == is_refused
    place = rf"{re.escape(str(path))}:2:\d+: {column} is .*{words}"
    assert re.search(place, told) if words else "that of" not in told


@pytest.mark.parametrize(("column", "value"), [("slice", -999), ("time (d)", 1e30)])
def test_no_data_values_in_slices_and_times_are_refused(aquifer, tmp_path, column, value) -> None:
    for path in (aquifer.base / FIELDS).glob("*.csv"):
        table = pd.read_csv(path)
        if column == "slice":
            table.loc[7, column] = value
        elif path.stem == "0011":
            table[column] = value
        table.to_csv(path, index=False)
    with pytest.raises(DataError, match=r"\.csv:\d+:\d+: .* looks like a no-data value"):
        preprocess(aquifer.base, tmp_path / "s.h5", **OPTIONS)
