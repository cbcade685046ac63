"""Any number of ranks trains the same problem: same batches, same losses."""

import pytest

pytestmark = pytest.mark.slow  # what they share takes twenty seconds

STEPS = 40


@pytest.fixture(scope="module")
def results(experiments, train_on_ranks):
    """Results by number of ranks. The remainders of two groups make a batch of both, with fewer samples
    than ranks."""
    definition, files = experiments["gino"]
    blocks = {**definition, "train": {**definition["train"], "global_batch": 9}}
    return {n: train_on_ranks(n, blocks, files, STEPS) for n in (1, 2, 3)}


@pytest.mark.parametrize("ranks", [2, 3])
def test_losses_agree(results, ranks):
    assert len(results[1]["losses"]) >= STEPS
    assert results[ranks]["losses"] == pytest.approx(results[1]["losses"], rel=1e-5)
    assert results[ranks]["norms"] == pytest.approx(results[1]["norms"], rel=1e-4)
    assert results[ranks]["validation"] == pytest.approx(results[1]["validation"], rel=1e-5)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_batches_of_one(results, ranks):
    for shares, [alone] in zip(results[ranks]["batches"], results[1]["batches"], strict=True):
        assert counted(share for mine in shares for share in mine) == counted(alone)


def counted(shares):
    """(group, sample) of all that count."""
    return sorted(
        (group, sample)
        for group, index, weight in shares
        for sample, w in zip(index, weight, strict=True)
        if w == 1
    )


def test_remainders_of_groups_share_a_batch(results):
    assert any(len(mine) > 1 for [mine] in results[1]["batches"])


def test_some_rank_was_idle(results):
    """Else the case of fewer samples than ranks went untested."""
    assert any(0.0 in w for ranks in results[3]["batches"] for mine in ranks for *_, w in mine)
