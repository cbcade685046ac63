"""Launcher of the measurement of a layout, and the worker process that torchrun starts on every rank."""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from millrace.errors import ExitCode, UserError
from millrace.launch.launcher import Surroundings, run_workers
from millrace.layout import Layout
from millrace.scaling.request import MeasureRequest
from millrace.systems.registry import load_plugins


def measure_throughput(
    request: MeasureRequest, cpus: int, surroundings: Surroundings | None = None
) -> int:
    """Measure a layout on the nodes of this job, or on this machine.

    Parameters
    ----------
    request : MeasureRequest
    cpus : int
        CPUs of each node, for all its ranks together.
    surroundings : Surroundings, optional
        Environment that the cluster needs.

    Returns
    -------
    int
        An `ExitCode`: 0 if the record was written, otherwise that of the error, which was printed.
    """
    output = Path(request.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".measure_", dir=output.parent) as directory:
        path = Path(directory) / "request.json"
        path.write_text(json.dumps(asdict(request)))
        layout = Layout.parse(request.layout)
        code = run_workers("millrace.scaling.worker", path, layout, cpus, surroundings)
        error = path.with_suffix(".error")
        if error.exists():
            message, user_code = json.loads(error.read_text())
            print(f"error: {message}", file=sys.stderr)
            return int(user_code)
    return code if code or output.is_file() else ExitCode.TRY_AGAIN


def main() -> int:
    """Measure as a request file says; a `UserError` is written to ``<request>.error``."""
    parser = argparse.ArgumentParser(description="Measure a layout; start it with torchrun.")
    parser.add_argument("request", type=Path, help="JSON file of a MeasureRequest")
    path: Path = parser.parse_args().request
    # Imported here, because the launcher does not need torch.
    from millrace.scaling.measure import measure
    from millrace.scaling.records import write
    from millrace.training.distributed import process_group

    request = MeasureRequest(**json.loads(path.read_text()))
    try:
        load_plugins(request.plugins)
        with process_group() as ranks:
            run = measure(request, ranks)
            if run is not None:
                write(run, Path(request.output))
    except UserError as error:
        path.with_suffix(".error").write_text(json.dumps([str(error), int(error.exit_code)]))
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
