"""Series read in parts: the same file, bit by bit, whatever their number."""

import json

import h5py
import numpy as np
import pytest

from millrace.data.hdf5 import open_checked
from millrace.data.shares import Share
from millrace.data.split import SplitConfig
from millrace.errors import DataError
from millrace.systems.groundwater.graphs import build_graphs
from millrace.systems.groundwater.missing_nodes import find_missing, gather_missing
from millrace.systems.groundwater.patches import extract_patches
from millrace.systems.groundwater.planes import extract_planes
from millrace.systems.groundwater.series import SCHEMA, RawSeries, preprocess
from millrace.systems.groundwater.series_parts import gather_series, preprocess_part
from millrace.systems.groundwater.settings import MaskedMissing, PatchConfig, PlaneConfig
from millrace.systems.groundwater.units import UNITS

# The training range ends within a part.
PLAIN = {
    "variables": ("mass_concentration", "head"),
    "forcings": None,
    "split": SplitConfig(train=0.6, validation=0.2, gap=1),
}
MASKED = PLAIN | {"missing": MaskedMissing(value=-999, then="mask")}


def edit(base, folder, numbers, column, nodes, value):
    for number in numbers:
        path = base / folder / f"{number:04d}.csv"
        header, *lines = path.read_text().splitlines()
        field = header.split(",").index(column)
        for node in nodes:
            cells = lines[node - 1].split(",")
            cells[field] = value
            lines[node - 1] = ",".join(cells)
        path.write_text("\n".join([header, *lines]) + "\n")


def give_late(base):
    """Recharge and sea level begin within the first part and the second: those after do not know when."""
    edit(base, "forcings_corrected_all", range(3), "recharge_forcing", range(1, 121), "")
    edit(base, "forcings_corrected_all", range(5), "sea_level_forcing", range(1, 121), "")


def dry_up(base):
    edit(base, "all", range(14), "head", [3, 40], "-999")
    edit(base, "all", [7], "mass_concentration", [77], "-999")
    edit(base, "forcings_corrected_all", [6], "head_bc", [11], "-999")


CASES = {
    "as it is": (lambda base: None, PLAIN),
    "clipped": (lambda base: None, PLAIN | {"clip_negative_concentration": True}),
    "without forcings": (lambda base: None, PLAIN | {"forcings": ()}),
    "forcings that begin late": (give_late, PLAIN),
    "masked": (dry_up, MASKED | {"clip_negative_concentration": True}),
    "a column of its own": (
        lambda base: None,
        PLAIN | {"variables": ("ts",), "units": {"ts": "1"}},
    ),
}


def in_parts(base, folder, parts, options):
    """Files of the parts, the last one made first."""
    (folder / "parts").mkdir(parents=True)
    shares = {number: Share(number, parts) for number in reversed(range(parts))}
    masked = gather_mask(base, folder, shares, options)
    files = [folder / f"parts/series_{number}.h5" for number in range(parts)]
    for number, share in shares.items():
        preprocess_part(RawSeries(base, **options), files[number], share, masked)
    gather_series(RawSeries(base, **options), files, folder / "series.h5", masked)
    return files


def gather_mask(base, folder, shares, options):
    missing = options.get("missing")
    if not missing or missing.then != "mask":
        return None
    keys = {"variables": options["variables"], "units": UNITS, "value": missing.value}
    nodes = {number: folder / f"parts/missing_{number}.h5" for number in shares}
    for number, share in shares.items():
        find_missing(base, nodes[number], share=share, **keys)
    gather_missing([*nodes.values()], base, folder / "missing.h5", **keys)
    return folder / "missing.h5"


def content(path, schema=SCHEMA):
    """Bytes of all datasets, and all attributes."""
    with open_checked(path, schema) as file:
        found = {f"@{key}": str(value) for key, value in file.attrs.items() if key[:4] != "part"}

        def note(name, one):
            found.update({f"{name}@{key}": str(value) for key, value in one.attrs.items()})
            if isinstance(one, h5py.Dataset):
                found[name] = (str(one.dtype), one.shape, one[()].tobytes())

        file.visititems(note)
    return found


@pytest.mark.parametrize("parts", [1, 3, 50])
@pytest.mark.parametrize("case", CASES)
def test_parts_do_not_show(write_aquifer, tmp_path, case, parts) -> None:
    change, options = CASES[case]
    base = write_aquifer(tmp_path / "raw", steps=14).base
    change(base)
    preprocess(base, tmp_path / "whole/series.h5", **options)
    in_parts(base, tmp_path / "parted", parts, options)
    whole = content(tmp_path / "whole/series.h5")
    assert {"obs", "forcing", "time", "stats/increment_std", "@digest"} <= whole.keys()
    assert ("masked/coords" in whole) == (case == "masked")
    assert content(tmp_path / "parted/series.h5") == whole
    accounts = [tmp_path / f"{name}/samples.json" for name in ("whole", "parted")]
    assert len({path.read_bytes() for path in accounts}) == 1


