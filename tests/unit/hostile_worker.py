"""Reads raw files as the jobs of the workflow do, each time in a process that is forked from a warm one.

This file is also the server: it reads one request a line, and answers with how the process ended, and with
the memory that it took beyond that of the server.
"""

import atexit
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 30
MEMORY = 2 << 30
"""Bytes of addresses that a process may take beyond those of the server."""


class Answer(NamedTuple):
    """How a process ended."""

    code: int
    """Negative: the signal that ended it."""
    said: str
    peak: int
    """Bytes of memory beyond those of the server."""


def read(reader: str, project: Path, environment: dict[str, str]) -> Answer:
    """Call one of `READERS` in a project, with raw files in ``raw`` and results in ``results``."""
    with tempfile.NamedTemporaryFile("r", prefix="hostile_", errors="replace") as log:
        request = {"reader": reader, "project": str(project), "log": log.name}
        server: Any = _server()
        server.stdin.write(json.dumps(request | {"environment": environment}) + "\n")
        server.stdin.flush()
        code, peak = json.loads(server.stdout.readline())
        return Answer(code, log.read(), peak)


@functools.cache
def _server() -> Any:
    command = [sys.executable, __file__]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.stdin.close)
    return server


def _feflow(raw: Path, results: Path) -> None:
    output = results / "series.h5"
    variables = ("mass_concentration", "head")
    preprocess(raw, output, variables=variables, forcings=None, split=SPLIT)


def _planes(raw: Path, results: Path) -> None:
    convert_plane_folders(raw, results / "planes.h5", None, SPLIT)


def _icon(raw: Path, results: Path) -> None:
    extract_blocks(raw, results / "blocks.h5", BlockConfig(levels=2), SPLIT)


def _weather(raw: Path, results: Path) -> None:
    config = WeatherConfig(surface=("2t",), air=("z",), static=())
    extract_weather(raw, results / "weather.h5", config, SPLIT)


def _tracks(raw: Path, results: Path) -> None:
    config = TokenConfig(motion=64, road=16, train=0.6, validation=0.2, seed=25)
    build_vocabulary(raw, results / "vocabulary.h5", config)


def _public(name: str, raw: Path, results: Path) -> None:
    config = TokenConfig(motion=64, road=16, train=0.6, validation=0.2, seed=25)
    build_vocabulary(raw, results / "vocabulary.h5", config, raw=name)


def _init_from(raw: Path, results: Path) -> None:
    del results
    check_published(raw / "weights.ckpt")
    content_digest(raw / "weights.ckpt")


def _configuration(raw: Path, results: Path) -> None:
    del results
    Plan(read_files([raw / "config.yaml"]))


def _init(raw: Path, results: Path) -> None:
    init.configuration(*init.choose(None, None, raw), raw)
    del results


def _serve() -> None:
    sys.path.pop(0)  # the directory of the tests
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            code = 1
            try:
                code = _child(request)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        own = _status("VmRSS")
        _, ended, usage = os.wait4(child, 0)
        peak = max(0, 1024 * usage.ru_maxrss - own)
        print(json.dumps([os.waitstatus_to_exitcode(ended), peak]), flush=True)


def _child(request: dict) -> int:
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    project = Path(request["project"])
    os.chdir(project)
    log = os.open(request["log"], os.O_WRONLY)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.alarm(SECONDS)
    most = _status("VmSize") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    reader = READERS[request["reader"]]
    return exits_with_code(lambda: reader(project / "raw", project / "results") or 0)()


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition(f"{key}:")[2].split()[0])


if __name__ == "__main__":
    # Imported once: this is what the server is for.
    from millrace.data.split import SplitConfig
    from millrace.errors import exits_with_code
    from millrace.plan import Plan
    from millrace.project import init
    from millrace.systems.downscaling.blocks import BlockConfig, extract_blocks
    from millrace.systems.groundwater.plane_folders import convert_plane_folders
    from millrace.systems.groundwater.series import preprocess
    from millrace.systems.traffic.formats import ADAPTERS
    from millrace.systems.traffic.scenarios import TokenConfig, build_vocabulary
    from millrace.systems.weather.extract import WeatherConfig, extract_weather
    from millrace.training.receipt import check_published
    from millrace.training.warm_start import content_digest
    from millrace.yaml_files import read_files

    SPLIT = SplitConfig(train=0.5, validation=0.25, gap=0)
    READERS = {
        "feflow_csv": _feflow,
        "plane_folders": _planes,
        "icon": _icon,
        "weather": _weather,
        "tracks": _tracks,
        **{name: functools.partial(_public, name) for name in ADAPTERS},
        "init_from": _init_from,
        "configuration": _configuration,
        "init": _init,
    }
    _serve()
