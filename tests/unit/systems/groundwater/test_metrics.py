import json

import numpy as np
import pytest

from millrace.systems.groundwater.scores import FieldMetrics, scores

EXACT = {"rel": 1e-12, "abs": 1e-12}


def evaluate(truth, prediction, baseline, variables=("head",)):
    metrics = FieldMetrics(variables, truth.shape[2])
    metrics.update(truth, prediction, baseline)
    return metrics.result()


def two_pass(y, p):
    """Textbook formulas on whole arrays, in float64."""
    y, p = y.ravel().astype(np.float64), p.ravel().astype(np.float64)
    e = p - y
    dy, dp = y - y.mean(), p - p.mean()
    r = (dy * dp).sum() / np.sqrt((dy**2).sum() * (dp**2).sum())
    alpha, beta = dp.std() / dy.std(), p.mean() / y.mean()
    return {
        "nmae": np.abs(e).mean() / dy.std(),
        "relative_l2": np.linalg.norm(e) / np.linalg.norm(y),
        "rmse": np.sqrt((e**2).mean()),
        "bias": e.mean(),
        "r2": 1 - (e**2).sum() / (dy**2).sum(),
        "kge": 1 - np.sqrt((r - 1) ** 2 + (alpha - 1) ** 2 + (beta - 1) ** 2),
        "kge_r": r,
        "kge_alpha": alpha,
        "kge_beta": beta,
    }


@pytest.fixture
def fields():
    """Heads near 1 m with a spread of 1e-4 m, and concentrations at 35,000 with one of 0.01 mg/L.

    A drift moves the mean from batch to batch, which a careless merge would get wrong.
    """
    rng = np.random.default_rng(0)
    shape = (12, 50, 5, 2)
    scale, offset = np.array([1e-4, 1e-2]), np.array([1.0, 35_000.0])
    drift = np.linspace(0, 3, shape[0])[:, None, None, None]
    truth = offset + scale * (drift + rng.normal(size=shape))
    prediction = truth + scale * (0.2 + 0.3 * rng.normal(size=shape))
    baseline = truth + scale * np.arange(1, 6)[:, None] * rng.normal(size=shape)
    return truth, prediction, baseline


def test_streaming_matches_two_pass_reference(fields):
    truth, _, _ = fields
    metrics = FieldMetrics(["head", "mass_concentration"], 5)
    for part in (slice(0, 1), slice(1, 6), slice(6, 12)):
        metrics.update(*(field[part] for field in fields))
    result = metrics.result()
    for v, name in enumerate(metrics.variables):
        for k, values in ((1, result[name]), (2, result[name]["persistence"])):
            expected = two_pass(truth[..., v], fields[k][..., v])
            assert {m: values[m] for m in expected} == pytest.approx(expected, rel=1e-9)
        error_T = [np.sqrt(((f - truth)[..., v] ** 2).mean(axis=(0, 1))) for f in fields[1:]]
        by_lead = result[name]["by_lead"]
        assert by_lead["rmse"] == pytest.approx(error_T[0], rel=1e-9)
        assert by_lead["persistence_rmse"] == pytest.approx(error_T[1], rel=1e-9)
        assert by_lead["skill"] == pytest.approx(1 - error_T[0] / error_T[1], rel=1e-9)
        assert result[name]["count"] == truth[..., v].size


def test_naive_sums_would_fail_the_same_check(fields):
    """The fixture is hard enough to tell stable from unstable accumulation."""
    y = fields[0][..., 1].ravel()
    naive = (y**2).mean() - y.mean() ** 2
    assert naive != pytest.approx(y.var(), rel=1e-5)


def test_streaming_equals_one_shot(fields):
    """Also if batches differ in size, and if one is empty."""
    names = ["head", "mass_concentration"]
    streamed = FieldMetrics(names, 5)
    for i in range(4):
        streamed.update(*(field[i : i + 1] for field in fields))
    streamed.update(*(field[4:, :20] for field in fields))
    streamed.update(*(field[4:, 20:] for field in fields))
    streamed.update(*(field[:0] for field in fields))
    whole = evaluate(*fields, variables=names)
    for name in names:
        flat, expected = streamed.result()[name], whole[name]
        for part in (None, "persistence", "by_lead"):
            a, b = (x if part is None else x[part] for x in (flat, expected))
            for metric, value in b.items():
                if not isinstance(value, dict):
                    assert a[metric] == pytest.approx(value, rel=1e-9), metric


