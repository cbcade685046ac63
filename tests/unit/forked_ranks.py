"""Process groups on this machine whose ranks are forked from a process that has torch already.

Starting Python with torch takes longer than most of what ranks do in a test. What torchrun does is tested
where it matters, by the launcher and the clusters.
"""

import json
import multiprocessing
import os
import socket
import sys
import time
import traceback
from multiprocessing.connection import wait

import torch
import torch.distributed as dist

from millrace.processes import die_with_parent
from millrace.training.distributed import process_group

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["millrace.training.segment"])


def on_ranks(number, work, *arguments, directory, seconds=180.0):
    """Call ``work(*arguments, ranks)`` on each rank of a gloo group; what it gives on the first.

    ``work`` is a function of a module, its value can be written as JSON. What ranks print lies in
    ``directory`` as ``rank_<n>.log``, and is told if one fails.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        _SERVER.Process(target=_rank, args=(rank, number, port, work, arguments, directory))
        for rank in range(number)
    ]
    for process in ranks:
        process.start()
    try:
        _wait(ranks, seconds)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    failed = [n for n, process in enumerate(ranks) if process.exitcode]
    said = "\n".join(f"rank {n}: {(directory / f'rank_{n}.log').read_text()}" for n in failed)
    assert not failed, said[-9000:]
    return json.loads((directory / "result.json").read_text())


def _wait(ranks, seconds):
    """Until all have ended, or one has failed for which the others would wait."""
    end = time.monotonic() + seconds
    left = list(ranks)
    while left and time.monotonic() < end and not any(p.exitcode for p in ranks):
        wait([p.sentinel for p in left], timeout=end - time.monotonic())
        left = [p for p in left if p.exitcode is None]
    if any(p.exitcode for p in ranks):
        wait([p.sentinel for p in left], timeout=1.0)  # they may have more to say


def _rank(rank, number, port, work, arguments, directory):
    die_with_parent()
    log = (directory / f"rank_{rank}.log").open("w", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(number), CUDA_VISIBLE_DEVICES="")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    try:
        with process_group() as ranks:
            result = work(*arguments, ranks)
            if ranks.is_first:
                (directory / "result.json").write_text(json.dumps(result))
            if number > 1:
                dist.barrier()
    except BaseException:
        traceback.print_exc(file=log)
        # A group whose members wait for each other cannot be left in order.
        os._exit(1)
    finally:
        sys.stdout.flush()
