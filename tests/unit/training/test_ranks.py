"""Any number of ranks trains the same problem: same batches, same losses."""

import pytest

STEPS = 40


@pytest.fixture(scope="module")
def results(experiments, train_on_ranks):
    """Results by number of ranks. Batches of 6 on 3 ranks divide evenly, on 2 and 1 too; the last
    batch of a group holds fewer samples than there are ranks."""
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
    for shares, alone in zip(results[ranks]["batches"], results[1]["batches"], strict=True):
        [(group, index, _)] = alone
        assert {share[0] for share in shares} == {group}
        counted = [
            i
            for _, indices, weights in shares
            for i, w in zip(indices, weights, strict=True)
            if w == 1
        ]
        assert sorted(counted) == sorted(index)


def test_some_rank_was_idle(results):
    """Else the case of fewer samples than ranks went untested."""
    weights = [w for shares in results[3]["batches"] for *_, ws in shares for w in ws]
    assert 0.0 in weights
