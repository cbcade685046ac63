"""Samples that are gathered in a thread: the same ones, in the same order, and no more than asked for."""

import threading
from functools import partial

import numpy as np
import pytest
from tensors import assert_same

from millrace.errors import DataError
from millrace.systems.registry import models
from millrace.training.ahead import DEPTH, Ahead
from millrace.training.batches import RankShare
from millrace.training.passes import Passes
from millrace.training.replay import Replay

REPLAY = {"longest": 4, "fresh": 0.2}


def share(number, size=3):
    index = np.arange(size) + 10 * number
    return RankShare(0, index, np.ones(size, dtype=np.float32), index, size)


def begin(gather, numbers):
    return Ahead((share(n), partial(gather, share(n))) for n in numbers)


def test_shares_are_gathered_in_order_and_no_further_than_the_depth():
    gathered, threads = [], set()

    def gather(one):
        gathered.append(int(one.index[0]) // 10)
        threads.add(threading.current_thread())
        return gathered[-1]

    with begin(gather, range(10)) as ahead:
        taken = [ahead.take(share(n)) for n in range(5)]
    assert taken == [0, 1, 2, 3, 4]
    assert gathered[:5] == taken
    assert len(gathered) <= 5 + DEPTH
    assert threading.current_thread() not in threads
    assert len(threads) == 1
    assert not [one for one in threads if one.is_alive()]


def test_what_is_not_next_is_not_given():
    with begin(lambda one: int(one.index[0]), [0, 1]) as ahead:
        assert ahead.take(share(1)) is None
        other = RankShare(0, share(0).index, np.zeros(3, dtype=np.float32), share(0).place, 3)
        assert ahead.take(other) is None
        assert ahead.take(share(0)) == 0
        assert ahead.take(share(1)) == 10
        assert ahead.take(share(1)) is None


def test_an_error_is_raised_where_the_samples_are_asked_for():
    def gather(one):
        if one.index[0]:
            raise DataError("damaged")
        return "samples"

    with begin(gather, [0, 1]) as ahead:
        assert ahead.take(share(0)) == "samples"
        with pytest.raises(DataError, match="damaged"):
            ahead.take(share(1))


def test_other_samples_are_gathered_in_the_same_thread():
    threads = []
    with begin(lambda one: threads.append(threading.current_thread()), [0, 1]) as ahead:
        assert ahead.instead(lambda: (threads.append(threading.current_thread()), 7)[1]) == 7
    assert len(set(threads)) == 1


class NotAhead(Ahead):
    """Gathers nothing before it is asked for."""

    def take(self, share):
        return None

    def instead(self, gather):
        return gather()


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        *((model, {}) for model in models()),
        ("gino", {"replay": REPLAY}),
        ("aurora", {"replay": REPLAY}),
    ],
)
def test_an_epoch_is_the_same_as_if_each_step_gathered_its_samples(
    make_trainer, run, model, keys, monkeypatch
):
    threads = set()
    trainer = make_trainer(model, {"micro_batch": 3}, **keys)

    def note(kind, name):
        gather = getattr(kind, name)

        def noted(*arguments):
            threads.add(threading.current_thread().name)
            return gather(*arguments)

        monkeypatch.setattr(kind, name, noted)

    note(Passes, "samples")
    note(Replay, "gather")
    epochs = 2 if keys else 1  # a buffer begins empty
    ahead = run(trainer, epochs)
    assert all(name.startswith("samples") for name in threads), "training and validation"
    monkeypatch.setattr("millrace.training.passes.Ahead", NotAhead)
    alone = run(make_trainer(model, {"micro_batch": 3}, **keys), epochs)
    assert threading.main_thread().name in threads
    assert_same(ahead["model"], alone["model"])
    for key in ("train_loss", "validation_loss"):
        assert ahead["history"][0][key] == alone["history"][0][key]
