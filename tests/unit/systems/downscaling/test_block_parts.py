"""Fields of ICON extracted in parts: the same file, bit by bit, whatever their number."""

import h5py
import netCDF4
import numpy as np
import pytest

from millrace.data.hdf5 import open_checked
from millrace.data.shares import Share
from millrace.data.split import SplitConfig
from millrace.errors import DataError
from millrace.systems.downscaling.blocks import SCHEMA, extract_blocks, extract_part, gather
from millrace.systems.downscaling.dataset import BlockDataset
from millrace.systems.downscaling.settings import BlockConfig, BlockDatasetConfig
from millrace.systems.downscaling.simulator.climate import ClimateConfig, write_climate

CONFIG = BlockConfig(levels=2)
# The training period ends within a file, and within times whose sum is kept.
SPLIT = SplitConfig(train=0.55, validation=0.25, gap=1)
STEPS = 90


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    path = tmp_path_factory.mktemp("parts") / "raw"
    write_climate(ClimateConfig(level=2, steps=STEPS, steps_per_file=9), path)
    return path


def in_parts(raw, folder, parts, config=CONFIG):
    (folder / "parts").mkdir(parents=True)
    files = [folder / f"parts/blocks_{number}.h5" for number in range(parts)]
    for number in reversed(range(parts)):
        extract_part(raw, files[number], config, Share(number, parts))
    gather(files, raw, folder / "blocks.h5", config, SPLIT)
    return files


def content(path):
    """Bytes of all datasets, and the attributes."""
    with open_checked(path, SCHEMA) as file:
        found = {}
        file.visititems(
            lambda name, one: (
                found.update({name: one[()].tobytes()}) if isinstance(one, h5py.Dataset) else None
            )
        )
        return found | {
            name: str(value) for name, value in file.attrs.items() if name[:4] != "part"
        }


@pytest.mark.parametrize("parts", [1, 3, 50])
def test_parts_do_not_show(raw, tmp_path, parts):
    extract_blocks(raw, tmp_path / "whole/blocks.h5", CONFIG, SPLIT)
    in_parts(raw, tmp_path / "parted", parts)
    whole = content(tmp_path / "whole/blocks.h5")
    assert {"fine", "coarse", "cell", "neighbours/2", "stats/residual_mean"} <= whole.keys()
    assert content(tmp_path / "parted/blocks.h5") == whole
    accounts = [tmp_path / f"{name}/samples.json" for name in ("whole", "parted")]
    assert len({path.read_bytes() for path in accounts}) == 1


