"""Arrays from outside: what is read is what models get, and nothing of the test samples shows before."""

import dataclasses
import itertools
import json
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from array_fields import PERIODS, SPLIT, independent, opened, series, write

from millrace.data.arrays import ArrayDataset, extract_arrays
from millrace.data.samples import open_dataset
from millrace.errors import ConfigError, DataError
from millrace.models.arrays import ArrayModel
from millrace.systems import registry
from millrace.systems.arrays import ArrayConfig, array_kind
from millrace.systems.base import System
from millrace.systems.settings import MissingConfig


def rows_of(dataset, split):
    """Numbers of the samples in the raw files, by their place in a split."""
    return dataset.order_S[dataset.starts(split)]


def scaled(values, dataset, v):
    return (values - dataset.mean[v]) / dataset.std[v]


def test_a_batch_holds_the_samples_that_were_read(tmp_path):
    samples = independent()
    dataset = opened(tmp_path, samples)
    batch = dataset.batch("validation", 0, np.array([2, 0]))
    rows = rows_of(dataset, "validation")[[2, 0]]
    for v, (values, _) in enumerate(samples.targets.values()):
        np.testing.assert_allclose(batch.y[:, 0, v], scaled(values[rows], dataset, v), atol=2e-6)
    stats = dataset.normalisation
    a, b = (values[rows] for values, _ in samples.inputs.values())
    expected = (a - stats.forcing_mean_F[0]) / stats.forcing_std_F[0]
    np.testing.assert_allclose(batch.x[:, 0], expected, atol=2e-6)
    expected = (b - stats.forcing_mean_F[1]) / stats.forcing_std_F[1]
    np.testing.assert_allclose(batch.x[:, 1, 3, 4], expected, atol=2e-6)
    assert batch.x.shape == (2, dataset.in_channels, *dataset.grid_shape)
    assert (dataset.in_channels, dataset.out_channels) == (2, 2)
    assert batch.y_KBTV.shape == (30, 2, 1, 2)
    assert not batch.last.any()
    assert batch.scale_V.tolist() == [1, 1]


def test_names_units_and_coordinates_are_kept(tmp_path):
    samples = independent()
    dataset = opened(tmp_path, samples, inputs=("b",), targets=("q",))
    assert dataset.names == {"inputs": ("b",), "targets": ("q",)}
    assert dataset.units == {"inputs": ["Pa"], "targets": ["K"]}
    values, unit = dataset.coordinates["x1"]
    assert (values.tolist(), unit) == ([0, 2, 4, 6, 8, 10], "km")
    np.testing.assert_array_equal(
        dataset.values("targets", np.array([[3]]))[0, 0, 0],
        samples.targets["q"][0][dataset.order_S[3]],
    )
    assert dataset.definition["targets"] == ["q"]


@pytest.mark.parametrize("make", [independent, series])
def test_what_does_not_fit_into_memory_is_read_again_for_each_batch(tmp_path, make):
    path = write(tmp_path, make())
    config = ArrayConfig(input_steps=2, output_steps=2) if make is series else ArrayConfig()
    kept, read = (ArrayDataset(path, config, cache_bytes=size) for size in (1 << 30, 0))
    for split in ("train", "validation", "test"):
        index = np.arange(len(kept.starts(split)))[::-2].copy()
        one, other = (dataset.batch(split, 0, index) for dataset in (kept, read))
        for field in dataclasses.fields(one):
            assert torch.equal(getattr(one, field.name), getattr(other, field.name)), field.name
    assert kept.groups_in_memory
    assert not read.groups_in_memory


def test_what_is_written_in_pieces_is_the_same(tmp_path, monkeypatch):
    whole = opened(tmp_path, series(), input_steps=2)
    monkeypatch.setattr("millrace.data.arrays.CHUNKS", 1)
    monkeypatch.setattr("millrace.data.arrays.rows_per_chunk", lambda *_: 7)
    monkeypatch.setattr("millrace.data.arrays.READ_BYTES", 100)
    pieces = opened(tmp_path, series(), input_steps=2)
    assert pieces.digest == whole.digest
    np.testing.assert_allclose(
        pieces.normalisation.increment_std_V, whole.normalisation.increment_std_V, rtol=1e-12
    )
    batches = [one.batch("test", 0, np.arange(3)) for one in (pieces, whole)]
    np.testing.assert_allclose(*(batch.x for batch in batches), atol=1e-6)


