"""SMART on one, two and four ranks: each scenario once an epoch, and equal losses."""

from collections import Counter

import pytest

from millrace.training.segment import build_trainer

RANKS = (1, 2, 4)
EPOCHS = 4


@pytest.fixture(scope="module")
def sizes(experiments, alone):
    """Scenarios of each bucket of the training split."""
    return build_trainer(*experiments["smart"], 0, alone)[0].dataset.groups("train")


@pytest.fixture(scope="module")
def results(experiments, train_on_ranks, sizes):
    """Results by number of ranks."""
    definition, files = experiments["smart"]
    batch = definition["train"]["global_batch"]
    steps = EPOCHS * -(-int(sizes.sum()) // batch)
    return {n: train_on_ranks(n, definition, files, steps) for n in RANKS}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", RANKS)
def test_each_scenario_is_seen_once_an_epoch(results, sizes, ranks):
    steps = results[ranks]["batches"]
    assert all(len(shares) == ranks for shares in steps)
    per_epoch = len(steps) // EPOCHS
    everything = {(group, scenario) for group, size in enumerate(sizes) for scenario in range(size)}
    for epoch in range(EPOCHS):
        seen = Counter(
            (group, scenario)
            for shares in steps[epoch * per_epoch : (epoch + 1) * per_epoch]
            for mine in shares
            for group, index, weight in mine
            for scenario, w in zip(index, weight, strict=True)
            if w == 1
        )
        assert set(seen) == everything
        assert set(seen.values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", RANKS[1:])
def test_loss_curves_agree(results, ranks):
    alone = results[1]
    for key in ("losses", "norms", "validation"):
        assert results[ranks][key] == pytest.approx(alone[key], rel=1e-4), key
    assert alone["losses"][-1] < alone["losses"][0], "else nothing was trained"
