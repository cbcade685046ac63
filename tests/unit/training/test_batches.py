"""Every sample once an epoch, the same batches on any number of ranks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.training.batches import BatchPlan, rank_share

PLANS = st.tuples(
    st.lists(st.integers(0, 13), min_size=1, max_size=5).filter(any),
    st.integers(1, 9),
    st.integers(0, 2**40),
)


def listed(plan, epoch, start=0):
    return [(b.group, b.index.tolist()) for b in plan.epoch(epoch, start)]


@settings(max_examples=150, deadline=None)
@given(PLANS, st.integers(1, 6), st.integers(0, 1000))
def test_the_ranks_together_see_every_sample_once(plan_of, world_size, epoch) -> None:
    sizes, batch_size, _ = plan_of
    plan = BatchPlan(np.array(sizes), *plan_of[1:])
    seen: list[tuple[int, int]] = []
    count = 0
    for batch in plan.epoch(epoch):
        count += 1
        assert 0 < len(batch.index) <= batch_size
        shares = [rank_share(batch, rank, world_size) for rank in range(world_size)]
        sizes_of_shares = [len(share.index) for share in shares]
        assert min(sizes_of_shares) >= 1  # no rank sits out a step
        assert max(sizes_of_shares) == -(-len(batch.index) // world_size)
        for share in shares:
            assert (share.group, share.batch_size) == (batch.group, len(batch.index))
            assert share.weight.dtype == np.float32
            assert set(share.weight.tolist()) <= {0.0, 1.0}
            seen += [
                (share.group, int(i)) for i, w in zip(share.index, share.weight, strict=True) if w
            ]
            assert set(share.index) <= set(batch.index)
    assert count == len(plan) == sum(-(-size // batch_size) for size in sizes)
    assert sorted(seen) == [(g, i) for g, size in enumerate(sizes) for i in range(size)]


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
    together = [{frozenset(index) for _, index in order} for order in orders]
    assert all(not a & b for n, a in enumerate(together) for b in together[:n])


def test_groups_are_mixed_within_an_epoch() -> None:
    groups = [group for group, _ in listed(BatchPlan(np.array([64, 64]), 4, 3), 0)]
    assert groups != sorted(groups)
    assert len(groups) == 32


def test_more_ranks_than_samples() -> None:
    batch = next(BatchPlan(np.array([2]), 8, 0).epoch(0))
    shares = [rank_share(batch, rank, 4) for rank in range(4)]
    assert [share.weight.tolist() for share in shares] == [[1], [1], [0], [0]]
    assert [share.index.tolist() for share in shares[2:]] == [batch.index[:1].tolist()] * 2