def test_independent_samples_are_in_one_split_each_and_need_no_gap(tmp_path):
    dataset = opened(tmp_path, independent(n=50))
    rows = [rows_of(dataset, split) for split in ("train", "validation", "test")]
    assert [len(one) for one in rows] == [30, 10, 10]
    assert sorted(np.concatenate(rows)) == list(range(50))
    assert not (np.diff(rows[0]) > 0).all(), "not in the order of the file"
    again = opened(tmp_path, independent(n=50))
    np.testing.assert_array_equal(rows_of(again, "test"), rows[2])


def test_statistics_are_those_of_training_samples(tmp_path):
    samples = independent()
    dataset = opened(tmp_path, samples)
    rows, stats = rows_of(dataset, "train"), dataset.normalisation
    for v, (values, _) in enumerate(samples.targets.values()):
        assert stats.mean_V[v] == pytest.approx(values[rows].mean(), rel=1e-9, abs=0)
        assert stats.std_V[v] == pytest.approx(values[rows].std(), rel=1e-6, abs=0)
    assert stats.forcing_mean_F[1] == pytest.approx(samples.inputs["b"][0][rows].mean())


@pytest.mark.parametrize("split", ["validation", "test"])
def test_nothing_of_samples_that_are_not_for_training_is_in_the_statistics(tmp_path, split):
    samples = independent()
    dataset = opened(tmp_path, samples)
    for fields in (samples.inputs, samples.targets):
        for values, _ in fields.values():
            values[rows_of(dataset, split)] *= 1000
    other = opened(tmp_path, samples)
    assert other.normalisation.to_json() == dataset.normalisation.to_json()
    assert other.digest != dataset.digest


def test_a_window_of_a_series_holds_its_steps(tmp_path):
    samples = series()
    dataset = opened(tmp_path, samples, input_steps=3, output_steps=2)
    batch = dataset.batch("test", 0, np.array([1]))
    start = dataset.starts("test")[1]
    state = scaled(samples.targets["u"][0], dataset, 0)[start : start + 5]
    stats = dataset.normalisation
    forcing = (samples.inputs["f"][0] - stats.forcing_mean_F) / stats.forcing_std_F
    np.testing.assert_allclose(batch.x[0, :3], state[:3], atol=2e-6)
    np.testing.assert_allclose(batch.x[0, 3:], forcing[start : start + 3], atol=2e-6)
    np.testing.assert_allclose(batch.y[0, :, 0], state[3:], atol=2e-6)
    np.testing.assert_allclose(batch.last[0, 0], state[2], atol=2e-6)
    assert dataset.in_channels == 6
    change = np.diff(samples.targets["u"][0][slice(*dataset.split_ranges[0])], axis=0).std()
    assert batch.scale_V.item() == pytest.approx(change / stats.std_V[0], rel=1e-5)


def test_periods_of_a_series_follow_each_other_with_a_gap(tmp_path):
    dataset = opened(tmp_path, series(), input_steps=3, output_steps=2)
    starts = [dataset.starts(split) for split in ("train", "validation", "test")]
    for before, after in itertools.pairwise(starts):
        assert before[-1] + dataset.config.length <= after[0]
        assert after[0] - before[-1] - dataset.config.length == PERIODS.gap
    with pytest.raises(ConfigError, match=r"the splits of .* are 4 steps apart"):
        opened(tmp_path, series(), input_steps=3, output_steps=3)


def test_inputs_of_the_steps_to_come_are_given_if_they_are_known(tmp_path):
    samples = series()
    past = opened(tmp_path, samples, input_steps=2, output_steps=3)
    both = opened(tmp_path, samples, input_steps=2, output_steps=3, future_inputs=True)
    same = opened(tmp_path, samples)
    assert (past.in_channels, both.in_channels, same.in_channels) == (4, 7, 1)
    x = both.batch("train", 0, np.array([0])).x
    assert torch.equal(x[:, :4], past.batch("train", 0, np.array([0])).x)
    later = [same.batch("train", 0, np.array([step])).x for step in (2, 3, 4)]
    assert torch.equal(x[:, 4:], torch.cat(later, dim=1))


