"""Output times of a directory in order, parsed by several processes ahead of those who take them."""

import multiprocessing
import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor

from millrace.processes import die_with_parent
from millrace.systems.groundwater.feflow_csv import FeflowReader, Snapshot


def snapshots(
    reader: FeflowReader, first: Snapshot, numbers: Sequence[int], workers: int
) -> Generator[Snapshot, None, None]:
    """Output times by their numbers; at most ``2 * workers`` of them are read ahead.

    ``first`` is number 0, which may come first only.
    """
    if numbers and numbers[0] == 0:
        yield first
        numbers = numbers[1:]
    if workers == 1 or not numbers:
        yield from map(reader.read, numbers)
        return
    # Forked workers do not import the main module again, which may be a script without a guard.
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, fork, _begin_work, (reader, os.getpid())) as pool:
        pending: deque[Future[Snapshot]] = deque()
        try:
            for number in numbers:
                pending.append(pool.submit(_read, number))
                if len(pending) == 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_reader_of_worker: FeflowReader


def _begin_work(reader: FeflowReader, parent: int) -> None:
    global _reader_of_worker
    die_with_parent(parent)  # a worker whose parent was killed would wait for work for ever
    _reader_of_worker = reader


def _read(number: int) -> Snapshot:
    return _reader_of_worker.read(number)