def test_perfect_prediction(fields):
    truth, _, baseline = fields
    result = evaluate(truth, truth, baseline, ["a", "b"])["b"]
    for metric in ("r2", "kge", "kge_r", "kge_alpha", "kge_beta", "skill"):
        assert result[metric] == pytest.approx(1, **EXACT)
    for metric in ("nmae", "relative_l2", "rmse", "bias"):
        assert result[metric] == 0
    assert result["by_lead"]["skill"] == [1.0] * 5


def closed_form_case():
    # Mean 2, standard deviation 1, so that the ratios are readable.
    truth = 2 + np.tile([-1.0, 1.0], 12).reshape(2, 4, 3, 1)
    return truth, truth + 0.5


def test_constant_offset():
    truth, baseline = closed_form_case()
    result = evaluate(truth, truth + 0.25, baseline)["head"]
    expected = {
        "bias": 0.25, "rmse": 0.25, "nmae": 0.25, "relative_l2": 0.25 / np.sqrt(5), "r2": 1 - 0.0625,
        "kge_r": 1, "kge_alpha": 1, "kge_beta": 1.125, "kge": 1 - 0.125, "skill": 0.5,
    }  # fmt: skip
    assert {m: result[m] for m in expected} == pytest.approx(expected, **EXACT)


def test_doubled_amplitude():
    truth, baseline = closed_form_case()
    result = evaluate(truth, 2 + 2 * (truth - 2), baseline)["head"]
    expected = {"kge_alpha": 2, "kge_r": 1, "kge_beta": 1, "kge": 0, "r2": 0, "bias": 0, "rmse": 1}
    assert {m: result[m] for m in expected} == pytest.approx(expected, **EXACT)


def test_anticorrelated():
    truth, baseline = closed_form_case()
    result = evaluate(truth, 4 - truth, baseline)["head"]
    expected = {"kge_r": -1, "kge_alpha": 1, "kge_beta": 1, "kge": -1, "r2": -3, "skill": -3}
    assert {m: result[m] for m in expected} == pytest.approx(expected, **EXACT)


def test_skill_in_relative_l2_is_the_skill(fields):
    result = evaluate(*fields, variables=["a", "b"])["a"]
    ratio = result["relative_l2"] / result["persistence"]["relative_l2"]
    assert result["skill"] == pytest.approx(1 - ratio, rel=1e-12)


def test_undefined_metrics_are_null():
    # 0.1 has no exact binary form: the mean of many is not 0.1 unless sums are shifted.
    constant = np.full((3, 7, 2, 1), 0.1)
    prediction = constant + 0.01 * np.arange(42).reshape(constant.shape)
    metrics = FieldMetrics(["head"], 2)
    for i in range(3):
        metrics.update(constant[i : i + 1], prediction[i : i + 1], constant[i : i + 1])
    result = metrics.result()["head"]
    for metric in ("r2", "nmae", "kge", "kge_r", "kge_alpha", "skill"):
        assert result[metric] is None, metric
    assert result["by_lead"]["skill"] == [None, None]
    assert result["persistence"]["rmse"] == 0
    assert result["rmse"] == pytest.approx(0.01 * np.sqrt((np.arange(42) ** 2).mean()))
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_values_that_are_not_finite_give_null_for_their_variable_only(fields):
    truth, prediction, baseline = (field.copy() for field in fields)
    prediction[3, 2, 1, 0] = np.nan
    prediction[4, 2, 1, 0] = np.inf
    result = evaluate(truth, prediction, baseline, ["a", "b"])
    json.dumps(result, allow_nan=False)
    assert result["a"]["rmse"] is None
    assert result["a"]["skill"] is None
    assert result["a"]["by_lead"]["rmse"][1] is None
    assert result["a"]["by_lead"]["rmse"][0] is not None
    assert result["b"]["skill"] is not None


def test_float32_is_accumulated_in_float64(fields):
    single = [field.astype(np.float32) for field in fields]
    result = evaluate(*single, variables=["a", "b"])["a"]
    expected = two_pass(single[0][..., 0], single[1][..., 0])
    assert {m: result[m] for m in expected} == pytest.approx(expected, rel=1e-9)


def test_scores_of_any_shape(fields):
    truth, prediction, _ = (field[..., 0] for field in fields)
    assert scores(truth, prediction) == pytest.approx(two_pass(truth, prediction), rel=1e-9)


@pytest.mark.parametrize("wrong", [(2, 4, 3, 2), (2, 4, 2, 1), (2, 5, 3, 1), (2, 4, 3)])
def test_wrong_shape_is_refused(wrong):
    truth, baseline = closed_form_case()
    with pytest.raises(ValueError, match="prediction has shape"):
        FieldMetrics(["head"], 3).update(truth, np.zeros(wrong), baseline)


def test_use_before_data_is_refused():
    with pytest.raises(ValueError, match="before the first update"):
        FieldMetrics(["head"], 3).result()
