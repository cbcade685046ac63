"""Every sample once an epoch, the same batches on any number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.training.batches import BatchPlan, rank_shares

PLANS = st.tuples(
    st.lists(st.integers(0, 13), min_size=1, max_size=5).filter(any),
    st.integers(1, 9),
    st.integers(0, 2**40),
)


def listed(plan, epoch, start=0):
    return [[(group, index.tolist()) for group, index in b.parts] for b in plan.epoch(epoch, start)]


@settings(max_examples=150, deadline=None)
@given(PLANS, st.integers(1, 6), st.integers(0, 1000))
def test_the_ranks_together_see_every_sample_once(plan_of, world_size, epoch) -> None:
    sizes, batch_size, _ = plan_of
    plan = BatchPlan(np.array(sizes), *plan_of[1:], np.arange(len(sizes)))
    seen: list[tuple[int, int]] = []
    count = 0
    for batch in plan.epoch(epoch):
        count += 1
        assert 0 < batch.size <= batch_size
        shares = [rank_shares(batch, rank, world_size) for rank in range(world_size)]
        taken = [sum(len(share.index) for share in mine) for mine in shares]
        assert min(taken) >= 1  # no rank sits out a step
        assert max(taken) == -(-batch.size // world_size)
        of_group = dict(batch.parts)
        for share in (share for mine in shares for share in mine):
            assert share.batch_size == batch.size
            assert share.weight.dtype == np.float32
            assert set(share.weight.tolist()) <= {0.0, 1.0}
            seen += [
                (share.group, int(i)) for i, w in zip(share.index, share.weight, strict=True) if w
            ]
            assert set(share.index) <= set(of_group[share.group])
    assert count == len(plan) == -(-sum(sizes) // batch_size)
    assert sorted(seen) == [(g, i) for g, size in enumerate(sizes) for i in range(size)]


@pytest.mark.parametrize(
    ("world_size", "batch_size"),
    [(2, 64), (4, 64), (8, 64), (16, 64), (32, 64), (3, 96), (6, 96), (12, 96), (24, 96)],
)
@pytest.mark.parametrize("seed", range(3))
def test_ranks_are_equally_loaded_on_patches_of_all_sizes(world_size, batch_size, seed) -> None:
    """Twenty patches of 500 to 4,000 nodes; what a step takes is the time of its slowest rank."""
    random = np.random.default_rng(seed)
    nodes = random.integers(500, 4001, 20)
    windows = random.integers(400, 900, 20)
    plan = BatchPlan(windows, batch_size, seed, nodes)
    mean = slowest = 0.0
    for batch in plan.epoch(0):
        loads = [
            sum(
                float(nodes[share.group] * share.weight.sum())
                for share in rank_shares(batch, r, world_size)
            )
            for r in range(world_size)
        ]
        mean, slowest = mean + sum(loads) / world_size, slowest + max(loads)
    assert mean / slowest >= 0.99


def test_remainders_are_assigned_most_expensive_first() -> None:
    plan = BatchPlan(np.array([3, 1, 2]), 8, 0, np.array([1.0, 50.0, 7.0]))
    [batch] = plan.epoch(0)
    assert [group for group, _ in batch.parts] == [1, 2, 0]
    assert [[(s.group, len(s.index)) for s in rank_shares(batch, r, 2)] for r in range(2)] == [
        [(1, 1), (0, 2)],
        [(2, 2), (0, 1)],
    ]


@settings(max_examples=50, deadline=None)
@given(PLANS, st.integers(0, 50), st.integers(0, 70))
def test_an_epoch_can_be_entered_anywhere(plan_of, epoch, start) -> None:
    plan = BatchPlan(np.array(plan_of[0]), *plan_of[1:])
    again = BatchPlan(np.array(plan_of[0]), *plan_of[1:])
    assert listed(again, epoch, start) == listed(plan, epoch)[start:]


def test_every_epoch_and_seed_has_its_own_order() -> None:
    sizes = np.array([40, 40])
    orders = [listed(BatchPlan(sizes, 8, seed), epoch) for seed in (0, 1, 7) for epoch in (0, 1, 2)]
    assert all(a != b for n, a in enumerate(orders) for b in orders[:n])
    # Not only the order of the batches: which samples come together changes as well.
    together = [{frozenset(index) for [(_, index)] in order} for order in orders]
    assert all(not a & b for n, a in enumerate(together) for b in together[:n])


def test_groups_are_mixed_within_an_epoch() -> None:
    groups = [group for [(group, _)] in listed(BatchPlan(np.array([64, 64]), 4, 3), 0)]
    assert groups != sorted(groups)
    assert len(groups) == 32


def test_more_ranks_than_samples() -> None:
    batch = next(BatchPlan(np.array([2]), 8, 0).epoch(0))
    shares = [share for rank in range(4) for share in rank_shares(batch, rank, 4)]
    assert [share.weight.tolist() for share in shares] == [[1], [1], [0], [0]]
    [(_, index)] = batch.parts
    assert [share.index.tolist() for share in shares[2:]] == [index[:1].tolist()] * 2
