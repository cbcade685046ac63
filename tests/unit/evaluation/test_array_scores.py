"""Scores of models on arrays against closed forms, and baselines that know nothing of the test samples."""

import dataclasses
import types

import numpy as np
import pytest
import torch
from array_fields import PERIODS, independent, opened, series, write
from sklearn.linear_model import Ridge as ReferenceRidge

from millrace.data.arrays import ArrayDataset
from millrace.errors import ConfigError
from millrace.evaluation import arrays
from millrace.evaluation.arrays import (
    Ridge,
    evaluate,
    fit_ridge,
    physical,
    score,
    supplied_baselines,
)
from millrace.evaluation.trained_model import TrainedModel
from millrace.figures import style
from millrace.figures.arrays import Example, field_maps
from millrace.models.losses import forecast
from millrace.systems.arrays import ArrayConfig, Samples, array_kind

NOTHING = types.SimpleNamespace(predict=forecast)


class Constant(torch.nn.Module):
    """Forecasts that are off by some standard deviations."""

    def __init__(self, off=0.0):
        super().__init__()
        self.off = off

    def forward(self, batch):
        return batch.y_KBTV + self.off


def trained(dataset, module):
    return TrainedModel(NOTHING, module, dataset)


def of(function):
    """A forecast from normalised fields [K, B, T, V]."""
    return lambda dataset: lambda batch, _: physical(dataset, function(batch))


@pytest.mark.parametrize("shape", [(30, 12), (30, 80)], ids=["more samples", "more values"])
@pytest.mark.parametrize("penalty", [1e-3, 1.0, 300.0])
def test_ridge_is_that_of_a_reference(shape, penalty):
    random = np.random.default_rng(1)
    x, y, other = random.random(shape) + 5, random.random((30, 4)), random.random((9, shape[1])) + 5
    reference = ReferenceRidge(alpha=penalty).fit(x, y)
    np.testing.assert_allclose(
        Ridge.fit(x, y).predict(other, penalty), reference.predict(other), rtol=1e-8
    )


def test_ridge_has_a_penalty_of_its_own_for_each_value():
    random = np.random.default_rng(2)
    x, y = random.random((20, 30)), random.random((20, 2))
    ridge = Ridge.fit(x, y)
    both = ridge.predict(x, np.array([0.1, 10.0]))
    np.testing.assert_array_equal(both[:, 0], ridge.predict(x, 0.1)[:, 0])
    np.testing.assert_array_equal(both[:, 1], ridge.predict(x, 10.0)[:, 1])


def test_ridge_takes_for_each_target_the_penalty_that_is_best_on_validation_samples(tmp_path):
    samples = independent(n=60, grid=(30,))
    noise = np.random.default_rng(3).standard_normal((60, 30))
    # With it, and nearly as many cells as samples, a small penalty is best in training alone.
    samples.targets["p"][0][:] *= 1 + 0.3 * noise
    dataset = opened(tmp_path, samples)
    found = score(dataset, "validation", {"model": fit_ridge(dataset), **zero(dataset)}, None)[0]
    train, validation = (
        dataset.batch(split, 0, np.arange(int(dataset.groups(split)[0])))
        for split in ("train", "validation")
    )
    x = train.x.flatten(1).double().numpy()
    scale = np.linalg.svd(x - x.mean(0), compute_uv=False)[0] ** 2
    best = []
    for v, variable in enumerate(("p", "q")):
        errors = []
        for strength in np.logspace(-8, 1, 19):
            fitted = ReferenceRidge(alpha=strength * scale).fit(
                x, train.y[:, 0, v].double().numpy()
            )
            off = fitted.predict(validation.x.flatten(1).numpy()) - validation.y[:, 0, v].numpy()
            errors.append(np.sqrt(np.square(off).mean()) * dataset.std[v])
        assert found[variable]["forecasts"]["model"]["rmse"] == pytest.approx(
            min(errors), rel=1e-3, abs=0
        )
        best.append(int(np.argmin(errors)))
        assert errors[0] >= (1.1 if variable == "p" else 1.0) * min(errors)
    assert best[1] < best[0] < 18, "the penalty must matter"


def test_ridge_takes_all_samples_or_as_many_as_it_may_evenly_spread(tmp_path, monkeypatch):
    dataset = opened(tmp_path, independent())
    whole = dataset.batch("train", 0, np.arange(24))
    x, y = arrays.gather_samples(dataset, "train")
    np.testing.assert_array_equal(x, whole.x.flatten(1).double())
    np.testing.assert_array_equal(y, whole.y.flatten(1).double())
    monkeypatch.setattr(arrays, "RIDGE_SAMPLES", 3)
    np.testing.assert_array_equal(arrays.gather_samples(dataset, "train")[0], x[[0, 11, 23]])
    monkeypatch.setattr(arrays, "RIDGE_VALUES", 2 * arrays.values_per_sample(dataset))
    np.testing.assert_array_equal(arrays.gather_samples(dataset, "train")[0], x[[0, 23]])


