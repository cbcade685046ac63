"""SMART on the six layouts: each scenario once an epoch, the same losses.

A layout is to the trainer its number of ranks, one to four here; that jobs of several nodes find each other
is tried in tests/unit/test_launch.py and on real schedulers.
"""

from collections import Counter

import pytest

from millrace.layout import Layout
from millrace.training.segment import build_trainer

LAYOUTS = ("n1_gpu1", "n1_gpu2", "n2_gpu1", "n2_gpu2", "n1_gpu4", "n4_gpu1")
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
    return {n: train_on_ranks(n, definition, files, steps) for n in (1, 2, 4)}


def ranks(layout):
    return Layout.parse(layout).world_size


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_scenario_is_seen_once_an_epoch(results, sizes, layout):
    steps = results[ranks(layout)]["batches"]
    assert all(len(shares) == ranks(layout) for shares in steps)
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


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_loss_curves_agree(results, layout):
    found, alone = results[ranks(layout)], results[1]
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert found["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    assert found["validation"] == pytest.approx(alone["validation"], rel=1e-4)
    assert alone["losses"][-1] < alone["losses"][0], "else nothing was trained"
