"""Scores of ensembles against brute force, closed forms and the scores of single runs."""

import itertools
import json

import numpy as np
import pytest
import torch
from scipy.stats import norm

from millrace.evaluation.run import evaluate_ensemble
from millrace.evaluation.trained_model import TrainedModel
from millrace.systems.groundwater.ensemble import (
    EnsembleMetrics,
    crps,
    forecast_ensemble,
    inflation,
)
from millrace.systems.groundwater.forecast import forecast_windows
from millrace.training.deadline import Stop
from millrace.training.distributed import Ranks
from millrace.training.request import Request
from millrace.training.segment import run_segment

VARIABLES = ("head", "mass_concentration")


def brute_force(members, truth):
    """Term by term, as in the definition."""
    n = len(members)
    distance = sum(abs(x - truth) for x in members) / n
    pairs = sum(abs(a - b) for a, b in itertools.product(members, repeat=2))
    return distance - pairs / (2 * n * (n - 1))


@pytest.mark.parametrize("n", [2, 3, 7])
def test_crps_is_that_of_its_definition(n) -> None:
    random = np.random.default_rng(n)
    members, truth = random.normal(3, 2, (n, 4, 5)), random.normal(3, 2, (4, 5))
    members[1, 0] = members[0, 0]  # ties
    np.testing.assert_allclose(crps(members, truth), brute_force(members, truth), rtol=1e-12)


def test_crps_is_the_integral_over_the_distribution() -> None:
    """Integral of (F(z) - [z >= y])², the other definition (Hersbach 2000, eq. 2), made fair."""
    members, truth = np.array([0.3, -1.1, 0.9, 2.0]), 0.5
    z = np.linspace(-4, 4, 800_001)
    cdf = (members[:, None] <= z).mean(axis=0)
    integral = np.trapezoid((cdf - (z >= truth)) ** 2, z)
    distances = np.abs(members[:, None] - members).sum()
    unfair = distances / (2 * 4 * 3) - distances / (2 * 4 * 4)
    assert crps(members, truth) == pytest.approx(integral - unfair, abs=1e-4)


@pytest.mark.parametrize("n", [2, 5])
def test_fair_crps_has_the_mean_of_the_normal_distribution(n) -> None:
    """Closed form: Gneiting & Raftery (2007), J. Am. Stat. Assoc. 102, eq. 21; for any ensemble size."""
    mean, std, truth = 1.0, 2.0, 2.5
    z = (truth - mean) / std
    exact = std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    members = np.random.default_rng(0).normal(mean, std, (n, 400_000))
    assert crps(members, np.full(400_000, truth)).mean() == pytest.approx(exact, rel=5e-3)


def test_crps_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="two or more"):
        crps([[2.0]], [3.0])


def fields(members=4, windows=300, spread=1.0):
    """Truth and members drawn from one distribution around a signal, if ``spread`` is 1."""
    random = np.random.default_rng(1)
    shape = (windows, 5, 3, 2)
    signal = random.normal(size=shape) * [1.0, 1000.0] * 3
    noise = random.normal(size=(members, *shape)) * [1.0, 1000.0] * spread
    truth = signal + random.normal(size=shape) * [1.0, 1000.0]
    return truth, signal + noise, np.zeros(shape)


def metrics_of(truth, members, baseline, batches=1):
    metrics = EnsembleMetrics(VARIABLES, truth.shape[2], len(members))
    for part in np.array_split(np.arange(len(truth)), batches):
        metrics.update(truth[part], members[:, part], baseline[part])
    return metrics.result()


def test_a_reliable_ensemble_has_a_ratio_of_one() -> None:
    for spread, low, high in ((1.0, 0.95, 1.05), (0.2, 0.0, 0.3)):
        result = metrics_of(*fields(spread=spread))
        for name in VARIABLES:
            assert low < result[name]["spread_skill"] < high


def test_scores_are_those_of_the_arrays() -> None:
    truth, members, last = fields()
    result = metrics_of(truth, members, last, batches=7)
    for v, name in enumerate(VARIABLES):
        y, x, b = truth[..., v], members[..., v], last[..., v]
        mine = result[name]
        assert mine["mean"]["rmse"] == pytest.approx(np.sqrt(((x.mean(axis=0) - y) ** 2).mean()))
        assert mine["spread"] == pytest.approx(np.sqrt(x.var(axis=0, ddof=1).mean()))
        assert mine["crps"] == pytest.approx(brute_force(x, y).mean())
        assert mine["crps_skill"] == pytest.approx(1 - mine["crps"] / np.abs(b - y).mean())
        expected = np.sqrt(((x - y) ** 2).mean(axis=(1, 2, 3)))
        assert mine["member_rmse"] == pytest.approx(expected)
        by_lead = np.sqrt(x.var(axis=0, ddof=1).mean(axis=(0, 1)))
        assert mine["by_lead"]["spread"] == pytest.approx(by_lead)
        by_lead = brute_force(x, y).mean(axis=(0, 1))
        assert mine["by_lead"]["crps"] == pytest.approx(by_lead)