def test_samples_are_those_of_the_whole(write_aquifer, tmp_path) -> None:
    aquifer = write_aquifer(tmp_path / "raw", per_slice=120)
    preprocess(aquifer.base, tmp_path / "whole/series.h5", **PLAIN)
    in_parts(aquifer.base, tmp_path / "made", 3, PLAIN)
    (tmp_path / "made").rename(tmp_path / "parted")
    section = tuple(tuple(aquifer.coords[node, :2]) for node in (0, 5))  # with boundary values
    found = []
    for name in ("whole", "parted"):
        folder = tmp_path / name
        series, patches = folder / "series.h5", folder / "patches.h5"
        extract_patches(series, patches, PatchConfig(slice_groups=2, clusters=2))
        build_graphs(patches, folder / "graph.h5", (4, 4, 3), 0.6)
        for stem, keys in (("ends", {"transects": (section,)}), ("shore", {"count": 1})):
            config = PlaneConfig(shape=(8, 6), **keys)
            extract_planes(series, folder / f"{stem}.h5", config)
        schemas = {"patches": "patches", "graph": "graph", "ends": "planes", "shore": "planes"}
        found.append(
            [content(folder / f"{one}.h5", f"millrace.{schemas[one]}/1") for one in schemas]
        )
    assert found[0] == found[1]


def test_states_stay_in_the_parts(aquifer, tmp_path) -> None:
    files = in_parts(aquifer.base, tmp_path, 3, PLAIN)
    with h5py.File(tmp_path / "series.h5") as file:
        assert all(file[name].is_virtual for name in ("obs", "forcing", "forcing_mask"))
    lengths = []
    for path in files:
        with h5py.File(path) as file:
            lengths.append(len(file["obs"]))
            assert "coords" not in file, "the mesh is stored once"
    assert lengths == [4, 4, 4]
    files[1].unlink()
    with (
        pytest.raises(DataError, match=r"parts/series_1\.h5: is missing.*make the samples again"),
        open_checked(tmp_path / "series.h5", SCHEMA),
    ):
        pass


def test_a_part_reads_its_own_files_and_what_came_first(aquifer, tmp_path) -> None:
    files = sorted((aquifer.base / "all").iterdir())
    for number in (2, 3, 4, 5, 6, 7, 10, 11):
        files[number].write_text("not read")
    preprocess_part(RawSeries(aquifer.base, **PLAIN), tmp_path / "9.h5", Share(9, 12))
    files[1].write_text("not read")
    with pytest.raises(DataError, match=r"0001\.csv:1:4"):
        preprocess_part(RawSeries(aquifer.base, **PLAIN), tmp_path / "1.h5", Share(1, 12))


def replace_cell(path, row, name, value):
    header, *lines = path.read_text().splitlines()
    field = header.split(",").index(name)
    cells = lines[row].split(",")
    cells[field] = value
    lines[row] = ",".join(cells)
    path.write_text("\n".join([header, *lines]) + "\n")


def set_time(path, value):
    header, *lines = path.read_text().splitlines()
    rows = (line.split(",") for line in lines)
    path.write_text("\n".join([header, *(",".join([*r[:2], value, *r[3:]]) for r in rows)]) + "\n")


# What is done to file 4, which begins a part of three.
DAMAGE = {
    "a word": lambda path: replace_cell(path, 6, "head", "dry"),
    "another mesh": lambda path: replace_cell(path, 6, "Z", "7.5"),
    "another node": lambda path: replace_cell(path, 6, "node", "700"),
    "no newline at the end": lambda path: path.write_text(path.read_text().rstrip("\n")),
    "the time of the file before": lambda path: set_time(
        path, path.with_name("0003.csv").read_text().splitlines()[1].split(",")[2]
    ),
    "another unit": lambda path: [
        replace_cell(path, row, "head", f"{100 * (1 + 0.01 * row):.4f}") for row in range(120)
    ],
    "no-data values": lambda path: [replace_cell(path, row, "head", "-999") for row in (6, 8)],
}


@pytest.mark.parametrize("case", DAMAGE)
def test_errors_are_those_of_the_whole(aquifer, tmp_path, case) -> None:
    for number in range(12):  # heads that change little
        path = aquifer.base / f"all/{number:04d}.csv"
        header, *lines = path.read_text().splitlines()
        lines = [
            ",".join([*line.split(",")[:-1], f"{1 + 0.01 * row + 1e-4 * number:.6f}"])
            for row, line in enumerate(lines)
        ]
        path.write_text("\n".join([header, *lines]) + "\n")
    DAMAGE[case](aquifer.base / "all/0004.csv")
    told = []
    for make in (
        lambda: preprocess(aquifer.base, tmp_path / "series.h5", **PLAIN),
        lambda: in_parts(aquifer.base, tmp_path / "parted", 3, PLAIN),
    ):
        with pytest.raises(DataError) as error:
            make()
        told.append(str(error.value))
    assert told[0] == told[1]
    assert "all/0004.csv:" in told[0]
    assert not (tmp_path / "parted/series.h5").exists()


