"""Process groups on this machine whose ranks are forked from a process that has torch already.

Starting Python with torch takes longer than most of what ranks do here. Ranks have no GPU. They inherit
from the process that they are forked from, not from the caller: not what a test has patched, for example.
"""

import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from millrace.processes import die_with_parent
from millrace.training.distributed import process_group

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["millrace.training.segment"])
_SAID = 4000  # characters of each rank


class RanksError(AssertionError):
    """A rank failed or did not end; the message holds what it said."""


def on_ranks(
    number: int, work: Callable[..., Any], *arguments: Any, directory: Path, seconds: float = 180.0
) -> Any:
    """Call ``work(*arguments, ranks)`` on each rank of a gloo group; returns what the first rank returns.

    ``work`` is a function of a module whose value can be written as JSON; its arguments can be pickled.
    What ranks print lies in ``directory`` as ``rank_<n>.log``. Raises `RanksError` if one fails, or if all
    together take longer than ``seconds``: what it said, and where others were.
    """
    # Here rather than on the first rank: a port that was only found free might be taken by then.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [
        _SERVER.Process(
            target=_rank, args=(rank, number, store.port, work, arguments, directory), daemon=True
        )
        for rank in range(number)
    ]
    try:
        for process in ranks:
            process.start()
        codes = _exit_codes(ranks, seconds)
    finally:
        for process in ranks:
            if process.pid is not None:
                process.kill()
                process.join()
    # Those that wait for one that failed say less.
    failed = sorted((n for n in range(number) if codes[n] != 0), key=lambda n: codes[n] is None)
    if failed:
        raise RanksError("\n".join(_told(directory, n, codes[n], seconds) for n in failed))
    return json.loads((directory / "result.json").read_text())


def _exit_codes(ranks: Sequence[BaseProcess], seconds: float) -> list[int | None]:
    """Exit codes when all have ended, or soon after one has failed; None: it did not end."""
    end, one_failed = time.monotonic() + seconds, False
    while (left := [p for p in ranks if p.exitcode is None]) and time.monotonic() < end:
        wait([p.sentinel for p in left], timeout=end - time.monotonic())
        if not one_failed and any(p.exitcode for p in ranks):
            end, one_failed = min(end, time.monotonic() + 2.0), True
    codes = [process.exitcode for process in ranks]
    for process in left:
        os.kill(process.pid or 0, signal.SIGABRT)  # it says where it was
    for process in left:
        process.join(5.0)
    return codes


def _told(directory: Path, rank: int, code: int | None, seconds: float) -> str:
    log = directory / f"rank_{rank}.log"
    said = log.read_text()[-_SAID:] if log.exists() else "nothing"
    late = f"did not end (all together may take {seconds:g} s)"
    return f"rank {rank} {late if code is None else f'exit code {code}'}, it said:\n{said}"


def _rank(
    rank: int,
    number: int,
    port: int,
    work: Callable[..., Any],
    arguments: Sequence[Any],
    directory: Path,
) -> None:
    log = (directory / f"rank_{rank}.log").open("w", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = sys.stderr = log
    faulthandler.enable(log)
    _die_with_caller()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(number), CUDA_VISIBLE_DEVICES="")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    # The store is there already.
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    torch.set_num_threads(1)
    with process_group() as ranks:
        try:
            result = work(*arguments, ranks)
            if ranks.is_first:
                (directory / "result.json").write_text(json.dumps(result))
            if number > 1:
                dist.barrier()
        except BaseException:
            traceback.print_exc()
            # A group whose members wait for each other cannot be left in order.
            os._exit(1)


def _die_with_caller() -> None:
    """The parent is the server, which lives as long as its children: the caller itself is watched, too."""
    die_with_parent()
    caller = multiprocessing.parent_process()

    def follow() -> None:
        if caller is not None:
            caller.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