def test_inflated_members_differ_as_much_as_their_mean_errs_at_each_lead_time() -> None:
    truth, members, last = fields()
    # The later, the more sure of themselves.
    mean = members.mean(axis=0)
    members = mean + (members - mean) / np.array([1.0, 2.0, 5.0])[:, None]
    factor_TV = inflation(metrics_of(truth, members, last))
    np.testing.assert_allclose(factor_TV, np.tile([[1.0], [2.0], [5.0]], 2), rtol=0.05)
    inflated = metrics_of(truth, mean + factor_TV * (members - mean), last)
    for name in VARIABLES:
        assert inflated[name]["spread_skill"] == pytest.approx(1)
    alike = metrics_of(truth, np.stack([mean, mean]), last)
    assert (inflation(alike) == 1).all(), "no spread to inflate"


@pytest.fixture(scope="module")
def trained(samples, definition, tmp_path_factory):
    """Checkpoints and receipts of three seeds, one epoch each."""
    base = tmp_path_factory.mktemp("ensemble")
    made = []
    for seed in range(3):
        output = base / f"seed{seed}.ckpt"
        request = Request(
            experiment="tiny",
            layout="n1_gpu1",
            seed=seed,
            target_epoch=1,
            definition=definition,
            files={role: str(path) for role, path in samples.items()},
            runs=str(base / f"runs/tiny/n1_gpu1/seed{seed}"),
            checkpoint=str(output),
            receipt=str(output.with_suffix(".json")),
        )
        assert run_segment(request, Ranks(0, 1, torch.device("cpu"))) is Stop.NO
        made.append((output, output.with_suffix(".json")))
    return made


def test_members_score_as_they_do_alone(trained, samples) -> None:
    models = [TrainedModel.load(c, json.loads(r.read_text()), samples) for c, r in trained]
    together = forecast_ensemble(models, "test")
    for number, model in enumerate(models):
        alone, _ = forecast_windows(model, "test")
        for name in VARIABLES:
            assert together[name]["member_rmse"][number] == pytest.approx(
                alone[name]["rmse"], rel=1e-5
            )
            assert together[name]["mean"]["count"] == alone[name]["count"]
    for name in VARIABLES:
        rmse = together[name]["mean"]["rmse"]
        # The mean errs less than its members do in the mean of squares (Jensen), as they differ.
        assert rmse < np.sqrt(np.mean(np.square(together[name]["member_rmse"])))


def test_members_are_calibrated_on_validation_data(trained, samples) -> None:
    models = [TrainedModel.load(c, json.loads(r.read_text()), samples) for c, r in trained]
    validation = forecast_ensemble(models, "validation")
    factor_TV = inflation(validation)
    again = forecast_ensemble(models, "validation", factor_TV=factor_TV)
    for v, name in enumerate(VARIABLES):
        calibrated = again[name].pop("calibrated")
        assert calibrated["spread_skill"] == pytest.approx(1)
        assert calibrated["factor"] == pytest.approx(factor_TV[:, v])
        assert again[name] == validation[name], "the others are of the members as they are"


def test_metrics_and_figure_are_written(trained, samples, tmp_path) -> None:
    metrics, figure = tmp_path / "metrics.json", tmp_path / "figure.png"
    checkpoints, receipts = zip(*trained, strict=True)
    evaluate_ensemble(checkpoints, receipts, samples, metrics, figure)
    written = json.loads(metrics.read_text())
    assert (written["experiment"], written["layout"], written["seeds"]) == (
        "tiny",
        "n1_gpu1",
        [0, 1, 2],
    )
    assert written["test"]["head"]["members"] == 3
    assert written["test"]["head"]["calibrated"].keys() == {
        *("crps", "crps_skill", "spread", "spread_skill", "factor"),
    }
    assert written["validation"].keys() == written["test"].keys() == set(VARIABLES)
    assert figure.stat().st_size > 10_000


def test_scores_are_written_where_the_figure_fails(
    trained, samples, tmp_path, monkeypatch, capsys
) -> None:
    def fail(*arguments):
        raise ValueError("nothing to see")

    monkeypatch.setattr("millrace.systems.groundwater.evaluation.ensemble_by_lead", fail)
    checkpoints, receipts = zip(*trained, strict=True)
    evaluate_ensemble(checkpoints, receipts, samples, tmp_path / "m.json", tmp_path / "f.png")
    assert json.loads((tmp_path / "m.json").read_text())["test"]
    assert (tmp_path / "f.png").is_file()
    assert "f.png is not drawn: nothing to see" in capsys.readouterr().err