def test_parts_of_csv_do_not_show_either(raw, tmp_path, monkeypatch):
    (tmp_path / "raw").mkdir()
    with h5py.File(_whole(raw, tmp_path)) as file:
        cells = np.argsort(file["cell"][()])
        place = file["geometry/centre"][()][cells]
        area, beside = file["geometry/area"][()][cells], file["neighbours/0"][()][cells]
        beside = file["cell"][()][beside]
        fields = file["fine"][:40, :, 0][:, cells]
    lon, lat = np.arctan2(place[:, 1], place[:, 0]), np.arcsin(place[:, 2])
    lines = ["cell,clon,clat,cell_area,neighbor_1,neighbor_2,neighbor_3,parent_1,parent_2"]
    for n in range(len(area)):
        numbers = (n + 1, lon[n], lat[n], area[n], *beside[n], n // 4 + 1, n // 16 + 1)
        lines.append(",".join(map(str, numbers)))
    (tmp_path / "raw/grid.csv").write_text("\n".join(lines) + "\n")
    times = np.datetime64("2020-01-01T00") + np.timedelta64(6, "h") * np.arange(40)
    for name, steps in (("a", range(25)), ("b", range(25, 40))):
        rows = [f"{times[t]},{n + 1},{fields[t, n]}" for t in steps for n in range(len(area))]
        (tmp_path / f"raw/{name}.csv").write_text("time,cell,tas\n" + "\n".join(rows) + "\n")
    monkeypatch.setattr("millrace.systems.downscaling.icon_csv.ROWS", 4000)  # 3.1 times
    extract_blocks(tmp_path / "raw", tmp_path / "csv/blocks.h5", CONFIG, SPLIT)
    in_parts(tmp_path / "raw", tmp_path / "parted", 2)
    whole = content(tmp_path / "csv/blocks.h5")
    assert content(tmp_path / "parted/blocks.h5") == whole
    assert np.array_equal(np.frombuffer(whole["fine"], "f4"), fields.ravel())
    (tmp_path / "raw/b.csv").write_text("of another part")
    extract_part(tmp_path / "raw", tmp_path / "0.h5", CONFIG, Share(0, 2))
    with pytest.raises(DataError, match=r"b\.csv:1: the header"):
        extract_part(tmp_path / "raw", tmp_path / "1.h5", CONFIG, Share(1, 2))


def _whole(raw, folder):
    extract_blocks(raw, folder / "netcdf/blocks.h5", CONFIG, SPLIT)
    return folder / "netcdf/blocks.h5"


def test_samples_come_from_the_parts_wherever_the_folder_is(raw, tmp_path):
    path = _whole(raw, tmp_path)
    in_parts(raw, tmp_path / "made", 3)
    (tmp_path / "made").rename(tmp_path / "moved")
    index = np.array([0, 8, 17, 30])
    whole, parted = (
        BlockDataset(one, BlockDatasetConfig(), cache_bytes=0).batch("train", 0, index)
        for one in (path, tmp_path / "moved/blocks.h5")
    )
    for name in ("y_BNV", "coarse_BMV", "features_BNF"):
        assert np.array_equal(getattr(whole, name), getattr(parted, name)), name


def test_parts_of_other_settings_or_times_are_refused(raw, tmp_path):
    files, output = in_parts(raw, tmp_path, 3), tmp_path / "other.h5"
    with pytest.raises(DataError, match=r"other\.h5: its parts do not hold what the raw files do"):
        gather(files[:2], raw, output, CONFIG, SPLIT)
    with pytest.raises(DataError, match=r"blocks_1\.h5: holds .*, as .*blocks_1\.h5 does"):
        gather([*files, files[1]], raw, output, CONFIG, SPLIT)
    extract_part(raw, files[1], BlockConfig(levels=1), Share(1, 3))
    with pytest.raises(DataError, match=r"blocks_1\.h5: of other raw files or settings \(c"):
        gather(files, raw, output, CONFIG, SPLIT)


def test_a_no_data_value_is_found_in_parts_as_in_the_whole(raw, tmp_path):
    write_climate(ClimateConfig(level=2, steps=STEPS, steps_per_file=9), tmp_path / "raw")
    for number in (0, 5, 8):  # once in each part
        [path] = (tmp_path / "raw/output").glob(f"*_000{number + 1}.nc")
        with netCDF4.Dataset(path, "r+") as file:
            file["tas"][1, 0, 17] = -999.0
    told = []
    for make in (
        lambda: extract_blocks(tmp_path / "raw", tmp_path / "blocks.h5", CONFIG, SPLIT),
        lambda: in_parts(tmp_path / "raw", tmp_path / "parted", 3),
    ):
        with pytest.raises(
            DataError, match=r"-999 at time 1, cell 18 .* stands there 3 times"
        ) as e:
            make()
        told.append(str(e.value))
    assert told[0] == told[1]
    assert not (tmp_path / "parted/blocks.h5").exists()


def test_files_of_other_parts_are_not_looked_into(raw, tmp_path):
    """But a file whose cells are those of another grid is refused by the part that reads it."""
    write_climate(ClimateConfig(level=2, steps=STEPS, steps_per_file=9), tmp_path / "raw")
    with netCDF4.Dataset(tmp_path / "raw/output/tas_0009.nc", "r+") as file:
        file["clat"][:] = file["clat"][:][::-1] * 0.5
    extract_part(tmp_path / "raw", tmp_path / "0.h5", CONFIG, Share(0, 3))
    with pytest.raises(DataError, match=r"tas_0009\.nc: uuidOfHGrid is that of"):
        extract_part(tmp_path / "raw", tmp_path / "2.h5", CONFIG, Share(2, 3))


def test_chunks_of_large_grids_are_whole_blocks_at_one_time(raw, tmp_path, monkeypatch):
    with h5py.File(_whole(raw, tmp_path)) as file:
        assert file["fine"].chunks == (STEPS, 1280, 1)
        fields = file["fine"][()]
    monkeypatch.setattr("millrace.data.hdf5.CHUNK_BYTES", 1000)
    monkeypatch.setattr("millrace.systems.downscaling.blocks.CHUNK_BYTES", 1000)
    extract_blocks(raw, tmp_path / "large/blocks.h5", CONFIG, SPLIT)
    with h5py.File(tmp_path / "large/blocks.h5") as file:
        assert file["fine"].chunks == (1, 15 * 16, 1)
        assert file["coarse"].chunks == (3, 80, 1)
        assert np.array_equal(file["fine"][()], fields)
