"""What a test hears of ranks that fail, hang or die."""

import os
import signal
import time

import pytest
import torch.distributed as dist

from millrace.checking.ranks import RanksError, on_ranks


def summed(value, ranks):
    print("here")
    return ranks.sum(value * (ranks.rank + 1))


def first_waits_for_one_that_fails(ranks):
    if ranks.rank == 1:
        print("before the error")
        raise ValueError("a reason")
    dist.barrier()


def second_dies(ranks):
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def second_hangs(ranks):
    if ranks.rank == 1:
        time.sleep(60)
    dist.barrier()


def test_ranks_exchange(tmp_path):
    assert on_ranks(2, summed, 0.5, directory=tmp_path) == [1.5]
    assert on_ranks(1, summed, 0.5, directory=tmp_path) == [0.5]
    assert (tmp_path / "rank_1.log").read_text() == "here\n"


def test_a_failure_is_told_at_once(tmp_path):
    began = time.monotonic()
    with pytest.raises(RanksError) as told:
        on_ranks(2, first_waits_for_one_that_fails, directory=tmp_path)
    assert time.monotonic() - began < 150
    assert "rank 1 exit code 1, it said:\nbefore the error\nTraceback" in str(told.value)
    assert "ValueError: a reason" in str(told.value)


def test_a_rank_that_dies_is_told_by_its_signal(tmp_path):
    with pytest.raises(RanksError, match="rank 1 exit code -9"):
        on_ranks(2, second_dies, directory=tmp_path)


def test_where_ranks_hang_is_told(tmp_path):
    on_ranks(1, summed, 0.0, directory=tmp_path)  # the server is there now
    with pytest.raises(RanksError) as told:
        on_ranks(2, second_hangs, directory=tmp_path, seconds=8.0)
    message = str(told.value)
    assert "rank 1 did not end (all together may take 8 s)" in message
    assert "in second_hangs" in message
