"""Samples that are gathered in a thread: the same ones, in the same order, and no more than asked for."""

import threading

import numpy as np
import pytest
from tensors import assert_same

from millrace.errors import DataError
from millrace.systems.registry import models
from millrace.training.ahead import DEPTH, Ahead
from millrace.training.batches import RankShare


def share(number, size=3):
    index = np.arange(size) + 10 * number
    return RankShare(0, index, np.ones(size, dtype=np.float32), index, size)


def test_shares_are_gathered_in_order_and_no_further_than_the_depth():
    gathered, threads = [], set()

    def gather(one):
        gathered.append(int(one.index[0]) // 10)
        threads.add(threading.current_thread())
        return gathered[-1]

    with Ahead(gather, iter([share(n) for n in range(10)])) as ahead:
        taken = [ahead.take(share(n)) for n in range(5)]
    assert taken == [0, 1, 2, 3, 4]
    assert gathered[:5] == taken
    assert len(gathered) <= 5 + DEPTH
    assert threading.current_thread() not in threads
    assert len(threads) == 1
    assert not [one for one in threads if one.is_alive()]


def test_what_is_not_next_is_not_given():
    with Ahead(lambda one: int(one.index[0]), iter([share(0), share(1)])) as ahead:
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

    with Ahead(gather, iter([share(0), share(1)])) as ahead:
        assert ahead.take(share(0)) == "samples"
        with pytest.raises(DataError, match="damaged"):
            ahead.take(share(1))


class NotAhead(Ahead):
    """Gathers nothing before it is asked for."""

    def take(self, share):
        return None


@pytest.mark.parametrize("model", models())
def test_an_epoch_is_the_same_as_if_each_step_gathered_its_samples(
    make_trainer, run, model, monkeypatch
):
    threads = set()
    trainer = make_trainer(model, {"micro_batch": 3})
    samples = type(trainer.passes).samples

    def noted(*arguments):
        threads.add(threading.current_thread().name)
        return samples(*arguments)

    monkeypatch.setattr(type(trainer.passes), "samples", noted)
    ahead = run(trainer, 1)
    assert all(name.startswith("samples") for name in threads), "training and validation"
    monkeypatch.setattr("millrace.training.passes.Ahead", NotAhead)
    alone = run(make_trainer(model, {"micro_batch": 3}), 1)
    assert threading.main_thread().name in threads
    assert_same(ahead["model"], alone["model"])
    for key in ("train_loss", "validation_loss"):
        assert ahead["history"][0][key] == alone["history"][0][key]
