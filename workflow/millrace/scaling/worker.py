"""Launcher of the measurement of a layout, and the worker process that torchrun starts on every rank."""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from millrace.errors import ExitCode
from millrace.launch.launcher import Surroundings, run_workers
from millrace.layout import Layout
from millrace.scaling.request import MeasureRequest


def measure_throughput(
    request: MeasureRequest, cpus: int, surroundings: Surroundings | None = None
) -> int:
    """Measure a layout on the nodes of this job, or on this machine.

    Each node has ``cpus`` for all its ranks together. Returns an `ExitCode`: 0 if the record was written,
    otherwise that of the error, which was printed.
    """
    output = Path(request.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".measure_", dir=output.parent) as directory:
        path = Path(directory) / "request.json"
        path.write_text(json.dumps(asdict(request)))
        layout = Layout.parse(request.layout)
        code = run_workers("millrace.scaling.worker", path, layout, cpus, surroundings)
    return code if code or output.is_file() else ExitCode.TRY_AGAIN


def main() -> int:
    """Measure as a request file says, on this rank."""
    # Imported here, because the launcher does not need torch.
    from millrace.launch.worker import work_on
    from millrace.scaling.measure import measure
    from millrace.scaling.records import write

    def work(request: MeasureRequest, ranks: Any, _: Path) -> None:
        if run := measure(request, ranks):
            write(run, Path(request.output))

    return work_on(MeasureRequest, work)


if __name__ == "__main__":
    sys.exit(main())
