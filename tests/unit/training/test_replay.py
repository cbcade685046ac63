"""The replay buffer: where samples start, how far they lead, and independence of ranks and stops."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensors import assert_same
from tiers import nightly_for

from millrace.errors import ConfigError
from millrace.training.batches import RankShare
from millrace.training.config import ReplayConfig, TrainConfig
from millrace.training.replay import Draw, Lots, Replay
from millrace.training.segment import build_trainer

LONGEST = 4
STEPS = 20


def replaying(**keys):
    return {"longest": LONGEST, "fresh": 0.2, **keys}


@pytest.fixture
def watched(make_trainer, monkeypatch):
    """A trainer that notes what each of its samples starts from: (draw, batch)."""
    trainer = make_trainer("aurora", replay=replaying())
    seen, fill = [], trainer.replay.fill

    def noting(batch, draw):
        seen.append((draw, fill(batch, draw)))
        return batch

    monkeypatch.setattr(trainer.replay, "fill", noting)
    return trainer, seen


@pytest.mark.slow
def test_forecasts_continue_up_to_the_longest_lead(watched, run):
    trainer, seen = watched
    run(trainer, 8)
    leads = np.concatenate([draw.lead for draw, _ in seen])
    assert set(leads) == set(range(LONGEST))  # the last one forecasts the longest
    assert (leads == 0).mean() >= 0.2


def test_what_follows_on_a_forecast_is_the_truth(watched, run):
    """The target of a sample is what the data say for its time, its past the forecast for the times
    before."""
    trainer, seen = watched
    run(trainer, 4)
    dataset, errors = trainer.dataset, {0: [], 1: []}
    for draw, batch in seen:
        truth = dataset.at_times(0, draw.start)
        assert torch.equal(batch.y_BKCIJ, truth.y_BKCIJ)
        assert torch.equal(batch.hours_B, truth.hours_B)
        difference_BT = (batch.past_BTCIJ - truth.past_BTCIJ).abs().mean(dim=(2, 3, 4))
        for lead, difference_T in zip(draw.lead, difference_BT, strict=True):
            # Of two past states the older one is a forecast from the second step on.
            assert (difference_T > 0).tolist() == [lead >= 2, lead >= 1]
            errors[int(lead > 0)].append(float(difference_T[-1]))
    increment = float(np.mean(dataset.increment_scale))
    assert 0 < np.mean(errors[1]) < 3 * increment, (
        "close to the truth, as forecasts of a step or two are"
    )


@pytest.mark.slow
def test_no_window_leaves_the_training_period(watched, run):
    trainer, seen = watched
    run(trainer, 8)
    begin, end = trainer.dataset.split_ranges[0]
    starts = np.concatenate([draw.start for draw, _ in seen])
    assert starts.min() >= begin
    assert starts.max() + trainer.dataset.config.length <= end
    last = trainer.dataset.starts("train")[-1]
    assert any((draw.start[draw.lead > 0] == last).any() for draw, _ in seen), (
        "it goes up to the end"
    )


def test_what_is_kept_does_not_hold_on_to_a_graph(watched, run):
    trainer, _ = watched
    run(trainer, 1)
    assert trainer.replay.entries
    assert not any(entry.past.requires_grad for entry in trainer.replay.entries.values())


def test_forecasts_that_are_not_finite_are_not_kept():
    windows = SimpleNamespace(contains=lambda _, start: start >= 0)
    dataset = SimpleNamespace(
        config=SimpleNamespace(output_steps=1), member=lambda group: (windows, group)
    )
    replay, zero = Replay(ReplayConfig(longest=LONGEST), dataset, 0), np.zeros(3, dtype=np.int64)
    part = RankShare(0, zero, np.ones(3, dtype=np.float32), np.arange(3), 3)
    draw = Draw(Lots(part, 0, [(0, place, 0) for place in range(3)], [False] * 3, zero), zero, zero)
    past = torch.zeros(3, 2, 1, 4, 4)
    replay.keep(draw, past)
    assert len(replay.state()["key"]) == 3
    past[0, 1, 0, 2, 2], past[2, 0, 0, 0, 0] = torch.nan, -torch.inf
    replay.keep(draw, past)
    assert replay.state()["key"] == [[0, 1, 0]]


@pytest.mark.slow
def test_truth_follows_where_a_forecast_was_foreseen_that_is_not_finite(watched, run, monkeypatch):
    """What was gathered ahead for it belongs to other times."""
    trainer, seen = watched
    keep, gather, gathered = trainer.replay.keep, trainer.replay.gather, []

    def without_the_first(draw, past):
        past = past.clone()
        past[0] = torch.nan
        keep(draw, past)

    def noting(draw):
        gathered.append(draw)
        return gather(draw)

    monkeypatch.setattr(trainer.replay, "keep", without_the_first)
    monkeypatch.setattr(trainer.replay, "gather", noting)
    run(trainer, 8)
    assert any(len(draw.lead) > 1 and (draw.lead[1:] > 0).any() for draw, _ in seen)
    for draw, batch in seen:
        assert draw.lead[0] == 0
        assert torch.equal(batch.y_BKCIJ, trainer.dataset.at_times(0, draw.start).y_BKCIJ)
    assert len(gathered) > len(seen), "some were gathered in vain"


@pytest.mark.parametrize(
    ("model", "stop_after"), [("aurora", 3), ("aurora", 7), ("aurora", 10), ("gino", 5)]
)
def test_resume_is_bitwise(make_trainer, run, resume, model, stop_after):
    whole = run(make_trainer(model, replay=replaying()), 2)
    resumed = run(resume(2, stop_after, model=model, replay=replaying()), 2)
    assert_same(resumed["model"], whole["model"])
    [ours], [theirs] = resumed["replay"], whole["replay"]
    assert ours["key"]
    assert ours["key"] == theirs["key"]
    assert all(torch.equal(a, b) for a, b in zip(ours["past"], theirs["past"], strict=True))


@pytest.fixture(scope="module")
def trained(experiments, train_on_ranks):
    """(ranks, replay, parallel) -> result of 20 steps. A batch of 5 leaves ranks unequal shares."""
    definition, files = experiments["aurora"]

    def train(ranks, replay=None, parallel=None):
        block = definition["train"] | {"global_batch": 5, "replay": replay}
        blocks = definition | {"train": block}
        return train_on_ranks(ranks, blocks, files, STEPS, parallel=parallel)

    return train


@pytest.fixture(scope="module")
def one_process(trained):
    return trained(1, replaying())


@pytest.mark.parametrize(
    ("ranks", "parallel", "tolerance"),
    nightly_for(
        [(3, {}, 1e-5), (2, {"dp_shard": 2}, 1e-5), (2, {"tensor": 2}, 1e-4)],
        lambda case: "tensor" in case[1],
    ),
)
def test_layouts_agree(trained, one_process, ranks, parallel, tolerance):
    found = trained(ranks, replaying(), parallel)
    assert found["losses"] == pytest.approx(one_process["losses"], rel=tolerance)
    assert found["norms"] == pytest.approx(one_process["norms"], rel=10 * tolerance)
    # Each forecast is in a checkpoint once, whoever kept it.
    assert sorted(found["replayed"]) == one_process["replayed"]


@pytest.mark.slow
def test_layouts_agree_where_batches_are_of_several_groups(experiments, train_on_ranks):
    definition, files = experiments["gino"]
    block = definition["train"] | {"global_batch": 5, "replay": replaying()}
    one, three = (
        train_on_ranks(ranks, definition | {"train": block}, files, STEPS) for ranks in (1, 3)
    )
    assert three["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert sorted(three["replayed"]) == one["replayed"]
    assert len({group for group, *_ in one["replayed"]}) > 1


def test_it_makes_a_difference(trained, one_process):
    """Else the layouts would agree without a buffer."""
    plain = trained(1)
    assert plain["losses"][0] == pytest.approx(one_process["losses"][0], rel=1e-6)
    assert plain["losses"] != pytest.approx(one_process["losses"], rel=1e-2)


def test_a_buffer_is_redistributed_to_other_ranks(make_trainer, run):
    trainer = make_trainer("aurora", replay=replaying())
    run(trainer, 1)
    whole = trainer.replay.state()
    parts = []
    for rank in range(3):
        trainer.replay.load([whole], rank, 3)
        parts.append(trainer.replay.state())
    assert all(part["key"] for part in parts)
    trainer.replay.load(parts, 0, 1)
    assert trainer.replay.state()["key"] == whole["key"]
    assert trainer.replay.state()["start"] == whole["start"]


def test_the_buffer_of_an_earlier_version_is_that_of_the_only_group(make_trainer, run):
    trainer = make_trainer("aurora", replay=replaying())
    run(trainer, 1)
    state = trainer.replay.state()
    earlier = state | {"key": [key[1:] for key in state["key"]]}
    trainer.replay.load([earlier], 0, 1)
    assert trainer.replay.state()["key"] == state["key"]


@pytest.mark.parametrize(
    ("replay", "message"),
    [
        ({"longest": 1}, "train.replay.longest: expected a whole number from 2"),
        ({"longest": 4, "depth": 0}, "train.replay.depth: expected a whole number of 1"),
        ({"longest": 4, "fresh": 1.0}, "train.replay.fresh: expected a number above 0, below 1"),
    ],
)
def test_refuses_what_makes_no_sense(replay, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.parse({"global_batch": 2, "replay": replay}, "train")


def test_refuses_samples_that_do_not_follow_on_each_other(experiments, alone):
    definition, files = experiments["smart"]
    train = definition["train"] | {"replay": replaying()}
    with pytest.raises(ConfigError, match=r"train\.replay: samples of smart"):
        build_trainer(definition | {"train": train}, files, 0, alone)
