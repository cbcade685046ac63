"""Snakemake in a process that is forked from one which has imported it already.

Most of what a dry run takes is the start of Python and the import of Snakemake. This file is also the
server: it reads one request a line and answers with the exit status. It imports nothing of Millrace, so
that each call finds the library of its own project.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path


def snakemake(arguments, directory, environment):
    """``snakemake`` with ``arguments``, as `subprocess.run` would do it."""
    with tempfile.TemporaryDirectory(prefix="forked_snakemake_") as scratch:
        said = [Path(scratch) / name for name in ("stdout", "stderr")]
        request = {"arguments": arguments, "directory": str(directory), "said": [*map(str, said)]}
        server = _server()
        server.stdin.write(json.dumps(request | {"environment": environment}) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        texts = [path.read_text() for path in said]
    return subprocess.CompletedProcess(["snakemake", *arguments], status, *texts)


@functools.cache
def _server():
    """One for each process of the tests; ends with its standard input."""
    command = [sys.executable, __file__]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.stdin.close)
    return server


def _serve():
    sys.path.pop(0)  # the directory of the tests
    from snakemake.cli import main

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            status = 1
            try:
                _prepare(request)
                main(request["arguments"])
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(ended), flush=True)


def _prepare(request):
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(request["said"], 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["snakemake", *request["arguments"]]


if __name__ == "__main__":
    _serve()
