"""Ranks that `millrace.launch.launcher.run_workers` starts by torchrun, each with the same request."""

import argparse
import errno
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

from millrace.errors import REFUSED, explain
from millrace.launch.agent import CANCELLED, FAILED
from millrace.processes import keep_freed_memory
from millrace.systems.registry import load_plugins
from millrace.training.distributed import Ranks, process_group

# Errors of the system that are the same when ranks start again.
_LASTING = {*REFUSED, errno.ENOENT, errno.EISDIR, errno.ENOTDIR}
# Of another rank that has ended; why, it has said itself.
_LOST = re.compile("closed by peer|reset by peer|got 0 bytes", re.IGNORECASE)


def work_on(kind: Callable[..., Any], work: Callable[[Any, Ranks, Path], None]) -> int:
    """Call ``work`` with the request of the command line, the ranks and the path of the request.

    ``kind`` is the dataclass of the request, which has ``plugins``. Returns the exit code of the process.
    An error that can be explained, and lasts, is written beside the request; after others all ranks start
    again.
    """
    parser = argparse.ArgumentParser(description="Work on a request; start it with torchrun.")
    parser.add_argument("request", type=Path, help=f"JSON file of a {kind.__name__}")
    path: Path = parser.parse_args().request
    error_file = path.with_suffix(FAILED)
    if error_file.exists() or path.with_suffix(CANCELLED).exists():
        return 0  # torchrun starts all ranks again when one ends, but that is of no use here
    keep_freed_memory()
    try:
        request = kind(**json.loads(path.read_text()))
        load_plugins(request.plugins)
        with process_group() as ranks:
            work(request, ranks, path)
    except Exception as error:
        rank = os.environ.get("RANK", "0")
        if _is_of_exchange(error):
            what = "has lost the others" if _LOST.search(str(error)) else "cannot reach the others"
            print(f"rank {rank} {what}: {error}", file=sys.stderr)
            return 1
        if (explained := explain(error)) is None:
            raise
        print(f"error: {explained[0]}", file=sys.stderr)
        if isinstance(error, OSError) and error.errno not in _LASTING:
            return 1  # such as those of a file server that is away for a while
        with suppress(OSError):  # the launcher repeats it as its last line
            error_file.write_text(json.dumps(explained))
        return explained[1]
    return 0


def _is_of_exchange(error: Exception) -> bool:
    """Whether an error is one of the exchange between ranks; gloo's have no class of their own."""
    of_gloo = isinstance(error, RuntimeError) and "gloo" in str(error)
    return of_gloo or isinstance(error, dist.DistError | ConnectionError)
