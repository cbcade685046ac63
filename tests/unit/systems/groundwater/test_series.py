"""The series holds what the files hold, with statistics of the training range."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import h5py
import numpy as np
import pytest

from millrace.data.hdf5 import open_checked
from millrace.data.split import Moments, SplitConfig, time_split
from millrace.errors import ConfigError, DataError
from millrace.systems.groundwater.series import SCHEMA, preprocess
from millrace.systems.groundwater.settings import MaskedMissing

PARTS = ("train", "validation", "gap")
SPLIT = SplitConfig(train=0.6, validation=0.2, gap=1)
OPTIONS = {"variables": ("mass_concentration", "head"), "forcings": None, "split": SPLIT}


def contents(path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def visit(name, item) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with open_checked(path, SCHEMA) as file:
        file.visititems(visit)
        found["digest"] = np.array(file.attrs["digest"])
    return found


def test_holds_what_the_files_hold(aquifer, tmp_path) -> None:
    calls = []
    path = tmp_path / "series.h5"
    preprocess(aquifer.base, path, **OPTIONS, progress=lambda *step: calls.append(step))
    series = contents(path)
    np.testing.assert_array_equal(series["time"], aquifer.time)
    np.testing.assert_array_equal(series["node"], np.arange(1, 121))
    np.testing.assert_array_equal(series["slice"], aquifer.slices)
    np.testing.assert_array_equal(series["coords"], aquifer.coords)
    np.testing.assert_array_equal(series["obs"], aquifer.obs[..., [0, 2]].astype(np.float32))
    given = np.isfinite(aquifer.forcing)
    np.testing.assert_array_equal(series["forcing_mask"], given)
    np.testing.assert_array_equal(
        series["forcing"], np.where(given, aquifer.forcing, 0).astype(np.float32)
    )
    assert [series[name].dtype for name in ("obs", "forcing", "forcing_mask", "slice")] == [
        np.float32,
        np.float32,
        np.uint8,
        np.int32,
    ]
    assert calls == [(step, 12) for step in range(1, 13)]
    with open_checked(path, SCHEMA) as file:
        assert list(file["obs"].attrs["variables"]) == ["mass_concentration", "head"]
        assert list(file["obs"].attrs["units"]) == ["mg/L", "m"]
        assert list(file["forcing"].attrs["variables"])[1] == "head_bc"
        assert file["obs"].fletcher32


def test_statistics_are_of_the_training_range(aquifer, tmp_path) -> None:
    preprocess(aquifer.base, tmp_path / "series.h5", **OPTIONS)
    series = contents(tmp_path / "series.h5")
    start, stop = series["split"][0]
    assert (start, stop) == (0, 6)
    train = series["obs"][:stop].astype(np.float64)
    np.testing.assert_allclose(series["stats/obs_mean"], train.mean((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(series["stats/obs_std"], train.std((0, 1)), rtol=1e-12)
    steps = np.diff(train, axis=0)
    np.testing.assert_allclose(series["stats/increment_std"], steps.std((0, 1)), rtol=1e-12)
    values = np.where(series["forcing_mask"], series["forcing"], np.nan)[:stop].astype(np.float64)
    np.testing.assert_allclose(series["stats/forcing_mean"], np.nanmean(values, (0, 1)), rtol=1e-9)
    np.testing.assert_allclose(series["stats/forcing_std"], np.nanstd(values, (0, 1)), rtol=1e-9)


def test_later_steps_do_not_change_the_statistics(aquifer, tmp_path) -> None:
    preprocess(aquifer.base, tmp_path / "a.h5", **OPTIONS)
    path = aquifer.base / "all" / "0011.csv"
    header, *rows = path.read_text().splitlines()
    rows = [",".join([*row.split(",")[:-1], "77.0"]) for row in rows]
    path.write_text("\n".join([header, *rows]) + "\n")
    preprocess(aquifer.base, tmp_path / "b.h5", **OPTIONS)
    a, b = contents(tmp_path / "a.h5"), contents(tmp_path / "b.h5")
    assert (b["obs"][11, :, 1] == 77).all()
    for name in a:
        if name.startswith("stats/"):
            np.testing.assert_array_equal(a[name], b[name])
    assert a["digest"] != b["digest"]


def test_any_column_is_kept_with_its_unit(aquifer, tmp_path) -> None:
    options = {**OPTIONS, "variables": ("head", "ts")}
    for name, unit in (("a", "1"), ("b", "step")):
        preprocess(aquifer.base, tmp_path / f"{name}.h5", **options, units={"ts": unit})
    series, same = contents(tmp_path / "a.h5"), contents(tmp_path / "b.h5")
    assert series["obs"][:, :, 1].tolist() == [[t] * 120 for t in range(12)]
    assert series["digest"] == same["digest"], "a unit is a label"
    with open_checked(tmp_path / "b.h5", SCHEMA) as file:
        assert list(file["obs"].attrs["units"]) == ["m", "step"]
    with pytest.raises(ConfigError, match="units: expected the unit of 'ts', a column of all/"):
        preprocess(aquifer.base, tmp_path / "c.h5", **options)
    options["variables"] = ("heat",)
    with pytest.raises(DataError, match=r"0000.csv:1:1: column 'heat' is missing; .*, head$"):
        preprocess(aquifer.base, tmp_path / "d.h5", **options, units={"heat": "J"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.h5",
        "b.h5",
        "raw",
        "samples.json",
    ]


def test_workers_change_nothing(aquifer, tmp_path) -> None:
    preprocess(aquifer.base, tmp_path / "a.h5", **OPTIONS)
    preprocess(aquifer.base, tmp_path / "b.h5", **OPTIONS, workers=3)
    a, b = contents(tmp_path / "a.h5"), contents(tmp_path / "b.h5")
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_errors_of_workers_arrive_and_leave_nothing(aquifer, tmp_path) -> None:
    path = aquifer.base / "all" / "0005.csv"
    path.write_text(path.read_text().replace(".", "x", 9))
    output = tmp_path / "out" / "series.h5"
    with pytest.raises(DataError, match=r"0005\.csv:2:"):
        preprocess(aquifer.base, output, **OPTIONS, workers=2)
    assert list(output.parent.iterdir()) == []


def test_workers_die_with_a_killed_parent(aquifer, tmp_path) -> None:
    listed = tmp_path / "children"  # a pipe would stay open as long as they live
    code = f"""
        import os, signal
        from pathlib import Path
        from millrace.data.split import SplitConfig
        from millrace.systems.groundwater.series import preprocess

        def progress(done, _):
            if done == 4:
                children = Path(f"/proc/self/task/{{os.getpid()}}/children").read_text()
                Path({str(listed)!r}).write_text(children)
                os.kill(os.getpid(), signal.SIGKILL)

        preprocess(Path({str(aquifer.base)!r}), Path({str(tmp_path / "s.h5")!r}),
                   variables=("head",), forcings=None, split=SplitConfig(train=0.6, validation=0.2, gap=1),
                   workers=2, progress=progress)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    children = [int(pid) for pid in listed.read_text().split()]
    assert len(children) == 2
    deadline = time.monotonic() + 60
    while any(map(_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    orphans = [pid for pid in children if _alive(pid)]
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
    assert not orphans
    assert not (tmp_path / "s.h5").exists()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


def test_negative_concentration_is_clipped_and_counted(aquifer, tmp_path) -> None:
    preprocess(aquifer.base, tmp_path / "raw.h5", **OPTIONS)
    preprocess(aquifer.base, tmp_path / "s.h5", **OPTIONS, clip_negative_concentration=True)
    raw, series = contents(tmp_path / "raw.h5"), contents(tmp_path / "s.h5")
    salt = raw["obs"][..., 0]
    assert (salt < 0).any()
    np.testing.assert_array_equal(series["obs"][..., 0], np.maximum(salt, 0))
    np.testing.assert_array_equal(series["obs"][..., 1], raw["obs"][..., 1])
    assert series["digest"] != raw["digest"]
    with open_checked(tmp_path / "s.h5", SCHEMA) as file:
        attrs = file["obs"].attrs
        assert attrs["clipped_values"] == (salt < 0).sum()
        assert attrs["clipped_fraction"] == pytest.approx((salt < 0).mean())
        assert attrs["clipped_minimum"] == salt.min()


def test_without_forcings(aquifer, tmp_path) -> None:
    preprocess(aquifer.base, tmp_path / "s.h5", **{**OPTIONS, "forcings": ()})
    series = contents(tmp_path / "s.h5")
    assert series["forcing"].shape == (12, 120, 0)
    assert series["stats/forcing_std"].shape == (0,)


def test_a_constant_field_has_a_small_positive_deviation(aquifer, tmp_path) -> None:
    for path in (aquifer.base / "all").iterdir():
        header, *rows = path.read_text().splitlines()
        rows = [",".join([*row.split(",")[:-1], "2000.1"]) for row in rows]
        path.write_text("\n".join([header, *rows]) + "\n")
    preprocess(aquifer.base, tmp_path / "s.h5", **OPTIONS)
    series = contents(tmp_path / "s.h5")
    assert series["stats/obs_std"][1] == pytest.approx(2e-3, rel=1e-3)
    assert series["stats/increment_std"][1] > 0
    normalised = (series["obs"][..., 1] - series["stats/obs_mean"][1]) / series["stats/obs_std"][1]
    assert np.abs(normalised).max() < 1


def test_moments_do_not_lose_digits() -> None:
    values = 1e6 + np.random.default_rng(0).standard_normal((1000, 1)) * 1e-3
    moments = Moments(1)
    for part in np.array_split(values, 7):
        moments.add(part)
    assert moments.std[0] == pytest.approx(values.std(), rel=1e-6)


@pytest.mark.parametrize("steps", [30, 31, 200, 1909])
@pytest.mark.parametrize("gap", [0, 3, 5])
def test_split_keeps_windows_apart(steps, gap) -> None:
    ranges = (
        time_split(steps, SplitConfig(train=0.7, validation=0.15, gap=gap)) if steps > 50 else None
    )
    if ranges is None:
        ranges = time_split(steps, SplitConfig(train=0.5, validation=0.25, gap=gap))
    assert ranges.dtype == np.int64
    assert ranges[0, 0] == 0
    assert ranges[2, 1] == steps
    assert (ranges[1:, 0] - ranges[:-1, 1] == gap).all()
    assert (ranges[:, 1] - ranges[:, 0] >= max(1, gap)).all()


def test_split_fractions_are_those_of_the_steps_that_are_used() -> None:
    sizes = np.diff(time_split(40, SplitConfig(train=0.7, validation=0.1, gap=2)), axis=1)[:, 0]
    assert sizes.tolist() == [25, 3, 8]
    sizes = np.diff(time_split(30, SplitConfig(train=0.7, validation=0.1, gap=0)), axis=1)[:, 0]
    assert sizes.tolist() == [21, 3, 6]


@pytest.mark.parametrize(
    ("steps", "values"),
    [(30, (0.7, 0.15, 6)), (3, (0.9, 0.05, 0)), (5, (0.5, 0.2, 10))],
)
def test_splits_that_are_too_short_are_refused(steps, values) -> None:
    with pytest.raises(ConfigError, match=r"split: .* expected at least"):
        time_split(steps, SplitConfig.parse(dict(zip(PARTS, values, strict=True)), "split"))


@pytest.mark.parametrize("values", [(0, 0.5, 1), (0.7, 0.3, 1), (0.7, 0, 1), (0.5, 0.2, -1)])
def test_meaningless_splits_are_refused(values) -> None:
    with pytest.raises(ConfigError, match=r"^split"):
        SplitConfig.parse(dict(zip(PARTS, values, strict=True)), "split")


def test_what_becomes_of_all_files_columns_times_and_nodes_is_counted(
    aquifer, tmp_path, capsys
) -> None:
    fields, forcings = aquifer.base / "all", aquifer.base / "forcings_corrected_all"
    (fields / "notes.txt").write_text("Model of 2021")
    (forcings / "0099.csv").write_text((forcings / "0000.csv").read_text())
    for path in sorted(fields.glob("*.csv"))[:2]:
        rows = path.read_text().splitlines()
        rows[5] = rows[5].rpartition(",")[0] + ",-999"
        path.write_text("\n".join(rows) + "\n")
    (aquifer.base / "forcings").mkdir()
    (aquifer.base / "forcings" / "0000.csv").write_text("node\n")
    options = {**OPTIONS, "variables": ("mass_concentration", "head"), "forcings": ("head_bc",)}
    preprocess(
        aquifer.base,
        tmp_path / "s.h5",
        **options,
        missing=MaskedMissing(value=-999, then="mask"),
        clip_negative_concentration=True,
    )
    found = json.loads((tmp_path / "samples.json").read_text())
    gap = 2 * OPTIONS["split"].gap
    assert found["output times"]["left_out"] == {
        "in the gaps between training, validation and test": gap
    }
    assert found["output times"]["kept"] == 12 - gap
    assert found["nodes"] == {
        "read": 120, "kept": 119, "left_out": {"have -999 at some time": 1}
    }  # fmt: skip
    assert found["files of all/"] == {"read": 13, "kept": 12, "left_out": {"not CSV": 1}}
    assert found["files of forcings_corrected_all/"]["left_out"] == {
        "without a file of their number in all/": 1
    }
    assert found["files of forcings/"]["left_out"] == {"forcings_corrected_all/ is read": 1}
    assert found["columns of all/"]["left_out"] == {"not asked for (pressure, ts)": 2}
    negative = int((np.delete(aquifer.obs[:, :, 0], 4, axis=1) < 0).sum())
    assert found["values of mass_concentration"]["left_out"] == {"negative, set to 0": negative}
    assert "nodes: 120 read, 119 kept; 1 have -999 at some time" in capsys.readouterr().err
