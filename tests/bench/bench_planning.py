"""Time of a dry run of the full configuration: two experiments, six layouts, three seeds."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CONFIG = "config/experiments/groundwater.yaml"
GOAL_S = 5.0


def main() -> None:
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "all", "--configfile", CONFIG]
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(
            [*command, "--profile", "profiles/local"],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
        )
        times.append(time.perf_counter() - started)
    median = statistics.median(times)
    print(f"snakemake -n, {CONFIG}: {median:.2f} s (median of 5), goal < {GOAL_S:g} s")


if __name__ == "__main__":
    main()
