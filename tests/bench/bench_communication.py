"""Does the alpha-beta model tell how long a step of two, three and four gloo ranks takes?

Each rank keeps its batch, so that a step is that of one process plus the exchange of gradients. The links
are measured on their own, by all-reduces of many sizes in the same run. Where ranks outnumber cores, the
step of one process is that of as many independent processes at once: they share the cores.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rows import Row, run

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from conftest import LATENT, RADIUS, write_samples  # noqa: E402

from millrace.scaling.communication import all_reduce_seconds, fit_link  # noqa: E402
from millrace.scaling.quantity import Refusal  # noqa: E402
from millrace.scaling.records import ScalingRun, read  # noqa: E402
from millrace.scaling.request import MeasureRequest  # noqa: E402
from millrace.scaling.worker import measure_throughput  # noqa: E402

RANKS, GOAL = (2, 3, 4), 10
DEFINITION = {
    "data": {
        "variables": ["head", "mass_concentration"],
        "forcings": ["sea_level_forcing"],
        "input_steps": 3,
        "output_steps": 2,
    },
    "model": {
        "name": "gino",
        "latent_shape": list(LATENT),
        "radius": RADIUS,
        "modes": [6, 6, 4],
        "hidden": 32,
        "layers": 4,
        "kernel_widths": [16, 16],
    },
    "train": {"global_batch": 8, "learning_rate": 1e-3},
}
ALONE = "from bench_communication import alone; alone({!r}, {!r})"


def measure(rounds: int) -> Iterator[Row]:
    """How far the predicted step is from the measured one, by the wall."""
    with tempfile.TemporaryDirectory() as directory:
        write_samples(
            Path(directory, "patches.h5"),
            Path(directory, "graph.h5"),
            sizes=((220, 30), (200, 30)),
        )
        for ranks in RANKS:
            errors = []
            for _ in range(rounds):
                single = _side_by_side(directory, ranks)
                together = _measure(directory, f"n1_gpu{ranks}")
                link = fit_link(together.bandwidth, "intra")
                if isinstance(link, Refusal):
                    sys.exit(f"no model of the link: {link}")
                exchange = float(all_reduce_seconds(link, together.gradient_bytes, ranks))
                measured = float(np.median(together.times.array("total").max(axis=0)))
                errors.append(100 * abs((single + exchange) / measured - 1))
            shared = "" if ranks <= (os.cpu_count() or 1) else ", which share cores"
            what = f"step of {ranks} gloo ranks{shared}: predicted by the alpha-beta model, off by"
            yield Row(what, "%", errors, goal=GOAL if ranks == 2 else None)


def _side_by_side(directory: str, processes: int) -> float:
    """Median step (s) of processes that know nothing of each other, of each step the slowest of them.

    Ranks wait for each other at every step: for whoever happens to be the slowest at this one.
    """
    running = [
        subprocess.Popen(
            [sys.executable, "-c", ALONE.format(directory, f"alone{n}")],
            cwd=Path(__file__).parent,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for n in range(processes)
    ]
    if any(process.wait() for process in running):
        sys.exit("a process failed")
    runs = [read(Path(directory, f"alone{n}.json")) for n in range(processes)]
    steps = np.concatenate([run.times.array("total") for run in runs])
    return float(np.median(steps.max(axis=0)))


def alone(directory: str, name: str) -> None:
    """Measure one rank."""
    _measure(directory, "n1_gpu1", name)


def _measure(directory: str, layout: str, name: str = "together") -> ScalingRun:
    output = Path(directory, f"{name}.json")
    files = {"patches": f"{directory}/patches.h5", "graph": f"{directory}/graph.h5"}
    request = MeasureRequest("bench", layout, "weak", 0, DEFINITION, files, str(output), steps=40)
    if measure_throughput(request, cpus=int(layout.removeprefix("n1_gpu"))):
        sys.exit(f"{layout}: not measured")
    return read(output)


if __name__ == "__main__":
    run({"communication": measure}, __doc__)
