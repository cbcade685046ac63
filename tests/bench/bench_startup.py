"""CPU time of starting a process that trains or evaluates: imports, each in a process of its own."""

import subprocess
import sys
from collections.abc import Iterator

from rows import Row, in_turns, run

GOAL = 3.5
MODELS = ("gino", "gfno", "downscaler", "aurora", "smart")


def measure(rounds: int) -> Iterator[Row]:
    """What training imports, with each model, beside torch alone."""
    code = "import millrace.launch.worker, millrace.training.segment\n"
    code += "from millrace.systems.registry import get_model"
    variants = {name: f"{code}\nget_model({name!r})" for name in MODELS}
    variants["torch"] = "import torch"
    started = {name: [sys.executable, "-c", text] for name, text in variants.items()}
    times = in_turns(
        {
            name: lambda command=command: subprocess.run(command, check=True)
            for name, command in started.items()
        },
        rounds,
    )
    yield Row("import torch alone", "s", times["torch"])
    for name in MODELS:
        yield Row(f"import of training and {name}", "s", times[name], goal=GOAL)


if __name__ == "__main__":
    run({"startup": measure}, __doc__)