def test_a_forecast_can_take_the_place_of_the_past(tmp_path):
    dataset = opened(tmp_path, series(), input_steps=2, output_steps=2)
    batch, later = (dataset.at_times(0, np.array([start])) for start in (4, 6))
    fed = dataset.with_states(batch, batch.y_KBTV)
    assert torch.equal(fed.last, later.last)
    assert torch.equal(fed.x[:, :2], later.x[:, :2])
    assert torch.equal(fed.x[:, 2:], batch.x[:, 2:])
    assert torch.equal(
        dataset.core_states(0, np.array([[6, 7]]))[..., 0], batch.y[:, :, 0, :].movedim(2, 0)
    )


def without(samples, **changes):
    return dataclasses.replace(samples, **changes)


ONES = np.ones((40, 5, 6))
WRONG = [
    ({"targets": {}}, "no targets were read"),
    ({"inputs": {}}, "no inputs were read"),
    ({"inputs": {"a": (ONES[:, :4], "m")}}, r"'a' of the inputs has the shape \(40, 4, 6\), expected"),
    ({"targets": {"p": (ONES, "m"), "q": (ONES[:, 0, 0], "m")}}, "'q' of the targets has the shape"),
    ({"inputs": {"a/b": (ONES, "m")}}, "field 'a/b' in 'm': expected a name without slashes"),
    ({"inputs": {"a": (ONES, "")}}, "expected a name without slashes and a unit"),
    ({"coordinates": {"x": (np.arange(5), "m")}}, r"shapes {.*\(5,\)} do not fit the grid \(5, 6\)"),
    ({"targets": {"p": (ONES.astype(str), "m")}}, "'p' holds values of the type <U32, expected real"),
    ({"time": (np.arange(40).astype("M8[h]"), "h")}, "'time' holds values of the type datetime64"),
    ({"time": (np.arange(40.0) % 7, "d")}, "a series needs 40 times that increase"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "told"), WRONG, ids=[told[:24] for _, told in WRONG])
def test_arrays_that_do_not_fit_are_refused(tmp_path, changes, told):
    with pytest.raises(DataError, match=told):
        write(tmp_path, dataclasses.replace(independent(), **changes))
    assert not list(tmp_path.glob("*.h5"))


def test_values_that_are_not_finite_are_refused_with_their_sample(tmp_path):
    samples = independent()
    samples.targets["q"][0][[7, 11], 2] = np.nan
    with pytest.raises(DataError, match=r"'q' of the targets has values .* the first in sample 7"):
        write(tmp_path, samples)


def test_masked_values_are_refused_as_well(tmp_path):
    samples = independent()
    values, unit = samples.targets["p"]
    masked = np.ma.masked_array(values, mask=np.zeros(values.shape, dtype=bool))
    masked[5, 0, 0] = np.ma.masked
    with pytest.raises(DataError, match=r"'p' of the targets has values .* the first in sample 5"):
        write(tmp_path, dataclasses.replace(samples, targets={"p": (masked, unit)}))


def test_a_field_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.targets: .* has no 'r'; it has p, q"):
        opened(tmp_path, independent(), targets=("r",))
    alone = dataclasses.replace(series(), inputs={})
    assert opened(tmp_path, alone, input_steps=1).in_channels == 1
    with pytest.raises(ConfigError, match=r"data\.input_steps = 0, but .* has no inputs"):
        opened(tmp_path, alone)


def test_a_constant_field_is_normalised_to_zero(tmp_path):
    samples = independent()
    for value in (0.0, 1e-9, 273.15):
        samples.inputs["a"][0][:] = value
        assert opened(tmp_path, samples).batch("train", 0, np.arange(4)).x[:, 0].abs().max() < 1


@pytest.mark.parametrize("grid", [(), (4,), (3, 4), (2, 3, 4)], ids=len)
def test_grids_have_any_number_of_axes(tmp_path, grid):
    dataset = opened(tmp_path, independent(grid=grid))
    batch = dataset.batch("train", 0, np.arange(3))
    assert batch.x.shape == (3, 2, *grid)
    model = ArrayModel(torch.nn.Identity())
    assert torch.equal(model(batch)[:, :, 0], batch.x.flatten(2).permute(2, 0, 1)) if grid else True
    assert model(batch).shape == batch.y_KBTV.shape