def test_a_no_data_value_is_judged_by_all_parts(aquifer, tmp_path) -> None:
    """Three times a number that programs do not use for it, once in each part."""
    for number in (2, 5, 9):
        edit(aquifer.base, "all", [number], "mass_concentration", [9], "-12345678")
    told = []
    for make in (
        lambda: preprocess(aquifer.base, tmp_path / "series.h5", **PLAIN),
        lambda: in_parts(aquifer.base, tmp_path / "parted", 3, PLAIN),
    ):
        with pytest.raises(DataError, match=r"0002\.csv:10:.*stands there 3 times") as error:
            make()
        told.append(str(error.value))
    assert told[0] == told[1]


def test_what_is_not_plausible_is_told_once(aquifer, tmp_path, capfd) -> None:
    for number in range(12):
        for column in ("head", "pressure"):
            path = aquifer.base / f"all/{number:04d}.csv"
            header, *lines = path.read_text().splitlines()
            field = header.split(",").index(column)
            rows = [line.split(",") for line in lines]
            for row in rows:
                row[field] = repr(float(row[field]) * (100 if column == "head" else 1000) + 50)
            path.write_text("\n".join([header, *map(",".join, rows)]) + "\n")
    options = PLAIN | {"variables": ("pressure", "head")}
    told = []
    for make in (
        lambda: preprocess(aquifer.base, tmp_path / "series.h5", **options),
        lambda: in_parts(aquifer.base, tmp_path / "parted", 3, options),
    ):
        make()
        told.append([li for li in capfd.readouterr().err.splitlines() if "WARNING" in li])
    assert len(told[0]) == 2
    assert told[0] == told[1]


def test_parts_of_other_settings_or_units_are_refused(aquifer, tmp_path) -> None:
    files, output = in_parts(aquifer.base, tmp_path, 3, PLAIN), tmp_path / "other.h5"
    raw, told = RawSeries(aquifer.base, **PLAIN), r"other\.h5: its parts do not hold .* such as 8;"
    with pytest.raises(DataError, match=told):
        gather_series(raw, files[:2], output)
    with pytest.raises(DataError, match=r"series_1\.h5: holds 4, as .*series_1\.h5 does"):
        gather_series(raw, [*files, files[1]], output)
    clipped = RawSeries(aquifer.base, **PLAIN, clip_negative_concentration=True)
    preprocess_part(clipped, files[2], Share(2, 3))
    told = r"series_2\.h5: of other raw files or settings \(options\)"
    with pytest.raises(DataError, match=told):
        gather_series(raw, files, output)
    assert not output.exists()


def test_masks_of_other_nodes_or_of_all_are_refused(write_aquifer, tmp_path) -> None:
    base, other = (
        write_aquifer(tmp_path / name, per_slice=n).base for name, n in (("a", 30), ("b", 20))
    )
    in_parts(other, tmp_path / "made", 2, MASKED)
    with pytest.raises(DataError, match=r"missing\.h5: of other raw files or settings"):
        preprocess_part(
            RawSeries(base, **MASKED), tmp_path / "0.h5", Share(0, 2), tmp_path / "made/missing.h5"
        )
    in_parts(base, tmp_path / "same", 2, MASKED)
    for changed in ({"variables": ["head"]}, {"missing": MASKED["missing"].replaced(value=-998.0)}):
        with pytest.raises(DataError, match="of other raw files or settings"):
            preprocess_part(
                RawSeries(base, **MASKED | changed),
                tmp_path / "0.h5",
                Share(0, 2),
                tmp_path / "same/missing.h5",
            )
    edit(base, "all", [8], "head", range(1, 121), "-999")
    with pytest.raises(DataError, match="every node is -999 at some time"):
        in_parts(base, tmp_path / "none", 3, MASKED)


def test_masks_are_the_same_in_all_parts(write_aquifer, tmp_path) -> None:
    base = write_aquifer(tmp_path / "raw", steps=14).base
    dry_up(base)
    files = in_parts(base, tmp_path / "made", 3, MASKED)
    shapes = set()
    for path in files:
        with h5py.File(path) as file:
            shapes.add(file["obs"].shape[1])
    assert shapes == {117}, "a node that is dry in one part is left out of all"
    account = json.loads((tmp_path / "made/samples.json").read_text())
    assert account["nodes"]["left_out"] == {"have -999 at some time": 3}
    with h5py.File(files[1]) as file:
        assert np.isfinite(file["obs"][()]).all()
