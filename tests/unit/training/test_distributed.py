"""Ranks that agree, and random streams that continue."""

import json
import os
import random
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from millrace.training.distributed import (
    Ranks,
    process_group,
    restore_rng_state,
    rng_state,
    seed_everything,
)

VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
)


def draw() -> tuple:
    return (
        random.random(),
        random.gauss(0, 1),
        np.random.random(3).tolist(),  # noqa: NPY002
        np.random.standard_normal(),  # noqa: NPY002
        torch.rand(3).tolist(),
    )


@pytest.fixture
def streams():
    before = rng_state()
    yield
    restore_rng_state(before)


@pytest.mark.usefixtures("streams")
def test_random_streams_continue_from_a_saved_state(tmp_path) -> None:
    seed_everything(3, rank=1)
    draw()  # leaves a second gaussian cached in Python's and NumPy's generators
    torch.save(rng_state(), tmp_path / "rng.pt")
    expected = [draw(), draw()]
    seed_everything(4, rank=0)
    restore_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert [draw(), draw()] == expected


@pytest.mark.usefixtures("streams")
def test_seeds_and_ranks_have_their_own_streams() -> None:
    draws = {}
    for seed, rank in [(0, 0), (0, 1), (2**33, 0)]:
        seed_everything(seed, rank)
        draws[seed, rank] = draw()
        seed_everything(seed, rank)
        assert draw() == draws[seed, rank]
    for part in range(5):
        values = [str(values[part]) for (seed, _), values in draws.items() if seed == 0]
        assert len(set(values)) == 2


def test_one_process_needs_no_group(monkeypatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with process_group() as ranks:
        assert (ranks.rank, ranks.world_size, ranks.is_first) == (0, 1, True)
        assert not torch.distributed.is_initialized()
        assert ranks.sum(1.5, 2.0) == [1.5, 2.0]
        assert ranks.maximum(True, -3.0) == [1.0, -3.0]
        assert ranks.gather({"a": 1}) == [{"a": 1}]
        assert ranks.from_first("x") == "x"
    assert not Ranks(1, 2, torch.device("cpu")).is_first


WORKER = """
    import json, sys
    import torch
    from millrace.training.distributed import process_group
    with process_group() as ranks:
        r = ranks.rank
        print(json.dumps({
            "first": ranks.is_first,
            "sum": ranks.sum(0.1 * (r + 1), 1e-17 if r else 1.0),
            "maximum": ranks.maximum(r == 1, -float(r)),
            "gather": ranks.gather({"rank": r}),
            "from_first": ranks.from_first(("stop", 65) if r == 0 else None),
        }))
    assert not torch.distributed.is_initialized()
"""


def test_two_ranks_agree() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WORKER)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | group | {"RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""},
        )
        for rank in range(2)
    ]
    first, second = (json.loads(worker.communicate(timeout=300)[0]) for worker in workers)
    assert (first.pop("first"), second.pop("first")) == (True, False)
    assert first.pop("gather") == [{"rank": 0}, {"rank": 1}]
    assert second.pop("gather") == []
    # In float64: 0.1 + 0.2 is not 0.3 in it, and would be in float32.
    assert (
        first
        == second
        == {
            "sum": [0.1 + 0.2, 1.0],
            "maximum": [1.0, 0.0],
            "from_first": ["stop", 65],
        }
    )