def test_a_model_that_says_nothing_forecasts_persistence(tmp_path):
    dataset = opened(tmp_path, series(), input_steps=2, output_steps=3)
    batch = dataset.batch("test", 0, np.arange(2))
    silent = ArrayModel(torch.nn.Conv1d(4, 3, 1))
    torch.nn.init.zeros_(silent.net.weight), torch.nn.init.zeros_(silent.net.bias)
    assert torch.equal(silent(batch)[:, :, 1, 0], batch.last[:, 0].T)
    torch.nn.init.ones_(silent.net.bias)
    np.testing.assert_allclose(
        (silent(batch)[:, :, 2, 0] - batch.last[:, 0].T).detach(), batch.scale_V.item(), rtol=1e-5
    )


def test_a_module_with_other_channels_is_refused(tmp_path):
    dataset = opened(tmp_path, series(), input_steps=2, output_steps=3)
    with pytest.raises(ConfigError, match=r"gives the shape \(2, 5, 7\), expected \(2, 3, 7\)"):
        ArrayModel(torch.nn.Conv1d(4, 5, 1))(dataset.batch("test", 0, np.arange(2)))


@pytest.fixture
def fields_kind(monkeypatch):
    """A kind of arrays that is known to the registry."""

    def add(**options):
        kind = array_kind("fields", ["raw"], lambda *_: independent(), **options)
        monkeypatch.setattr(registry, "loaded_plugins", {"test": System("test", kinds=(kind,))})
        return kind

    return add


def test_several_datasets_are_opened_as_one(tmp_path, fields_kind):
    kind = fields_kind()
    assert kind.sample_files({}) == {"samples": "fields.h5"}
    parts = [
        str(write(tmp_path, independent(grid=grid, seed=seed), name=f"{seed}.h5"))
        for seed, grid in enumerate([(5, 6), (3, 4)])
    ]
    joint = open_dataset("fields", {"samples": parts}, {}, torch.device("cpu"))
    assert joint.groups("train").tolist() == [24, 24]
    assert joint.batch("train", 1, np.arange(2)).x.shape == (2, 2, 3, 4)
    means = [ArrayDataset(path, ArrayConfig()).normalisation.mean_V for path in parts]
    np.testing.assert_allclose(joint.normalisation.mean_V, np.mean(means, axis=0))


def test_the_settings_of_a_plugin_reach_its_reader(tmp_path):
    seen = []

    def read(source, settings):
        seen.append((source, settings))
        return independent()

    extract_arrays(tmp_path, tmp_path / "a.h5", {"level": 3}, SPLIT, None, read, False)
    assert seen == [(tmp_path, {"level": 3})]
    with h5py.File(tmp_path / "a.h5") as file:
        assert '"settings": {"level": 3}' in file.attrs["config"]


BLOCKS = [
    ({}, {"split": {}}, False, None),
    ({}, {}, False, "its dataset has no key split"),
    ({"input_steps": 2}, {"split": {}}, False, "do not follow on each other in time"),
    ({"stride": 2}, {"split": {}}, False, "do not follow on each other in time"),
    ({"input_steps": 2}, {"split": {"gap": 2}}, True, None),
    ({"input_steps": 2}, {"split": {"gap": 1}}, True, "window of 3 steps is longer than the gap of 1"),
    ({"input_step": 2}, {"split": {}}, True, r"experiments\.e\.data: unknown key 'input_step'"),
    ({"output_steps": 0}, {"split": {}}, True, "data.output_steps: expected a whole number"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "dataset", "is_series", "told"), BLOCKS)
def test_experiments_that_cannot_be_are_refused_at_planning(
    fields_kind, data, dataset, is_series, told
):
    check = fields_kind(series=is_series).check
    if told is None:
        assert check("e", {"data": data}, dataset) is None
    else:
        with pytest.raises(ConfigError, match=told):
            check("e", {"data": data}, dataset)


