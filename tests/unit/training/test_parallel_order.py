"""Order of the work in a pipeline, and the bubbles of its processes."""

import pytest

from millrace.training.parallel.config import ParallelConfig
from millrace.training.parallel.order import bubbles, order


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved"])
@pytest.mark.parametrize(("ranks", "parts"), [(2, 2), (2, 8), (4, 4), (4, 12)])
@pytest.mark.parametrize("steps", [1, 3])
def test_bubbles_of_equal_stages_follow_the_formula(ranks, parts, schedule, steps):
    config = ParallelConfig(pipeline=ranks, micro_batches=parts, schedule=schedule)
    expected = pytest.approx([config.bubble(steps)] * ranks)
    assert bubbles(config, [1.0] * config.stages * steps) == expected


@pytest.mark.parametrize(("schedule", "seconds"), [("gpipe", 3), ("1f1b", 1)])
def test_all_wait_for_the_slowest_stage(schedule, seconds):
    config = ParallelConfig(pipeline=2, micro_batches=4, schedule=schedule)
    # A backward pass takes twice as long as a forward pass. A slow last stage waits for its first input
    # and, at the end, for the first stage; a slow first one until gradients of the first micro-batch are
    # there: with 1f1b they are made while it is at its second forward pass.
    assert bubbles(config, [1.0, 2.0]) == pytest.approx([1 - 12 / 27, 1 - 24 / 27])
    slow = 24 + seconds
    assert bubbles(config, [2.0, 1.0]) == pytest.approx([1 - 24 / slow, 1 - 12 / slow])


def test_a_rollout_is_a_longer_pipeline():
    config = ParallelConfig(pipeline=2, micro_batches=4)
    assert bubbles(config, [1.0] * 4) == pytest.approx([1 / 9] * 2)


def test_without_a_pipeline_there_is_no_bubble():
    assert bubbles(ParallelConfig(), [1.0]) == [0.0]


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved"])
@pytest.mark.parametrize("rank", [0, 1])
def test_everything_is_done_once_and_forward_first(rank, schedule):
    config = ParallelConfig(pipeline=2, micro_batches=4, schedule=schedule)
    chunks = config.stages_per_rank
    done = order(config, rank, chunks, 4)
    assert len(done) == len(set(done)) == 2 * 4 * chunks
    for kind, chunk, part in done:
        if kind == "B":
            assert done.index(("F", chunk, part)) < done.index((kind, chunk, part))
