"""Training that goes back before a loss that is not finite or a spike, with a smaller learning rate."""

import json
from dataclasses import asdict
from io import StringIO

import pytest
from rich.console import Console
from roll_back_worker import EPOCHS, Fault, KilledError, train, train_on_ranks
from tensors import assert_same
from tiers import nightly_for

from millrace.checking.ranks import on_ranks
from millrace.errors import NotFiniteError
from millrace.figures.training import training_curves
from millrace.runs.display import record, runs_table, show
from millrace.runs.inventory import find_runs
from millrace.training.deadline import Stop
from millrace.training.store import load_state

FAULT = Fault(step=29)  # in the third epoch, of 12 steps each
BACK = {"epoch": 2, "step": 24, "cause": "the gradient became infinite or NaN"}


@pytest.fixture(scope="module")
def problem(experiments):
    """(**keys of the section train) -> definition and sample files."""
    definition, files = experiments["gino"]

    def with_keys(**keys):
        return {**definition, "train": {**definition["train"], **keys}}, files

    return with_keys


@pytest.fixture(scope="module")
def rolled_back(problem, alone, tmp_path_factory):
    """Folder of a training that nothing but the fault has disturbed."""
    folder = tmp_path_factory.mktemp("rolled_back")
    assert train(folder, *problem(ema=0.9, roll_back={"times": 2}), alone, FAULT) is Stop.NO
    return folder


def last(folder, epoch=EPOCHS):
    return load_state(folder / f"epoch_{epoch}.ckpt")


def receipt(folder, epoch=EPOCHS):
    return json.loads((folder / f"epoch_{epoch}.json").read_text())


def lines(folder):
    [metrics] = folder.glob("runs/*/metrics.jsonl")
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def test_from_the_beginning_it_is_the_run_with_the_smaller_rate(problem, alone, tmp_path):
    """A rate that nothing can be trained with; all products are exact."""
    diverging = problem(learning_rate=2.0**99, roll_back={"times": 1, "factor": 2.0**-109})
    assert train(tmp_path / "one", *diverging, alone, target=2) is Stop.NO
    assert train(tmp_path / "other", *problem(learning_rate=2.0**-10), alone, target=2) is Stop.NO
    one, other = last(tmp_path / "one", 2), last(tmp_path / "other", 2)
    assert_same(one["model"], other["model"])
    assert [r["step"] for r in one["roll_backs"]] == [0]
    assert "roll_backs" not in other
    assert "roll_backs" not in receipt(tmp_path / "other", 2)


