"""Micro-batches: whatever their size and the number of ranks, the same loss curve as one big batch."""

import numpy as np
import pytest
import rank_worker
from tiers import slow_for

from millrace.training.batches import GlobalBatch, micro_batches, rank_shares

STEPS = 24


@pytest.fixture(scope="module")
def problem(experiments):
    """Batches of 9 on 2 ranks are shares of 5 and 4; those of remainders have several groups."""
    definition, files = experiments["gino"]
    return {**definition, "train": {**definition["train"], "global_batch": 9}}, files


@pytest.fixture(scope="module")
def at_once(problem, alone):
    definition, files = problem
    job = {"definition": definition, "files": files, "steps": STEPS}
    return rank_worker.train(job, alone)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_micro_batches_of_one_process(problem, at_once, alone, size):
    definition, files = problem
    job = {"definition": definition, "files": files, "steps": STEPS}
    result = rank_worker.train({**job, "execution": {"micro_batch": size}}, alone)
    assert_same_curve(result, at_once)


@pytest.mark.parametrize("size", slow_for([2, 4], (4).__eq__))
def test_ranks_with_different_numbers_of_micro_batches(problem, at_once, train_on_ranks, size):
    result = train_on_ranks(2, *problem, STEPS, {"micro_batch": size})
    numbers = [
        [sum(-(-len(index) // size) for _, index, _ in mine) for mine in ranks]
        for ranks in result["batches"]
    ]
    assert any(one != other for one, other in numbers), "the hard case did not occur"
    groups = [{group for mine in ranks for group, *_ in mine} for ranks in result["batches"]]
    assert {0, 1} in groups, "no batch of remainders"
    assert_same_curve(result, at_once)


def assert_same_curve(result, expected):
    assert len(expected["losses"]) >= STEPS
    assert result["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert result["norms"] == pytest.approx(expected["norms"], rel=1e-4)
    assert result["validation"] == pytest.approx(expected["validation"], rel=1e-5)


@pytest.mark.parametrize("size", [None, 1, 3, 7, 8])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2), (8, 9)])
def test_micro_batches_are_the_share(size, rank, world_size):
    [share] = rank_shares(GlobalBatch(((3, np.arange(7) * 10),)), rank, world_size)
    parts = micro_batches([share], size)
    assert max(len(part.index) for part in parts) <= (size or 7)
    for name in ("index", "weight"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert joined.tolist() == getattr(share, name).tolist()
    assert {(part.group, part.batch_size) for part in parts} == {(3, 7)}
