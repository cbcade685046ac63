from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from millrace.errors import ConfigError, DataError
from millrace.systems.groundwater.simulator.aquifer import (
    Aquifer,
    AquiferConfig,
    simulate,
    write_aquifer,
)

CONFIG = AquiferConfig(slices=4, nodes_per_slice=60, steps=6, spin_up=3.0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("aquifer") / "raw"
    seen = []
    write_aquifer(CONFIG, directory, lambda done, total: seen.append((done, total)))
    assert seen == [(k, 6) for k in range(1, 7)]
    return directory


@pytest.fixture(scope="module")
def snapshots():
    config = AquiferConfig(slices=5, nodes_per_slice=90, steps=120, spin_up=30.0)
    aquifer = Aquifer.build(config)
    return config, aquifer, list(simulate(config, aquifer))


def test_files_follow_the_raw_layout(written):
    names = [f"{k:04d}.csv" for k in range(6)]
    for folder in ("all", "forcings_corrected_all"):
        assert sorted(path.name for path in (written / folder).iterdir()) == names
    tables = [pd.read_csv(written / "all" / name) for name in names]
    columns = "node,ts,time (d),X,Y,Z,slice,mass_concentration,pressure,head"
    assert list(tables[0]) == columns.split(",")
    for step, table in enumerate(tables):
        np.testing.assert_array_equal(table["node"], np.arange(1, 241))
        np.testing.assert_array_equal(table["slice"], np.repeat([1, 2, 3, 4], 60))
        assert (table["ts"] == step).all()
        assert table["time (d)"].nunique() == 1
        np.testing.assert_array_equal(table[["X", "Y", "Z"]], tables[0][["X", "Y", "Z"]])
        assert np.isfinite(table.to_numpy()).all()
        weight = 9.8046 * (table["head"] - table["Z"])
        np.testing.assert_allclose(table["pressure"], weight, atol=1e-3)
        assert table["mass_concentration"].between(49.999, 35_000.001).all()
    times = [table["time (d)"][0] for table in tables]
    assert all(0.3 < later - earlier < 0.65 for earlier, later in pairwise(times))
    assert tables[0]["Z"].between(-40, 34).all()


def test_forcings_are_empty_where_there_is_no_boundary(written):
    fields = pd.read_csv(written / "all" / "0003.csv")
    forcings = pd.read_csv(written / "forcings_corrected_all" / "0003.csv")
    names = "node,mass_concentration_bc,head_bc,recharge_forcing,sea_level_forcing"
    assert list(forcings) == names.split(",")
    np.testing.assert_array_equal(forcings["node"], fields["node"])
    given = forcings.notna()
    fixed = given["head_bc"]
    assert 0 < fixed.sum() < 240
    assert given["mass_concentration_bc"].equals(fixed)
    np.testing.assert_array_equal(forcings["head_bc"][fixed], fields["head"][fixed])
    np.testing.assert_array_equal(
        forcings["mass_concentration_bc"][fixed], fields["mass_concentration"][fixed]
    )
    sea = given["sea_level_forcing"]
    assert (forcings["mass_concentration_bc"][sea] == 35_000).all()
    assert (forcings["mass_concentration_bc"][fixed & ~sea] == 50).all()
    assert forcings["sea_level_forcing"].nunique() == 1
    wet = given["recharge_forcing"]
    assert wet.any()
    assert (fields["slice"][wet] == 1).all()
    assert not (wet & fixed).any()
    assert (forcings["recharge_forcing"][wet] > 0).all()


def test_the_same_seed_writes_the_same_bytes(written, tmp_path):
    write_aquifer(CONFIG, tmp_path / "again")
    for path in written.rglob("*.csv"):
        twin = tmp_path / "again" / path.relative_to(written)
        assert path.read_bytes() == twin.read_bytes()
    other = Aquifer.build(AquiferConfig(slices=4, nodes_per_slice=60, seed=1))
    assert not np.allclose(other.xyz, Aquifer.build(CONFIG).xyz)


def test_an_interrupted_run_leaves_nothing_behind(tmp_path):
    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_aquifer(CONFIG, tmp_path / "raw", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_existing_data_is_not_overwritten(written):
    before = (written / "all" / "0000.csv").read_bytes()
    with pytest.raises(DataError, match="empty directory"):
        write_aquifer(CONFIG, written)
    assert (written / "all" / "0000.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("slices", 1),
        ("slices", 26),
        ("nodes_per_slice", 12),
        ("steps", 2.5),
        ("steps", True),
        ("seed", -1),
        ("thickness", 50.0),
        ("conductivity", float("nan")),
    ],
)
def test_values_out_of_range_name_the_key(key, value):
    with pytest.raises(ConfigError, match=rf"^demo(\.|: ){key}: expected"):
        AquiferConfig.parse({key: value}, "demo")


def test_mass_is_conserved_and_salinity_bounded(snapshots):
    _, _, history = snapshots
    assert max(s.balance.water_error for s in history) < 1e-6
    assert max(s.balance.solute_error for s in history) < 1e-6
    salinity = np.array([s.state.concentration for s in history])
    assert salinity.min() > -1e-9
    assert salinity.max() < 1 + 1e-9


def test_salt_lies_seaward_and_below(snapshots):
    config, aquifer, history = snapshots
    mean = np.mean([s.state.concentration for s in history], axis=0).reshape(config.slices, -1)
    free = ~(aquifer.sea | aquifer.inland).reshape(config.slices, -1)
    onshore = free[0]
    assert mean[-1, onshore].mean() > mean[0, onshore].mean() + 0.1
    seaward = np.arange(config.nodes_per_slice) < config.nodes_per_slice // 3
    assert mean[-1, seaward].min() > 0.7
    assert mean[:, -20:].max() < 0.02


def test_head_and_salinity_keep_moving_without_drift(snapshots):
    _, aquifer, history = snapshots
    free = ~(aquifer.sea | aquifer.inland)
    mean_interval = np.diff([s.time for s in history]).mean()
    assert mean_interval == pytest.approx(0.476, rel=0.01)
    for values in (
        np.array([s.state.head[free] for s in history]),
        np.array([s.state.concentration[free] for s in history]),
    ):
        temporal = np.sqrt(values.var(axis=0).mean())
        assert temporal > 0.05 * values.std()
        # 63 outputs are one season: the two hold the same weather but for the storms.
        change = values[:57].mean(axis=0) - values[63:].mean(axis=0)
        assert np.sqrt(np.mean(change**2)) < 0.5 * temporal
