"""What groundwater refuses before anything runs: gaps, columns and their units, planes, graphs."""

import pytest
from plans import changed_part, config

from millrace.errors import ConfigError
from millrace.plan import Plan

GFNO = {"data": {}, "model": {"name": "gfno"}}
FOLDERS = {"format": "plane_folders", "source": ".", "split": {"train": 0.6, "validation": 0.2}}


def planned(dataset=None, experiment=None):
    """Plan of the small configuration with other keys; None removes one."""
    made = config()
    for block, changes in (
        (made["datasets"]["coast"], dataset or {}),
        (made["experiments"]["head"], experiment or {}),
    ):
        block.update(changes)
        for key in [key for key, value in changes.items() if value is None]:
            del block[key]
    return Plan(made)


def split(**gap):
    return {"split": {"train": 0.6, "validation": 0.2, **gap}}


@pytest.mark.parametrize(
    ("dataset", "experiment", "message"),
    [
        (
            split(),
            {},
            "20 steps is longer than the gap of 0 .* split.gap of the dataset to at leas",
        ),
        (split(gap=19), {}, "20 steps is longer than the gap of 19"),
        (split(gap=31), GFNO, "32 steps is longer than the gap of 31"),
        (
            {},
            {"data": {"variables": ["head"], "output_steps": 1}},
            "key 'input_steps' is missing",
        ),
        (
            {},
            {"data": {"variables": ["head"], "input_steps": 0, "output_steps": 1}},
            "config: experiments.head.data.input_steps: expected a whole number of 1 or more",
        ),
        ({"variables": ["haed"]}, {}, r"coast.variables: no column of the demo named 'haed'; did"),
        (
            {"variables": ["a/b"]},
            {},
            r"coast.variables.0.: expected the name of a column, without /",
        ),
        ({"units": {"heda": "m"}}, {}, r"coast.units: no column named 'heda'; did you mean 'head'"),
        ({"units": {"head": 3}}, {}, r"coast.units.head: expected text, got 3"),
        (
            {"source": "/nowhere", "variables": ["head", "temperature"]},
            {},
            r"coast.units: expected the unit of 'temperature', which is none of .*`units: \{temp",
        ),
        (
            {**split(gap=40), "variables": ["head"]},
            GFNO,
            r"head.data.variables: no column named 'mass_concentration'",
        ),
        (
            {**split(gap=40), "forcings": ["recharge_forcing"]},
            GFNO,
            "planes take their boundary values from head_bc and mass_concentration_bc, whatever",
        ),
        (
            {**split(gap=40), "variables": ["pressure"]},
            {**GFNO, "data": {"variables": ["pressure"]}},
            "the shore is found from head or mass_concentration: add one .* or give planes.tran",
        ),
        (
            {**FOLDERS, "demo": None, "variables": ["pressure"]},
            GFNO,
            "coast.variables.0.: expected one of head, mass_concentration",
        ),
        ({**FOLDERS, "units": {"head": "m"}}, GFNO, "datasets.coast: unknown key 'units'"),
        ({}, {"model": {"name": "gino", "radius": 0.2}}, "model: key 'latent_shape' is missing"),
    ],
)
def test_mistakes_are_refused_with_their_key(dataset, experiment, message) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(dataset, experiment)


def test_columns_of_ones_own_need_a_unit(aquifer) -> None:
    path = aquifer.base / "all/0000.csv"
    lines = path.read_text().splitlines()
    rows = [f"{line},12.5,clay" for line in lines[1:]]
    path.write_text("\n".join([f"{lines[0]},temperature,zone", *rows]) + "\n")
    own = {"source": str(aquifer.base), "variables": ["head", "temperature"], "demo": None}
    own["split"] = {"train": 0.5, "validation": 0.25, "gap": 2}  # of 12 steps
    short = {"data": {"variables": ["head"], "input_steps": 1, "output_steps": 1}}
    assert planned({**own, "units": {"temperature": "degC"}}, short).sample_files()
    with pytest.raises(ConfigError, match=r"coast\.units: expected the unit of 'temperature'"):
        planned(own, short)
    with pytest.raises(ConfigError, match=r"no column of .*0000\.csv named 'tmp'; known are X, Y"):
        planned({**own, "variables": ["tmp", "head"], "units": {"tmp": "degC"}}, short)
    with pytest.raises(ConfigError, match=r"column 'zone' of .*0000\.csv holds 'clay'; expected n"):
        planned({**own, "variables": ["zone", "head"], "units": {"zone": "1"}}, short)
    path.write_bytes(b"\xff\xfe")
    assert planned({**own, "units": {"temperature": "degC"}}, short), (
        "told by the rule that reads it"
    )


def test_planes_take_columns_of_ones_own_beside_boundary_values_of_head_and_salt() -> None:
    block = {
        **split(gap=40),
        "source": "/nowhere",
        "variables": ["temperature"],
        "units": {"temperature": "degC"},
        "planes": {"transects": [[[0, 0], [9, 9]]]},
    }
    assert planned(block, {**GFNO, "data": {"variables": ["temperature"]}})


def test_a_graph_is_built_for_models_that_name_a_latent_grid(monkeypatch) -> None:
    """Its key radius belongs to it, whatever the model is."""
    grid = {"name": "gino", "latent_shape": [4, 4, 3], "modes": [2, 2, 2]}
    model = {**grid, "radius": 0.2}
    assert planned({}, {"model": model}).samples("head")["graph"].endswith("graph_4x4x3_r0.2.h5")
    changed_part(monkeypatch, "models", "gino", check=lambda *_: None)
    assert planned({}, {"model": {"name": "gino", "hidden": 4}}).samples("head") == {
        "patches": "results/data/coast/patches.h5"
    }
    with pytest.raises(ConfigError, match=r"model: key 'radius' is missing"):
        planned({}, {"model": grid})


@pytest.fixture
def parted(tmp_path, aquifer, monkeypatch):
    """Plans of raw files of which a job reads a third."""
    size = sum(path.stat().st_size for path in aquifer.base.rglob("*.csv"))
    monkeypatch.setattr("millrace.data_stage.PART_BYTES", -(-size // 3))
    own = {"source": str(aquifer.base), "variables": ["head"], "demo": {}}
    own["split"] = {"train": 0.5, "validation": 0.25, "gap": 2}

    def plan(**keys):
        made = config()
        made["datasets"]["coast"] |= own | keys
        made["experiments"]["head"]["data"] |= {"input_steps": 1, "output_steps": 1}
        return Plan(made, root=tmp_path)

    return plan


def test_a_series_is_read_in_parts_by_the_size_of_raw_files(parted, tmp_path) -> None:
    plan = parted()
    assert plan.data.parts("coast", "series") == 3
    assert (plan.data.parts("coast", "planes"), plan.data.parts("coast", "patches")) == (1, 1)
    for in_parts, names in ((True, "coast"), (False, "(?!)")):
        assert plan.data.datasets_in("feflow_csv", kind="series", in_parts=in_parts) == names
    plan.data.count_parts()
    assert plan.config["datasets"]["coast"]["parts"] == 3
    assert parted(parts=2).data.part_files("coast", "series", "missing") == [
        f"results/data/coast/parts/missing_{number}.h5" for number in range(2)
    ]


def test_a_series_that_was_read_whole_stays_so(parted, tmp_path) -> None:
    made = tmp_path / "results/data/coast/series.h5"
    made.parent.mkdir(parents=True)
    made.touch()
    assert parted().data.parts("coast", "series") == 1