def test_planning_with_arrays_takes_no_torch():
    program = (
        "import sys; from millrace.systems.arrays import array_kind;"
        "array_kind('a', ['r'], 'm:read').check('e', {'data': {}}, {'split': {}});"
        "print([m for m in ('torch', 'h5py', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def with_value(samples, value, role, name, at):
    """The same samples with a value at an index of a field."""
    fields = dict(getattr(samples, role))
    values, unit = fields[name]
    values = np.array(values)
    values[at] = value
    return dataclasses.replace(samples, **{role: fields | {name: (values, unit)}})


NO_DATA = {
    "once in a target": (independent, 1e30, "targets", "q", (31, 2, 3), 31),
    "in an input": (independent, -9999, "inputs", "a", (slice(7, 9), 0), 7),
    "in a value for the whole sample": (independent, -999, "inputs", "b", 39, 39),
    "in the last steps of a series": (series, 9.96921e36, "targets", "u", slice(57, 60), 57),
    "in a small unit": (independent, -99, "targets", "p", (4, 1, 1), 4),
}


@pytest.mark.parametrize("case", NO_DATA)
def test_no_data_values_are_refused_with_field_and_sample(tmp_path, case):
    make, value, role, name, at, sample = NO_DATA[case]
    samples = with_value(make(), value, role, name, at)
    found = rf"{name!r} of the {role}: {re.escape(f'{value:g}')} in sample {sample} .* looks like a no-data"
    with pytest.raises(DataError, match=found):
        write(tmp_path, samples)
    assert not list(tmp_path.iterdir())
    write(tmp_path, dataclasses.replace(samples, missing=MissingConfig(value=value, then="keep")))


def test_a_declared_no_data_value_is_refused_even_if_it_looks_like_data(tmp_path):
    samples = with_value(independent(), 300.25, "targets", "q", (2, 0, 0))
    declared = dataclasses.replace(samples, missing=MissingConfig(value=300.25))
    with pytest.raises(DataError, match=r"300\.25 in sample 2 .* declares as no value"):
        write(tmp_path, declared)
    write(tmp_path, samples)


@pytest.mark.parametrize("make", [independent, series])
def test_validation_and_test_data_change_nothing_of_the_training(tmp_path, make):
    """Training samples and all statistics are the same, bit by bit."""
    config = ArrayConfig(input_steps=2, output_steps=2) if make is series else ArrayConfig()
    samples = make()
    one = ArrayDataset(write(tmp_path, samples, name="one.h5"), config)
    others = np.ones(len(one.order_S), dtype=bool)
    n_train = int((one.starts("train") + config.length).max())
    others[one.order_S[:n_train]] = False
    for role in ("inputs", "targets"):
        for name, (values, _) in getattr(samples, role).items():
            samples = with_value(samples, 7.5 * values[others][::-1] + 3, role, name, others)
    other = ArrayDataset(write(tmp_path, samples, name="other.h5"), config)
    assert one.digest != other.digest
    index = np.arange(len(one.starts("train")))
    assert len(index) == len(other.starts("train"))
    before, after = (dataset.batch("train", 0, index) for dataset in (one, other))
    for field in dataclasses.fields(before):
        assert torch.equal(getattr(before, field.name), getattr(after, field.name)), field.name
    assert one.normalisation.to_json() == other.normalisation.to_json()
    last = np.arange(len(one.starts("test")))
    assert not torch.equal(*(d.batch("test", 0, last).y for d in (one, other)))


def test_what_becomes_of_samples_is_counted(tmp_path):
    write(tmp_path, series(n=60))
    found = json.loads((tmp_path / "samples.json").read_text())
    why = {"in the gaps between training, validation and test": 2 * PERIODS.gap}
    assert found["time steps"] == {"read": 60, "kept": 60 - 2 * PERIODS.gap, "left_out": why}
    assert found["inputs of samples"]["kept"] == found["targets of samples"]["kept"] == 1
    left_out = {"samples": {"did not converge": 2}}
    write(tmp_path, dataclasses.replace(independent(n=40), left_out=left_out))
    found = json.loads((tmp_path / "samples.json").read_text())
    assert found["samples"] == {"read": 42, "kept": 40, "left_out": {"did not converge": 2}}
