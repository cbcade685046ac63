"""Steps of layouts that were not run."""

import numpy as np
import pytest
from synthetic import make_run, series

from millrace.layout import Layout
from millrace.scaling.communication import assumed_link, fit_link
from millrace.scaling.factors import measure
from millrace.scaling.prediction import Prediction, StepModel
from millrace.scaling.quantity import EXTRAPOLATED, MODELLED, Refusal


def model_of(layouts, links=None, **options):
    runs = {name: series([name], **options) for name in layouts}
    transfers = [t for group in runs.values() for run in group for t in run.bandwidth]
    fitted = {link: fit_link(transfers, link) for link in ("intra", "inter")}
    groups = [measure(group, 300, i) for i, group in enumerate(runs.values())]
    return StepModel(groups, fitted | (links or {}), 40_000_000, 0)


def truth(layout, batch=64, **options):
    run = make_run(layout, batch=batch, noise=0.0, steps=3, **options)
    return float(run.times.array("total")[0, 0])


@pytest.mark.parametrize(
    ("name", "label"), [("n2_gpu2", MODELLED), ("n1_gpu8", EXTRAPOLATED), ("n8_gpu1", EXTRAPOLATED)]
)
def test_known_steps_are_predicted(name, label) -> None:
    model = model_of(["n1_gpu1", "n1_gpu2", "n2_gpu1", "n1_gpu4"])
    layout = Layout.parse(name)
    made = model.predict(layout, 64 / layout.world_size)
    assert isinstance(made, Prediction)
    assert made.step.label == label
    assert made.step.value == pytest.approx(truth(name), rel=0.03)
    assert made.step.low <= made.step.value <= made.step.high
    assert sum(made.parts.values()) == pytest.approx(made.step.value)


def test_predictions_hold_the_truth() -> None:
    held, trials = 0, 40
    for seed in range(trials):
        made = model_of(["n1_gpu1", "n1_gpu2", "n2_gpu1", "n1_gpu4"], seed=seed).predict(
            Layout(2, 2), 16
        )
        held += made.step.low <= truth("n2_gpu2") <= made.step.high
    assert held / trials >= 0.9


def test_measured_layouts_are_reproduced() -> None:
    model = model_of(["n1_gpu1", "n1_gpu2", "n1_gpu4"])
    assert model.deviation() < 0.02
    assert model_of(["n1_gpu1", "n1_gpu2"]).deviation() is None


def test_beyond_twice_the_largest_is_refused() -> None:
    model = model_of(["n1_gpu1", "n1_gpu2"])
    assert isinstance(model.predict(Layout(1, 4), 16), Prediction)
    refused = model.predict(Layout(1, 5), 12.8)
    assert isinstance(refused, Refusal)
    assert "5 ranks are beyond 2 times the largest measured number, 2" in refused.reason


def test_links_that_were_not_measured_are_refused_or_assumed() -> None:
    refused = model_of(["n1_gpu1", "n1_gpu2"]).predict(Layout(2, 1), 32)
    assert isinstance(refused, Refusal)
    assert "scaling.links" in refused.reason
    links = {"inter": assumed_link("inter", 2e-5, 1e10)}
    made = model_of(["n1_gpu1", "n1_gpu2"], links).predict(Layout(2, 1), 32)
    assert made.step.value == pytest.approx(truth("n2_gpu1"), rel=0.02)
    assert "computing as measured on n1_gpu2" in made.basis
    assert "assumed in the configuration" in made.basis


def test_nothing_is_hidden_without_a_layout_to_calibrate_on() -> None:
    links = {"inter": assumed_link("inter", 2e-5, 1e10)}
    made = model_of(["n1_gpu1"], links).predict(Layout(2, 1), 32)
    assert made.parts["communication"] == pytest.approx(truth_transfer(), rel=1e-6)


def truth_transfer():
    return 2 * 2e-5 + 40_000_000 / 1e10


def test_imbalance_and_data_wait_are_carried_over() -> None:
    model = model_of(["n1_gpu2"], slow=[1, 1.5], data_s=4e-3)
    made = model.predict(Layout(1, 4), 16)
    assert made.parts["imbalance"] / made.parts["computing"] == pytest.approx(0.2, rel=0.02)
    assert made.parts["data"] == pytest.approx(2e-3, rel=0.05)


def test_backward_time_grows_with_the_batch_as_generated() -> None:
    constant, slope = model_of(["n1_gpu1", "n1_gpu2", "n1_gpu4"]).backward_law()
    # The generator: 0.6 / 1.0 of 2 ms + 1 ms a sample.
    np.testing.assert_allclose([constant, slope], [1.2e-3, 0.6e-3], rtol=0.15)
