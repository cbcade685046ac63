"""What the section `parallel` may contain, and what is refused instead of failing silently."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributed.pipelining.schedules import ScheduleInterleaved1F1B, ScheduleLoopedBFS

from millrace.errors import ConfigError
from millrace.systems.weather.aurora.config import AuroraConfig
from millrace.systems.weather.dataset import WeatherBatch
from millrace.training.parallel.config import ParallelConfig
from millrace.training.parallel.pipeline import stage_bounds
from millrace.training.parallel.replicas import check_static_graph
from millrace.training.parallel.tensor import divide_layers, head_order

LARGE = AuroraConfig()


def resolved(world_size=8, global_batch=64, model="aurora", config=LARGE, steps=1, **keys):
    parallel = ParallelConfig.parse(keys, "parallel")
    return parallel.for_model(model, config, world_size, global_batch, steps)


def test_remaining_processes_are_replicas():
    assert resolved(tensor=2, pipeline=2).dp_replicate == 2
    assert resolved().dp_replicate == 8
    assert not resolved().is_divided
    assert resolved(dp_shard=4).data_size == 8


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tensor": 3}, "= 6 processes, but the layout has 8"),
        ({"dp_replicate": 2, "dp_shard": 2}, "= 4 processes, but the layout has 8"),
        ({"tensor": 16, "world_size": 16}, "tensor 16: does not divide the 8 heads"),
        ({"pipeline": 64, "world_size": 64}, "64 stages, but the model can have at most 48"),
        ({"pipeline": 32, "world_size": 32, "schedule": "interleaved"}, "64 stages, but"),
        ({"pipeline": 8, "micro_batches": 4}, "at least the 8 stages of the pipeline"),
        ({"pipeline": 2, "micro_batches": 17}, "at most the 16 samples of a share"),
        (
            {"pipeline": 2, "micro_batches": 3, "schedule": "interleaved"},
            "needs a multiple of the 2 processes",
        ),
        ({"pipeline": 2, "micro_batches": 5, "steps": 2}, "output_steps 2.*a multiple of the 2"),
        ({"schedule": "zbv"}, "schedule: expected one of gpipe, 1f1b, interleaved, got 'zbv'"),
        ({"dp_shard": 0}, "dp_shard: expected a whole number of 1 or more"),
        ({"shards": 2}, "unknown key 'shards'"),
    ],
)
def test_refuses_what_does_not_fit(keys, message):
    with pytest.raises(ConfigError, match=message):
        resolved(**keys)


def taken(make, error):
    try:
        make()
    except error:
        return False
    return True


@pytest.mark.parametrize(
    ("schedule", "used"), [("gpipe", ScheduleLoopedBFS), ("1f1b", ScheduleInterleaved1F1B)]
)
@pytest.mark.parametrize("parts", range(4, 17))
def test_rollouts_have_the_micro_batches_that_torch_takes(schedule, used, parts):
    # What the schedules of several stages in a process ask of them before anything runs.
    common = {"group_size": 4, "group_rank": 0, "group": None, "num_stages": 8, "device": "cpu"}
    common |= {"stage_index_to_group_rank": {}, "is_first": False, "is_last": False}
    two = [SimpleNamespace(stage_index=index, **common) for index in (0, 4)]
    block = {"pipeline": 4, "micro_batches": parts, "schedule": schedule}
    by_us = taken(lambda: resolved(4, steps=2, **block), ConfigError)
    assert by_us == taken(lambda: used(two, parts), ValueError)
    assert resolved(4, steps=1, **block).micro_batches == parts


def test_other_models_can_only_be_replicated():
    with pytest.raises(ConfigError, match="gino can only be replicated"):
        resolved(model="gino", config=None, dp_shard=2)
    assert resolved(model="gino", config=None).dp_replicate == 8


def test_low_rank_updates_are_not_cut():
    with pytest.raises(ConfigError, match="low-rank updates are not cut"):
        resolved(config=LARGE.replaced(lora_rank=8), tensor=2)


@pytest.mark.parametrize(
    ("pipeline", "micro_batches", "schedule", "bubble"),
    [(2, 2, "1f1b", 1 / 3), (4, 16, "gpipe", 3 / 19), (2, 8, "interleaved", 1 / 17)],
)
def test_bubble(pipeline, micro_batches, schedule, bubble):
    config = resolved(pipeline, pipeline=pipeline, micro_batches=micro_batches, schedule=schedule)
    assert config.bubble() == pytest.approx(bubble)


def test_advises_more_micro_batches():
    few = resolved(4, pipeline=4, micro_batches=4).advice()
    assert "the pipeline bubble is at least 43% of the time; 16 or more" in few
    assert resolved(4, pipeline=4, micro_batches=16).advice() is None
    assert resolved(8).advice() is None


def test_rollouts_need_fewer_micro_batches():
    config = resolved(4, pipeline=4, micro_batches=4)
    assert "the pipeline bubble is at least 27% of the time; 8 or more" in config.advice(steps=2)
    assert config.advice(steps=4) is None


def test_stages_are_balanced_by_cost():
    assert stage_bounds([1, 1, 0, 1, 1, 0, 1, 1], 2) == [(0, 4), (4, 8)]
    bounds = stage_bounds([1.0] * 5, 5)
    assert bounds == [(i, i + 1) for i in range(5)]
    for stages in range(1, 9):
        cut = stage_bounds([5, 1, 1, 1, 1, 1, 1, 9], stages)
        assert [a for a, _ in cut[1:]] == [b for _, b in cut[:-1]]
        assert all(b > a for a, b in cut)
        assert (cut[0][0], cut[-1][1]) == (0, 8)


def test_each_process_gets_queries_keys_and_values_of_its_heads():
    heads, width = 4, 3
    names = [(kind, head) for kind in "qkv" for head in range(heads) for _ in range(width)]
    order = head_order(len(names), heads, 2)
    first = {names[i] for i in order[: len(names) // 2]}
    assert first == {(kind, head) for kind in "qkv" for head in (0, 1)}


def test_a_packed_projection_is_not_cut_as_it_is():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    with pytest.raises(ConfigError, match="qkv has 24 outputs for the 8 inputs of proj; a packed"):
        divide_layers(Block(), None, [("qkv", "proj")], {})


def test_static_graph_needs_a_batch_that_shows_its_tensors():
    @dataclasses.dataclass
    class Opaque:
        x: torch.Tensor

    with pytest.raises(ConfigError, match="DDP sees no tensors in a Opaque"):
        check_static_graph(Opaque(torch.ones(2)))
    one = torch.ones(1, 1, 1, 2, 2)
    check_static_graph(WeatherBatch(one, one, one, one, one))
