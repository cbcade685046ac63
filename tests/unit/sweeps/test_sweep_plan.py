"""Which trials a sweep has, what they are, and what is refused when planning."""

import json

import pytest
from plans import config

from millrace.errors import ConfigError
from millrace.plan import Plan
from millrace.training import run_hash
from millrace.training.segment import build_trainer

GRID = {"train.learning_rate": ["5e-3", 0.25], "model.hidden": [16, 32]}
RANGES = {
    "train.learning_rate": {"low": "1e-4", "high": 0.1, "log": True},
    "model.hidden": {"low": 8, "high": 64},
    "train.schedule.gamma": {"low": 0.5, "high": 0.9, "step": 0.1},
}


def planned(sweep, **changes) -> Plan:
    made = config()
    made["experiments"]["head"] |= {"sweep": sweep, **changes}
    return Plan(made)


def test_a_grid_has_all_combinations_and_their_names_say_the_values():
    assert planned(GRID).sweeps["head"].trials == [
        "head_hidden-16_learning_rate-5e-3",
        "head_hidden-16_learning_rate-0p25",
        "head_hidden-32_learning_rate-5e-3",
        "head_hidden-32_learning_rate-0p25",
    ]


@pytest.mark.parametrize(
    ("key", "values", "names"),
    [
        ("model.modes", [[2, 2, 2], [4, 4, 2]], ["modes-2x2x2", "modes-4x4x2"]),
        ("train.keep_best", [True, False], ["keep_best-true", "keep_best-false"]),
        ("train.clip_norm", [None, 0.5, 10], ["clip_norm-none", "clip_norm-0p5", "clip_norm-10"]),
        ("train.ema", [0.5, 0.99995], ["ema-0p5", "ema-0p99995"]),
        (
            "train.schedule",
            [{"kind": "cosine", "horizon": 4}, {"kind": "constant"}],
            ["schedule-cosinex4", "schedule-constant"],
        ),
        ("train.weight_decay", [0, 1e-5], ["weight_decay-0", "weight_decay-1e-5"]),
    ],
)
def test_values_of_every_kind_make_names_that_a_path_holds(key, values, names):
    plan = planned({key: values})
    assert plan.sweeps["head"].trials == [f"head_{name}" for name in names]
    found = [plan.sweeps["head"].values(f"head_{name}")[key] for name in names]
    assert json.dumps(found) == json.dumps(values)


def test_a_trial_is_the_experiment_that_one_would_write_by_hand(samples, definition, alone):
    by_hand = {
        "dataset": "coast",
        **definition,
        "train": definition["train"] | {"epochs": 10, "milestone_every": 4},
    }
    made = config()
    made["datasets"]["coast"]["forcings"].append("sea_level_forcing")
    swept = {**by_hand, "sweep": {"train.learning_rate": ["5e-3"], "model.hidden": [12]}}
    by_hand = json.loads(json.dumps(by_hand))
    by_hand["train"]["learning_rate"], by_hand["model"]["hidden"] = 5e-3, 12
    made["experiments"] |= {"swept": swept, "own": by_hand}
    made["run"]["experiments"] = ["own", "swept"]
    plan = Plan(made)
    [trial] = plan.sweeps["swept"].trials
    answers = (plan.definition, plan.milestones, plan.samples)
    assert [answer(trial) for answer in answers] == [answer("own") for answer in answers]
    hashes = [
        run_hash.digest(build_trainer(plan.definition(name), samples, 3, alone)[1])
        for name in (trial, "own")
    ]
    assert hashes[0] == hashes[1]
    assert plan.previous_checkpoint(trial, "n1_gpu1", 0, 8) == [
        f"results/train/{trial}/n1_gpu1/seed0/epoch_4.ckpt"
    ]