def test_each_epoch_is_told_of_once_and_the_roll_back_with_it(rolled_back, tmp_path):
    state, written = last(rolled_back), receipt(rolled_back)
    assert state["roll_backs"] == written["roll_backs"] == [BACK]
    for history in (state["history"], written["history"], lines(rolled_back)):
        assert [one["epoch"] for one in history] == [1, 2, 3, 4]
        assert [one.get("roll_backs", 0) for one in history] == [0, 0, 1, 1]
        rates = [one["learning_rate"] for one in history]
        assert rates == pytest.approx([3e-3, 3e-3, 1.5e-3, 1.5e-3])
    training_curves(state["history"], tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").read_text().count("rolled back") == 2


def test_the_inventory_of_runs_tells_of_it(rolled_back, tmp_path):
    store = tmp_path / "head/n1_gpu1/seed0"
    store.parent.mkdir(parents=True)
    store.symlink_to(rolled_back / "runs")
    [run] = find_runs(tmp_path)
    console = Console(file=StringIO(), width=200)
    console.print(runs_table([run]))
    assert "roll-backs: 1" in console.file.getvalue()
    assert record(run)["roll_backs"] == 1
    assert show(run, console)
    said = "the gradient became infinite or NaN in epoch 3: rolled back to the end of epoch 2"
    assert said in console.file.getvalue()


@pytest.mark.parametrize(
    ("faults", "save_every"),
    [
        ([{"killed_at": (26, 1)}], 1),
        ([{"killed_at": (27, 0)}, {"killed_at": (40, 1)}], 3),
        ([{"stopped_at": (27, 0)}, {"stopped_at": (26, 1)}], 1),
        ([{"stopped_at": (25, 0)}, {"stopped_at": (27, 0)}, {"stopped_at": (25, 1)}], 4),
    ],
)
def test_a_run_that_was_stopped_or_killed_has_the_same_weights(
    problem, alone, tmp_path, rolled_back, faults, save_every
):
    blocks = problem(ema=0.9, roll_back={"times": 2})
    for fault in faults:
        given = (tmp_path, *blocks, alone, Fault(**asdict(FAULT) | fault))
        if "killed_at" in fault:
            with pytest.raises(KilledError):
                train(*given, save_every=save_every)
        else:
            assert train(*given, save_every=save_every) is Stop.END
    assert train(tmp_path, *blocks, alone, FAULT, save_every=save_every) is Stop.NO
    state, undisturbed = last(tmp_path), last(rolled_back)
    assert state["roll_backs"] == [BACK]
    for kind in ("model", "ema_model"):
        assert_same(state[kind], undisturbed[kind])
    assert [one["epoch"] for one in lines(tmp_path)] == [1, 2, 3, 4]


def test_milestones_hand_it_on(problem, alone, tmp_path, rolled_back):
    """Each in a store of its own, as if that had been removed."""
    blocks, previous = problem(ema=0.9, roll_back={"times": 2}), None
    for target in range(2, EPOCHS + 1):
        folder = tmp_path / str(target)
        assert train(folder, *blocks, alone, FAULT, target, previous=previous) is Stop.NO
        previous = str(folder / f"epoch_{target}.ckpt")
    assert_same(last(folder)["model"], last(rolled_back)["model"])
    assert receipt(folder)["roll_backs"] == [BACK]


def test_after_the_last_one_it_stops_and_the_last_good_step_stands(problem, alone, tmp_path):
    always = Fault(step=29, tries=9)
    for _ in range(2):  # the same again
        with pytest.raises(
            NotFiniteError, match=r"intact.*train\.roll_back went back 2 times before"
        ):
            train(tmp_path, *problem(roll_back={"times": 2}), alone, always)
        assert [one["epoch"] for one in lines(tmp_path)] == [1, 2]
        assert not (tmp_path / f"epoch_{EPOCHS}.ckpt").exists()
    [store] = (tmp_path / "runs").iterdir()
    assert sorted(path.name for path in store.glob("step_*"))[-1] == "step_0000000024"


def test_a_spike_is_one_beside_the_epochs_before(problem, alone, tmp_path):
    jump = Fault(step=29, by=1e4)
    for name, keys in (("without", {}), ("with", {"spike": 100})):
        blocks = problem(roll_back={"times": 1, **keys})
        assert train(tmp_path / name, *blocks, alone, jump) is Stop.NO
    assert "roll_backs" not in last(tmp_path / "without")
    [back] = last(tmp_path / "with")["roll_backs"]
    assert back["step"] == 24
    assert back["cause"].startswith("the training loss rose to ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parallel", "step"),
    nightly_for([("gino", {}, 29), ("aurora", {"dp_shard": 2}, 1)], lambda case: case[0] != "gino"),
)
def test_one_rank_that_is_hit_takes_all_back(experiments, tmp_path, name, parallel, step):
    definition, files = experiments[name]
    definition = {**definition, "train": {**definition["train"], "roll_back": {"times": 1}}}
    found = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        fault, divided = asdict(Fault(step, rank=ranks - 1)), parallel if ranks > 1 else {}
        given = (str(folder), definition, files, fault, divided)
        found.append(on_ranks(ranks, train_on_ranks, *given, directory=folder))
    one, two = found
    assert one["roll_backs"] == two["roll_backs"]
    assert [back["epoch"] for back in one["roll_backs"]] == [BACK["epoch"] if step == 29 else 0]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["norms"] == pytest.approx(one["norms"], rel=1e-3)
