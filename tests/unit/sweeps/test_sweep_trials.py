"""How trials are asked for, stopped, ranked and shown, on receipts that are written here."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from plans import config

from millrace.errors import DataError, ExitCode
from millrace.plan import Plan
from millrace.sweeps.asking import ask
from millrace.sweeps.choosing import read_chosen, write_chosen
from millrace.sweeps.failure import DIVERGED, train_or_fail
from millrace.sweeps.outcome import (
    Outcome,
    ended,
    going_on,
    read_outcomes,
    read_trials,
    write_decision,
)
from millrace.sweeps.table import summarise_sweep
from millrace.training.request import Request

SWEEP = {
    "train.learning_rate": {"low": 1e-4, "high": 0.1, "log": True},
    "model.modes": [[2, 2, 2], [4, 4, 4]],
    "optuna": {"trials": 20, "at_once": 4},
}
MILESTONES = [4, 8, 10]


def planned(sweep):
    made = config()
    made["experiments"]["head"]["sweep"] = sweep
    made["experiments"]["head"]["model"]["modes"] = [4, 4, 4]
    made["experiments"]["head"]["train"]["learning_rate"] = 1e-3
    return Plan(made)


def outcome(trial, loss, epoch=10, failure=None) -> Outcome:
    records = [{"epoch": e, "validation_loss": loss * 10 / e} for e in range(1, epoch + 1)]
    return Outcome(trial, epoch, (records,), failure)


def simulated(sweep, generation, earlier) -> list[Outcome]:
    """Trials of a generation as if the best learning rate were 3e-3; above 0.05 they fail."""
    found = []
    for trial in ask(sweep, earlier, 10, generation):
        rate = sweep.values(trial)["train.learning_rate"]
        loss = 0.1 + abs(math.log10(rate / 3e-3))
        found.append(outcome(trial, loss, 10 if loss < 1 else 4, DIVERGED if rate > 0.05 else None))
    return found


def test_optuna_asks_the_same_again_and_learns():
    sweep = planned(SWEEP).sweeps["head"]
    told: list[Outcome] = []
    for generation in range(sweep.generations):
        new = simulated(sweep, generation, told)
        assert [one.trial for one in new] == ask(sweep, told, 10, generation)
        told += new
    assert told[0].trial == "head_modes-4x4x4_learning_rate-1e-3", "what the experiment has"
    reverse = [outcome(one.trial, 1 / one.loss()) for one in told[:-4]]
    assert ask(sweep, reverse, 10, 4) != ask(sweep, told[:-4], 10, 4), "losses decide"
    names = [one.trial for one in told]
    assert len({*names}) == 20, "no trial is asked for twice"
    off = [abs(math.log10(sweep.values(n)["train.learning_rate"] / 3e-3)) for n in names]
    assert sum(off[8:]) / 12 < sum(off[:8]) / 8, "later trials are nearer to the optimum"


def test_optuna_begins_with_what_the_experiment_has():
    own = planned(
        {k: one for k, one in SWEEP.items() if k != "train.learning_rate"} | {"optuna": 2}
    )
    assert ask(own.sweeps["head"], [], 10, 0) == ["head_modes-4x4x4", "head_modes-2x2x2"]
    other = planned({"model.modes": [[2, 2, 2], [3, 3, 3]], "optuna": 1}).sweeps["head"]
    assert other.first is None


def test_trials_above_the_median_or_failed_are_stopped():
    earlier = [outcome("a", 1.0), outcome("b", 5.0, epoch=4), outcome("c", 2.0)]
    now = [outcome("d", 1.5, 4), outcome("e", 3.0, 4), outcome("f", 0.1, 4, failure=DIVERGED)]
    decided = going_on([*earlier, *now], ["d", "e", "f"], 4)
    assert decided == ["d"], "the median of 1, 5, 2, 1.5, 3 and infinity is 2.5"
    assert going_on([*now[::-1], *earlier], ["d", "e", "f"], 4) == decided, "whatever the order"
    # Trials that did not get to the milestone do not count there.
    further = [*earlier, outcome("g", 3.0, 8)]
    assert going_on([*further, outcome("d", 1.9, 8)], ["d"], 8) == ["d"]
    assert going_on([*further, outcome("d", 2.1, 8)], ["d"], 8) == []


def test_no_trial_is_stopped_by_the_median_of_few():
    few = [outcome("a", 1.0, 4), outcome("b", 9.0, 4), outcome("c", 8.0, 4)]
    assert going_on(few, ["a", "b", "c"], 4) == ["a", "b", "c"]
    few[1] = outcome("b", 9.0, 4, failure=DIVERGED)
    assert going_on(few, ["a", "b", "c"], 4) == ["a", "c"]


def test_a_loss_is_the_lowest_so_far_and_the_mean_over_seeds():
    first = [{"epoch": e, "validation_loss": v} for e, v in ((1, 3.0), (2, math.nan), (3, 4.0))]
    second = [{"epoch": e, "validation_loss": v} for e, v in ((1, 5.0), (2, 2.0), (3, 1.0))]
    made = Outcome("a", 3, (first, second))
    assert [made.loss(epoch) for epoch in (1, 2, None)] == [4.0, 2.5, 2.0]
    assert Outcome("a", 3, (first, [first[1]])).loss() == math.inf


def test_stopped_trials_end_at_their_milestone():
    decisions = {4: ["a", "b"], 8: ["b"]}
    assert ended(["c", "b", "a"], MILESTONES, decisions.get) == {"c": 4, "b": 10, "a": 8}
    assert ended(["c"], MILESTONES, None) == {"c": 10}
    assert ended(["c", "a"], MILESTONES, {4: []}.get) == {"c": 4, "a": 4}, (
        "nothing is left to decide"
    )


def write_receipts(folder: Path, plan: Plan, outcomes) -> list[str]:
    paths = []
    for one in outcomes:
        for name in plan.trial_receipts("head", {one.trial: one.epoch}):
            path = folder / name
            path.parent.mkdir(parents=True)
            failed = {"failure": one.failure} if one.failure else {}
            history = one.histories[0] if not failed else []
            content = {"experiment": one.trial, "epoch": min(7, one.epoch), "history": history}
            path.write_text(json.dumps(content | failed))
            paths.append(str(path))
    return paths


@pytest.fixture
def done(tmp_path):
    """A sweep that has ended, with a trial that failed and one that was stopped; receipts of two seeds."""
    rates = {"train.learning_rate": ["1e-3", "2e-3", "3e-3", 1], "model.hidden": [8]}
    plan = planned({**rates, "optuna": 4})
    names = [f"head_hidden-8_learning_rate-{text}" for text in ("1e-3", "2e-3", "3e-3", "1")]
    made = [
        outcome(names[0], 0.5),
        outcome(names[1], 0.2),
        outcome(names[2], 0.1, epoch=4),
        outcome(names[3], 1.0, epoch=4, failure=DIVERGED),
    ]
    return SimpleNamespace(
        plan=plan, sweep=plan.sweeps["head"], receipts=write_receipts(tmp_path, plan, made)
    )


def test_outcomes_are_read_from_receipts(done, tmp_path):
    outcomes = read_outcomes(done.receipts)
    assert [one.epoch for one in outcomes] == [10, 10, 4, 4], "not that of an early stop"
    assert [one.loss() for one in outcomes] == pytest.approx([0.5, 0.2, 0.25, math.inf])
    trials = [one.trial for one in outcomes]
    write_decision(done.receipts, trials, 4, tmp_path / "decision.json")
    decided = read_trials(tmp_path / "decision.json")
    assert decided["going_on"] == trials[1:3]
    assert decided["losses"][trials[3]] is None
    (tmp_path / "decision.json").write_text('{"going_on"')
    with pytest.raises(DataError, match=r"decision\.json: damaged"):
        read_trials(tmp_path / "decision.json")


def test_the_chosen_settings_are_a_configuration(done, tmp_path):
    path = tmp_path / "chosen.yaml"
    write_chosen(done.sweep, done.plan.config, done.receipts, path)
    best = "head_hidden-8_learning_rate-2e-3"
    assert read_chosen(path) == best
    alone = Plan(yaml.safe_load(path.read_text()))
    assert alone.definition(best) == done.plan.definition(best)
    assert alone.final_checkpoints() == done.plan.final_checkpoints([best])
    assert alone.sweeps == {}
    path.write_text("experiments: [")
    with pytest.raises(DataError, match="names no chosen trial; delete it"):
        read_chosen(path)


def test_a_sweep_of_which_all_trials_failed_is_one_sentence(done, tmp_path):
    with pytest.raises(DataError, match="sweep of head: all 1 trials failed, the first because"):
        write_chosen(done.sweep, done.plan.config, done.receipts[-2:], tmp_path / "chosen.yaml")


def test_the_table_ranks_by_validation_and_shows_test_of_the_chosen_alone(done, tmp_path):
    files = {key: tmp_path / f"{key}{end}" for key, end in (("table", ".html"), ("csv", ".csv"))}
    files |= {"figure": tmp_path / "trials.png", "chosen": tmp_path / "chosen.yaml"}
    write_chosen(done.sweep, done.plan.config, done.receipts, files["chosen"])
    names = ("rmse", "nmae", "relative_l2", "r2", "kge")
    part = {"head": dict.fromkeys(names, 1.0) | {"skill": 0.75, "persistence": {"rmse": 4.0}}}
    metrics = tmp_path / "metrics.json"
    metrics.write_text(
        json.dumps({"test": part, "validation": part, "rollout": {"variables": part, "windows": 1}})
    )
    summarise_sweep(done.sweep, done.receipts, [str(metrics)], **files)
    table = pd.read_csv(files["csv"])
    assert [*table["train.learning_rate"]] == [2e-3, 1e-3, 3e-3, 1]
    assert [*table["rank"]] == [1, 2, 3, 4]
    assert [text.split()[0] for text in table["state"]] == [
        "chosen",
        "complete",
        "stopped",
        "failed:",
    ]
    assert [*table["test skill head"].fillna(-1)] == [0.75, -1, -1, -1]
    text = files["table"].read_text()
    assert "1 were stopped and 1 failed" in text
    assert DIVERGED in text
    assert text.count("0.75") == 1
    assert files["figure"].stat().st_size > 5000


def request(tmp_path, experiment, previous=None):
    return Request(
        experiment=experiment,
        layout="n1_gpu1",
        seed=0,
        target_epoch=8,
        definition={},
        files={},
        runs=str(tmp_path / "runs"),
        checkpoint=str(tmp_path / "epoch_8.ckpt"),
        receipt=str(tmp_path / "epoch_8.json"),
        previous=previous,
    )


def test_a_trial_that_diverges_has_failed_and_others_fail_as_before(done, tmp_path):
    experiments, diverge = done.plan.config["experiments"], lambda: int(ExitCode.NOT_FINITE)
    assert train_or_fail(request(tmp_path, "head"), experiments, diverge) == ExitCode.NOT_FINITE
    trial = "head_hidden-8_learning_rate-1"
    asked = request(tmp_path, trial)
    for code in (ExitCode.OK, ExitCode.TRY_AGAIN, ExitCode.USER):
        assert train_or_fail(asked, experiments, lambda code=code: int(code)) == code
    assert not Path(asked.receipt).exists()
    assert train_or_fail(asked, experiments, diverge) == ExitCode.OK
    assert Path(asked.checkpoint).stat().st_size > 0
    [failed] = read_outcomes([asked.receipt])
    assert (failed.trial, failed.epoch, failed.loss()) == (trial, 8, math.inf)

    later = request(tmp_path, trial, previous=asked.checkpoint)
    assert train_or_fail(later, experiments, lambda: 1 / 0) == ExitCode.OK, "not tried again"