def test_draws_follow_from_the_seed_and_stay_within_their_ranges():
    sweep = planned({**RANGES, "random": 40}).sweeps["head"]
    assert sweep.trials == planned({**RANGES, "random": "4e1"}).sweeps["head"].trials
    assert planned({**RANGES, "random": 50}).sweeps["head"].trials[:40] == sweep.trials
    other = planned({**RANGES, "random": {"trials": 40, "seed": 1}}).sweeps["head"]
    assert len({*sweep.trials} & {*other.trials}) < 5
    drawn = [sweep.values(name) for name in sweep.trials]
    assert len({*sweep.trials}) == 40
    rates = sorted(one["train.learning_rate"] for one in drawn)
    assert 1e-4 <= rates[0] < 1e-3 < rates[20] < 1e-2 < rates[-1] <= 0.1, "uniform on a log scale"
    assert {one["train.schedule.gamma"] for one in drawn} == {0.5, 0.6, 0.7, 0.8, 0.9}
    assert all(type(one["model.hidden"]) is int and 8 <= one["model.hidden"] <= 64 for one in drawn)


def test_a_narrow_range_has_enough_values():
    sweep = {"train.ema": {"low": 0.998, "high": 0.999}, "random": 400}
    trials = planned(sweep).sweeps["head"].trials
    assert len({*trials}) == 400


def test_only_the_chosen_trial_is_evaluated_and_trials_run_on_the_first_layout():
    plan = planned(GRID | {"seeds": [3]})
    assert plan.metrics() == plan.final_checkpoints() == plan.ensembles() == []
    assert plan.sweep_tables() == ["results/sweeps/head/table.html"]
    trial = plan.sweeps["head"].trials[0]
    assert plan.trial_receipts("head", {trial: 4}) == [
        f"results/train/{trial}/n1_gpu1/seed3/epoch_4.json"
    ]
    assert len(plan.metrics([trial])) == 4, "two layouts, two seeds"
    assert {str(layout) for layout in plan.layouts()} == {"n1_gpu1", "n2_gpu2"}


def test_every_trial_has_the_samples_that_its_model_needs():
    plan = planned({"model.radius": [0.3, 0.25]})
    names = {path.rpartition("/")[2] for path in plan.sample_files()}
    assert {"graph_12x8x6_r0.3.h5", "graph_12x8x6_r0.25.h5"} <= names