def zero(dataset):
    return {"zero": of(lambda batch: 0 * batch.y_KBTV)(dataset)}


def test_a_linear_relation_is_left_to_ridge(tmp_path):
    dataset = opened(tmp_path, independent(grid=(3,)))
    found = score(dataset, "test", {"model": fit_ridge(dataset), **zero(dataset)}, None)[0]
    assert found["p"]["skill"] > 0.999


def test_scores_are_those_of_their_definitions(tmp_path):
    samples = independent()
    dataset = opened(tmp_path, samples)
    forecasts = {
        "model": of(lambda batch: batch.y_KBTV + 0.25)(dataset),
        "far": of(lambda batch: batch.y_KBTV - 2)(dataset),
        "near": of(lambda batch: batch.y_KBTV + 1)(dataset),
    }
    found, error_BV = score(dataset, "test", forecasts, None)
    truth = samples.targets["q"][0][dataset.order_S[dataset.starts("test")]]
    norm = np.sqrt(np.square(truth).mean())
    assert found["q"]["unit"] == "K"
    assert found["q"]["baseline"] == "near"
    assert found["q"]["skill"] == pytest.approx(0.75, abs=1e-5)
    for name, off in (("model", 0.25), ("far", 2), ("near", 1)):
        scores = found["q"]["forecasts"][name]
        assert scores["rmse"] == pytest.approx(off * dataset.std[1], rel=1e-5)
        assert scores["relative_l2"] == pytest.approx(off * dataset.std[1] / norm, rel=1e-5)
    np.testing.assert_allclose(error_BV, np.tile(0.25 * dataset.std, (8, 1)), rtol=1e-4)


def test_a_perfect_baseline_leaves_skill_undefined(tmp_path):
    dataset = opened(tmp_path, independent())
    perfect = of(lambda batch: batch.y_KBTV)(dataset)
    broken = of(lambda batch: batch.y_KBTV * np.nan)(dataset)
    found, _ = score(dataset, "test", {"model": broken, "same": perfect}, None)
    assert found["p"]["skill"] is None
    assert found["p"]["forecasts"]["model"] == {"rmse": None, "relative_l2": None}


def test_the_mean_is_that_of_training_samples_in_each_cell(tmp_path):
    samples = independent()
    dataset = opened(tmp_path, samples)
    rows = dataset.order_S[dataset.starts("train")]
    forecast_BTVK = supplied_baselines(dataset)["mean"](None, np.arange(3))
    expected = samples.targets["q"][0][rows].mean(axis=0).ravel()
    np.testing.assert_allclose(forecast_BTVK[2, 0, 1], expected, rtol=1e-6)
    assert set(supplied_baselines(dataset)) == {"mean", "ridge"}


def test_persistence_is_the_last_given_state(tmp_path):
    samples = series()
    dataset = opened(tmp_path, samples, input_steps=2, output_steps=3)
    starts = dataset.starts("test")[:2]
    persistence = supplied_baselines(dataset)["persistence"](dataset.at_times(0, starts), starts)
    for step in range(3):
        np.testing.assert_allclose(
            persistence[:, step, 0], samples.targets["u"][0][starts + 1], rtol=1e-5
        )


@pytest.mark.parametrize("make", [independent, series])
def test_baselines_do_not_depend_on_test_samples(tmp_path, make):
    samples = make()
    steps = {} if samples.time is None else {"input_steps": 2, "output_steps": 2}
    before = opened(tmp_path, samples, **steps)
    batch = before.batch("train", 0, np.arange(4))
    forecasts = supplied_baselines(before)
    expected = {name: function(batch, np.arange(4)) for name, function in forecasts.items()}
    tested = before.order_S[slice(*before.split_ranges[2])]
    for fields in (samples.inputs, samples.targets):
        for values, _ in fields.values():
            values[tested] = values[tested][::-1] * 7
    after = opened(tmp_path, samples, **steps)
    assert after.digest != before.digest
    for name, function in supplied_baselines(after).items():
        np.testing.assert_array_equal(function(batch, np.arange(4)), expected[name], err_msg=name)


def test_a_baseline_of_the_plugin_is_scored_beside_the_others(tmp_path):
    dataset = opened(tmp_path, independent())

    def warmer(dataset, starts):
        return dataset.values("targets", starts)[:, None] + np.reshape([1e-14, 3.0], (2, 1, 1))

    kind = array_kind("fields", ["raw"], "m:read", baselines={"warmer": warmer})
    run, _ = kind.evaluation.run(trained(dataset, Constant(0.5)), {}, None)
    assert set(run) == {"validation", "test", "cases"}
    own = run["cases"]["errors"]["q"]["rmse"]
    of_all = run["test"]["q"]["forecasts"]["model"]["rmse"]
    assert np.sqrt(np.mean(np.square(own["values"]))) == pytest.approx(of_all, rel=1e-6)
    assert own["unit"] == "K"
    assert len({*run["cases"]["blocks"]}) == len(own["values"]), "independent samples"
    assert run["test"]["q"]["forecasts"]["warmer"]["rmse"] == pytest.approx(3.0)
    row = kind.table.rows(run)[1]
    assert (row["variable"], row["unit"]) == ("q", "K")
    assert row["warmer_rmse"] == pytest.approx(3.0)
    assert row["skill"] == run["test"]["q"]["skill"]
    assert row["validation_skill"] == run["validation"]["q"]["skill"]
    assert "RMSE of warmer" in kind.table.titles.values()
    assert {"rmse", "mean_rmse", "ridge_rmse", "relative_l2"} <= set(kind.table.titles) & set(row)


