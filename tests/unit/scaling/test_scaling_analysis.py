"""A whole study: what belongs together, how it is labelled, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from synthetic import CPU, GPU, make_run, series

from millrace.errors import ConfigError, DataError
from millrace.scaling.analysis import analyse
from millrace.scaling.records import Labels
from millrace.scaling.settings import AnalysisSettings, Goal

SIX = ("n1_gpu1", "n1_gpu2", "n2_gpu1", "n2_gpu2", "n1_gpu4", "n4_gpu1")
QUICK = {"draws": 300}


def row(study, layout):
    return next(one for one in study.layouts if one.layout == layout)


def test_cpu_and_gpu_are_never_in_one_study() -> None:
    analysis = analyse(series(SIX[:2], device=CPU) + series(SIX[:2]), AnalysisSettings(**QUICK))
    assert [study.device_kind for study in analysis.studies] == ["gpu", "cpu"]
    assert len({study.key for study in analysis.studies}) == 2
    for study in analysis.studies:
        assert row(study, "n1_gpu1").factors.efficiency.value == 1


def test_strong_and_weak_are_apart() -> None:
    weak = series(SIX[:2], mode="weak", batch=16)
    analysis = analyse(series(SIX[:2]) + weak, AnalysisSettings(**QUICK))
    strong, weak = analysis.studies
    assert (strong.mode, strong.global_batch, strong.rank_batch) == ("strong", 64, None)
    assert (weak.mode, weak.global_batch, weak.rank_batch) == ("weak", None, 16)
    assert row(weak, "n1_gpu2").rank_batch == 16
    assert weak.recommendation.layout is None
    assert "the batch grows with the layout" in weak.recommendation.sentence


def test_labels_of_measured_modelled_and_extrapolated_layouts() -> None:
    settings = AnalysisSettings(
        layouts=(*SIX, "n4_gpu2"),
        links={"inter": {"latency_s": 2e-5, "bytes_per_s": 1e10}},
        **QUICK,
    )
    (study,) = analyse(series(SIX[:2], device=CPU), settings).studies
    labels = {one.layout: one.label for one in study.layouts}
    others = dict.fromkeys(("n2_gpu2", "n1_gpu4", "n4_gpu1"), "extrapolated")
    assert labels == {"n1_gpu1": "measured", "n1_gpu2": "measured", "n2_gpu1": "modelled", **others}
    for one in study.layouts:
        factors = one.factors
        numbers = (one.step, one.throughput, one.speed_up, factors.efficiency, one.epoch.seconds)
        assert {number.label for number in numbers} == {one.label}
        parts = (factors.balance, factors.communication, factors.data, factors.compute)
        assert factors.efficiency.value == pytest.approx(np.prod([part.value for part in parts]))
        assert sum(part.value for part in one.parts.values()) == pytest.approx(one.step.value)
    # No all-reduce is measured in training: that of a measured layout is modelled.
    reduced = {one.layout: one.all_reduce.label for one in study.layouts[1:]}
    assert reduced == {"n1_gpu2": "modelled", "n2_gpu1": "modelled", **others}
    refused = {refusal.what: refusal.reason for refusal in study.refusals}
    assert (
        "8 ranks are beyond 2 times the largest measured number, 2"
        in refused["prediction of n4_gpu2"]
    )
    assert "2 distinct numbers of ranks" in refused["fit of USL"]


def test_six_layouts_have_too_few_numbers_of_ranks_for_a_fit() -> None:
    (study,) = analyse(series(SIX), AnalysisSettings(**QUICK)).studies
    assert study.fits == ()
    assert {"fit of Amdahl", "fit of USL"} <= {refusal.what for refusal in study.refusals}
    (more,) = analyse(series((*SIX, "n1_gpu8")), AnalysisSettings(**QUICK)).studies
    assert [law.law for law in more.fits] == ["Amdahl", "USL"]
    assert more.fits[0].ranks == (1, 2, 4, 8)
    # One layout a number of ranks, three repeats each.
    assert more.fits[0].observations == 12


@pytest.mark.parametrize(
    ("band", "verdict"),
    [([0.5, 1.0], "confirmed"), ([0.97, 0.99], "contradicted"), ([0.9, 0.902], "open")],
)
def test_claims_are_tested_on_measured_gpus_only(band, verdict) -> None:
    settings = AnalysisSettings(claims={"n1_gpu4": tuple(band)}, **QUICK)
    analysis = analyse(series(["n1_gpu1", "n1_gpu4"]), settings)
    claim = row(analysis.studies[0], "n1_gpu4").claim
    assert claim.verdict == verdict
    assert analysis.notes == ()
    on_cpu = analyse(series(["n1_gpu1", "n1_gpu4"], device=CPU), settings)
    assert row(on_cpu.studies[0], "n1_gpu4").claim is None
    assert "not tested: it is about GPUs" in on_cpu.notes[0]
    predicted = analyse(series(["n1_gpu1", "n1_gpu2"]), settings.replaced(layouts=("n1_gpu4",)))
    assert row(predicted.studies[0], "n1_gpu4").claim is None


def test_losses_are_compared_at_equal_global_batch() -> None:
    runs = series(SIX[:2])
    (study,) = analyse(runs, AnalysisSettings(**QUICK)).studies
    assert study.losses_agree is True
    assert row(study, "n1_gpu2").loss_deviation.value == 0
    runs[-1] = replace(runs[-1], losses=tuple(1.01 * loss for loss in runs[-1].losses))
    (study,) = analyse(runs, AnalysisSettings(**QUICK)).studies
    assert study.losses_agree is False
    assert row(study, "n1_gpu2").loss_deviation.value == pytest.approx(0.01)
    (weak,) = analyse(series(SIX[:2], mode="weak"), AnalysisSettings(**QUICK)).studies
    assert weak.losses_agree is None


def test_shares_of_the_hardware_by_hand() -> None:
    run = make_run(noise=0.0, flops_per_sample=1e10, traffic_per_sample=1e9, energy_joules=640.0)
    (study,) = analyse([run], AnalysisSettings(**QUICK)).studies
    (one,) = study.layouts
    rate = 64 / 0.066  # samples/s of the generator
    assert one.mfu.value == pytest.approx(rate * 1e10 / GPU.peak_flops)
    # 10 operations a byte at 1.5 TB/s: 15 of 100 Tflop/s.
    assert one.roofline.value == pytest.approx(one.mfu.value / 0.15)
    assert one.mfu.label == "modelled", "operations are counted, not measured"
    assert one.energy.value == pytest.approx(640 / (64 * 40))
    assert one.memory.value == 2**30


def test_epochs_give_costs_to_the_target() -> None:
    settings = AnalysisSettings(
        epochs={"model_a": 10}, prices={"gpu": 2.0}, goal=Goal(min_efficiency=0.99), **QUICK
    )
    (study,) = analyse(series(SIX[:2]), settings).studies
    two = row(study, "n1_gpu2")
    assert two.epoch.seconds.value == pytest.approx(two.step.value * 100)
    assert two.target.money.value == pytest.approx(10 * two.epoch.seconds.value * 2 / 3600 * 2.0)
    assert study.recommendation.layout == "n1_gpu1"
    assert "99% efficiency" in study.recommendation.sentence


def test_unknown_waits_are_taken_as_the_longest_known() -> None:
    runs = series(["n1_gpu1"], queue_seconds=60.0) + series(["n1_gpu2"], queue_seconds=36000.0)
    settings = AnalysisSettings(
        layouts=("n1_gpu4",), epochs={"model_a": 100}, goal=Goal(deadline_hours=9), **QUICK
    )
    (study,) = analyse(runs, settings).studies
    assert row(study, "n1_gpu2").queue_hours.value == pytest.approx(10)
    assert study.recommendation.layout == "n1_gpu1"
    (study,) = analyse(runs, settings.replaced(queue_hours={"n1_gpu4": 0.0})).studies
    assert study.recommendation.layout == "n1_gpu1", "it is cheaper, and in time"
    (study,) = analyse(runs, settings.replaced(queue_hours={"n1_gpu4": 0.0}, goal=Goal())).studies
    assert study.recommendation.layout == "n1_gpu4"


def test_too_few_steps_and_repeats_are_said() -> None:
    (study,) = analyse(series(["n1_gpu1"], repeats=2, steps=12), AnalysisSettings(**QUICK)).studies
    assert "2 repeats of 12 steps; the method asks for 3 of 30" in study.notes[0]


def test_a_base_of_several_ranks_is_said() -> None:
    (study,) = analyse(series(["n1_gpu2", "n1_gpu4"]), AnalysisSettings(**QUICK)).studies
    assert study.base == "n1_gpu2"
    assert "a single rank was not measured" in study.notes[0]
    assert row(study, "n1_gpu4").speed_up.value < 2


def test_runs_with_modelled_times_are_not_called_measured() -> None:
    guess = series(["n1_gpu2"], labels=Labels(times="modelled"))
    (study,) = analyse(series(["n1_gpu1"]) + guess, AnalysisSettings(**QUICK)).studies
    assert row(study, "n1_gpu2").label == "modelled"
    assert row(study, "n1_gpu2").factors.efficiency.label == "modelled"


@pytest.mark.parametrize(
    ("runs", "told"),
    [
        ([], "at least one run"),
        ([make_run(), make_run()], "two runs have the same number of repeat"),
        (
            [make_run(), make_run("n1_gpu2", batch=32)],
            r"same global batch in all runs, got \[32, 64\]",
        ),
        ([make_run(), make_run(repeat=1, gradient_bytes=8)], "same size of the gradients"),
        (
            [make_run(mode="weak"), make_run("n1_gpu2", mode="weak", batch=32)],
            "same batch of a rank in all runs",
        ),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(runs, told) -> None:
    with pytest.raises(DataError, match=told):
        analyse(runs, AnalysisSettings(**QUICK))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"layouts": ["n1"]}, r"scaling.layouts\[0\]: expected a layout"),
        ({"claims": {"n1_gpu4": [0.9]}}, "scaling.claims.n1_gpu4"),
        ({"links": {"inner": {}}}, "scaling.links: 'inner': expected one of intra, inter"),
        (
            {"links": {"inter": {"latency_s": -1, "bytes_per_s": 1}}},
            "scaling.links.inter.latency_s",
        ),
        (
            {"prices": {"gpu": "cheap"}},
            "scaling.prices.gpu: expected a number above 0, got 'cheap'",
        ),
        ({"queue_hours": {"n1_gpu1": -1}}, "scaling.queue_hours.n1_gpu1"),
        ({"draws": 10}, "scaling.draws"),
    ],
)
def test_settings_are_checked(settings, told) -> None:
    with pytest.raises(ConfigError, match=told):
        AnalysisSettings.parse(settings, "scaling")


def test_a_goal_is_positive() -> None:
    with pytest.raises(ConfigError, match=r"scaling.goal.budget"):
        Goal.parse({"budget": 0}, "scaling.goal")


def test_the_analysis_is_json_and_the_same_every_time() -> None:
    settings = AnalysisSettings(layouts=SIX, epochs={"model_a": 3}, **QUICK)
    first, second = (analyse(series(SIX[:4]), settings).as_json() for _ in range(2))
    assert first == second
    assert json.loads(json.dumps(first, allow_nan=False)) == first
