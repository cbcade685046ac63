"""CPU time of planning: a dry run of the full configuration, and of one with many jobs."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rows import Row, in_turns, run

REPOSITORY = Path(__file__).parents[2]
CONFIG = "config/experiments/groundwater.yaml"
GOAL_S = 2.5
SEEDS, MANY_GOAL_S = 70, 15.0
"""With which there are 5,058 jobs."""


def full(rounds: int) -> Iterator[Row]:
    """Two experiments, six layouts, three seeds."""
    yield _dry_run("planning, two experiments, six layouts, three seeds", rounds, GOAL_S)


def many(rounds: int) -> Iterator[Row]:
    """The same with many seeds."""
    with tempfile.TemporaryDirectory() as folder:
        more = Path(folder, "seeds.yaml")
        more.write_text(f"run: {{ seeds: [{', '.join(map(str, range(SEEDS)))}] }}\n")
        yield _dry_run("planning, 5,058 jobs", rounds, MANY_GOAL_S, str(more))


def _dry_run(what: str, rounds: int, goal: float, *options: str) -> Row:
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "all", "--configfile", CONFIG]
    command += [*options, "--profile", "profiles/local"]

    def plan() -> None:
        subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)

    return Row(what, "s", in_turns({"plan": plan}, rounds)["plan"], goal=goal)


if __name__ == "__main__":
    run({"planning": full, "planning-many": many}, __doc__)