OPTUNA = {"model.hidden": [16, 32, 64]}


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (
            {"trains.epochs": [1]},
            "sweep: unknown key 'trains.epochs'; expected a dotted key of data",
        ),
        ({"learning_rate": [1]}, "sweep: unknown key 'learning_rate'; expected a dotted key"),
        ({"optna": 3, **OPTUNA}, "unknown key 'optna'.*did you mean 'optuna'?"),
        ({"train.learning_rat": [1]}, "'learning_rat'.* did you mean 'learning_rate'?.*head.sweep"),
        ({"model.hiden": [1]}, "unknown key 'hiden': did you mean 'hidden'.*head.sweep"),
        ({"model.hidden": []}, "sweep.model.hidden: expected a list of values, or a range"),
        ({"model.hidden": [8, "8"]}, "sweep.model.hidden: 8 stands there twice"),
        (
            {"model.hidden": [16, "x"]},
            "model.hidden: expected a whole number.* got 'x' .*head.sweep",
        ),
        ({"model.modes": [[9, 99, 9]]}, r"modes \[9, 99, 9\]: at most the points of.*head.sweep"),
        (
            {"train.learning_rate": [1, -1]},
            "learning_rate: expected a number above 0, got -1 .*head.sweep",
        ),
        ({"train.learning_rate.x": [1]}, "learning_rate.*head.sweep"),
        ({**OPTUNA, "random": 2, "optuna": 2}, "head.sweep: both random and optuna"),
        ({"random": 2}, "head.sweep: no setting to try"),
        ({**OPTUNA, "random": 4}, "head.sweep: 4 trials are asked for, but there are 3"),
        ({**OPTUNA, "random": -1}, "sweep.random.trials: expected a whole number of 1"),
        ({**OPTUNA, "optuna": {"trial": 2}}, "sweep.optuna: unknown key 'trial'"),
        ({**OPTUNA, "optuna": [2]}, "sweep.optuna: expected a number of trials or a mapping"),
        ({**OPTUNA, "seeds": [0, 0]}, "sweep.seeds: expected a list of different integers"),
        ({"model.hidden": {"low": 1, "high": 9}}, "sweep.model.hidden: all combinations of a"),
        (
            {"model.hidden": {"low": 9, "high": 1}, "random": 2},
            "sweep.model.hidden: expected low below high",
        ),
        ({"model.hidden": {"low": 1}, "random": 2}, "sweep.model.hidden: key 'high' is missing"),
        (
            {"train.ema": {"low": 0.5, "high": 1.5}, "optuna": 3},
            "ema: expected .* got 1.5 .*head.sweep",
        ),
        ({"model.hidden": [*range(1, 600)]}, "head.sweep: 599 trials, at most 500"),
        ({"train.epochs": [1, 2]}, "sweep.train.epochs: it does not decide the weights"),
        ({"train.micro_batch": [1]}, "sweep.train.micro_batch: it does not decide the weights"),
        ({"train.loss.kind": ["mse"]}, "sweep.train.loss.kind: validation losses, by which"),
        ({"model.name": ["gino"]}, "sweep.model.name: validation losses"),
        ({"model.kernel_widths": [[7] * 120]}, "names of trials have .* characters"),
    ],
)
def test_mistakes_are_refused_with_their_key(sweep, message):
    with pytest.raises(ConfigError, match=f"config: .*{message}") as caught:
        planned(sweep)
    assert "\n" not in str(caught.value)


def test_an_experiment_may_not_take_the_name_of_another_trial():
    made = config()
    made["experiments"]["head"]["sweep"] = {"model.hidden": [16, 32]}
    named = {**config()["experiments"]["head"]}
    named["model"] = named["model"] | {"hidden": 16}
    made["experiments"]["head_hidden-16"] = named
    Plan(made)
    named["model"]["hidden"] = 17
    with pytest.raises(ConfigError, match="head_hidden-16: it has the name of a trial"):
        Plan(made)


def test_a_prediction_names_a_trial_and_not_the_sweep():
    made = config()
    made["experiments"]["head"]["sweep"] = {"model.hidden": [16, 32]}
    block = {"experiment": "head", "layout": "n1_gpu1", "seed": 0, "source": "coast"}
    made["predictions"] = {"new": block}
    with pytest.raises(ConfigError, match=r"predictions\.new\.experiment: head is a sweep"):
        Plan(made)
    block["experiment"] = "head_hidden-32"
    found = Plan(made).predicting_checkpoint("new")["checkpoint"]
    assert found == "results/train/head_hidden-32/n1_gpu1/seed0/epoch_10.ckpt"


def test_more_trials_of_optuna_do_not_change_what_decides_the_earlier_ones():
    settings = [
        planned({**RANGES, "optuna": {"trials": trials}}).sweeps["head"].question
        for trials in (4, 8)
    ]
    assert settings[0] == settings[1]
    assert planned({**RANGES, "optuna": 4}).sweeps["head"].generations == 1
    assert planned({**RANGES, "optuna": 9}).sweeps["head"].generations == 3


def test_trials_are_not_among_the_results_that_nobody_asked_for(tmp_path):
    made = config()
    made["experiments"]["head"]["sweep"] = GRID
    for name in ("head_hidden-16_learning_rate-5e-3", "other"):
        metrics = tmp_path / f"results/evaluate/{name}/n1_gpu1/seed0/metrics.json"
        metrics.parent.mkdir(parents=True)
        metrics.touch()
    assert Plan(made, tmp_path).other_metrics() == [str(metrics)]