def test_a_baseline_of_another_shape_is_refused(tmp_path):
    dataset = opened(tmp_path, independent())
    with pytest.raises(
        ConfigError, match=r"baseline 'own' gives the shape \(8, 2, 5, 6\), expected \(8, 1,"
    ):
        evaluate(
            trained(dataset, Constant()),
            {},
            None,
            {"own": lambda dataset, starts: dataset.values("targets", starts)},
        )


def points():
    random = np.random.default_rng(4)
    samples = independent(grid=(30,))
    places = {name: (random.random(30), "km") for name in ("north", "east")}
    return dataclasses.replace(samples, coordinates=places)


FIGURES = {
    "maps": (independent, "maps.png"),
    "points": (points, "maps.png"),
    "profiles": (lambda: independent(grid=(9,)), "lines.png"),
    "volumes": (lambda: independent(grid=(3, 4, 2)), None),
    "numbers": (lambda: independent(grid=()), None),
    "series": (series, "lines.png"),
}


@pytest.mark.parametrize("case", FIGURES)
def test_fields_are_drawn_by_the_shape_of_their_grid(tmp_path, case):
    make, drawn = FIGURES[case]
    samples = make()
    steps = {} if samples.time is None else {"input_steps": 2, "output_steps": 2}
    dataset = opened(tmp_path, samples, **steps)
    told = []
    _, draw = evaluate(trained(dataset, Constant(0.1)), {}, lambda *n: told.append(n), {})
    draw(tmp_path / "figures")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == set(samples.targets)
    for folder in (tmp_path / "figures").iterdir():
        assert {path.name for path in folder.iterdir()} == {"scatter.png"} | ({drawn} - {None})
    assert told[-1] == (len(dataset.starts("test")),) * 2


def test_a_series_of_many_cells_is_scored_in_parts(tmp_path, monkeypatch):
    time = np.arange(60.0)
    state = np.sin(time[:, None, None] + np.arange(24).reshape(4, 6))
    axes = {"y": (np.arange(4), "m"), "x": (np.arange(6), "m")}
    path = write(tmp_path, Samples({}, {"u": (state, "m")}, axes, (time, "d")), PERIODS)
    dataset = ArrayDataset(path, ArrayConfig(input_steps=2))
    model = {"model": fit_ridge(dataset), **zero(dataset)}
    whole = score(dataset, "test", model, None)[0]
    monkeypatch.setattr("millrace.evaluation.arrays.BATCH_VALUES", 100)
    parts = score(dataset, "test", model, None)[0]
    assert parts["u"]["skill"] == pytest.approx(whole["u"]["skill"], rel=1e-12)
    assert whole["u"]["skill"] > 0.999, "a sine follows from its last two values"


def test_maps_name_what_they_show_with_units(tmp_path, monkeypatch):
    made = []
    original = style.Figure
    monkeypatch.setattr(style, "Figure", lambda *a, **k: made.append(original(*a, **k)) or made[-1])
    truth = np.arange(12.0).reshape(3, 4)
    example = Example({"a_b": (truth**2, "m")}, truth, truth + 0.5)
    axes = [("y", np.arange(3), "km"), ("x", np.arange(4), "km")]
    field_maps(axes, {"least": example, "median": example}, "heat", "K", tmp_path / "maps.png")
    panels = made[0].axes[:8]
    assert [panel.get_title("left") for panel in panels[:4]] == [
        "a b", "Ground truth", "Prediction", "Error",
    ]  # fmt: skip
    shown = [panel.collections[0].get_array() for panel in panels[4:]]
    for field, expected in zip(shown, (truth**2, truth, truth + 0.5, 0.5), strict=True):
        np.testing.assert_array_equal(np.reshape(field, (3, 4)), np.broadcast_to(expected, (3, 4)))
    assert panels[4].get_xlabel() == "x (km)"
    assert panels[4].get_ylabel() == "Median\ny (km)"
    labels = {bar.get_ylabel() or bar.get_xlabel() for bar in made[0].axes[8:]}
    assert labels == {"a b (m)", "Heat (K)", "Error (K)"}
    assert panels[5].collections[0].get_clim() == panels[6].collections[0].get_clim() == (0, 11)
