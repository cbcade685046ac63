"""Time and memory from raw CSV to patches, against reading every CSV once per patch.

Usage: ``python tests/bench/bench_preprocess.py [--steps 30] [--workers 1] [--full]``

Both sides run in one process tree on the same files, which were just written and lie in the page cache:

a   plain ``pandas.read_csv`` of ``all/`` once per patch (20 x), nothing else: what the reference does
    before it selects and writes anything; its forcing files, read as often, are not counted
b   `preprocess` + `extract_patches`, forcings included, files written

Goals: a / b >= 3, peak memory of b below 1 GB.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

SLICES, PER_SLICE, PATCHES = 26, 2360, 20
N = SLICES * PER_SLICE


def write_directory(base: Path, steps: int) -> None:
    """Files of the reference's size (61,360 rows, 7.8 MB) with smooth random fields."""
    random = np.random.default_rng(0)
    plan = random.uniform(0, 1400, (PER_SLICE, 2)) + np.array([334_600, 6_249_800])
    top = 20 * np.sin(plan[:, 0] / 400)
    frame = pd.DataFrame(
        {
            "node": np.arange(1, N + 1),
            "ts": 0,
            "time (d)": 0.0,
            "X": np.tile(plan[:, 0], SLICES),
            "Y": np.tile(plan[:, 1], SLICES),
            "Z": np.concatenate([top - 2.9 * layer for layer in range(SLICES)]),
            "slice": np.repeat(np.arange(1, SLICES + 1), PER_SLICE),
        }
    )
    forcing = pd.DataFrame({"node": frame["node"]})
    for folder in ("all", "forcings_corrected_all"):
        (base / folder).mkdir(parents=True)
    for step in range(steps):
        head = 0.5 + 0.3 * np.sin(frame["X"] / 300 + step / 3) + 0.01 * random.standard_normal(N)
        frame["ts"], frame["time (d)"] = step, round(0.476 * step, 4)
        frame["mass_concentration"] = random.uniform(50, 35_000, N)
        frame["pressure"] = 9.8046 * (head - frame["Z"])
        frame["head"] = head
        frame.to_csv(base / "all" / f"{step:04d}.csv", index=False)
        boundary = frame["X"] < 334_700
        forcing["mass_concentration_bc"] = np.where(boundary, 35_000.0, np.nan)
        forcing["head_bc"] = np.where(boundary, head, np.nan)
        forcing["recharge_forcing"] = np.where(frame["slice"] == 1, random.random(), np.nan)
        forcing["sea_level_forcing"] = np.where(boundary, random.random(), np.nan)
        forcing.to_csv(base / "forcings_corrected_all" / f"{step:04d}.csv", index=False)


def read_once_per_patch(base: Path, repetitions: int) -> float:
    """Seconds."""
    start = time.perf_counter()
    for _ in range(repetitions):
        for path in sorted((base / "all").iterdir()):
            pd.read_csv(path)
    return time.perf_counter() - start


def run_child(base: Path, workers: int) -> None:
    """Side b: print seconds of both stages, and peak memory of this process and of its largest child."""
    from millrace.data.split import SplitConfig
    from millrace.systems.groundwater.patches import PatchConfig, extract_patches
    from millrace.systems.groundwater.series import preprocess

    start = time.perf_counter()
    preprocess(
        base,
        base / "series.h5",
        variables=("mass_concentration", "head"),
        forcings=None,
        split=SplitConfig(train=0.6, validation=0.2, gap=2),
        workers=workers,
    )
    middle = time.perf_counter()
    extract_patches(base / "series.h5", base / "patches.h5", PatchConfig())
    stop = time.perf_counter()
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if workers > 1 else 0
    print(middle - start, stop - middle, own / 1024, child / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="time all 20 repetitions of a")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(options.child, options.workers)
        return
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "raw"
        write_directory(base, options.steps)
        size = (base / "all" / "0000.csv").stat().st_size / 1e6
        print(f"{options.steps} files of {N:,} rows, {size:.1f} MB, and as many of forcings")
        # Half of a before and half after b, so that other load on the machine hits both.
        half = PATCHES // 2 if options.full else 1
        seconds = read_once_per_patch(base, half)
        command = [
            sys.executable,
            __file__,
            "--child",
            str(base),
            "--workers",
            str(options.workers),
        ]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds = (seconds + read_once_per_patch(base, half)) * PATCHES / (2 * half)
        how = "measured" if options.full else f"scaled from 2 of {PATCHES}"
        print(f"a  read_csv once per patch      {seconds:8.2f} s  ({how})")
        first, second, own, child = map(float, done.stdout.split())
        print(f"b  preprocess                   {first:8.2f} s  ({options.workers} workers)")
        print(f"b  extract_patches              {second:8.2f} s")
        peak = own + child * options.workers
        print(f"ratio a / b                     {seconds / (first + second):8.1f}    (goal >= 3)")
        print(
            f"peak memory of b                {peak:8.0f} MB (goal < 1000; parent {own:.0f}, "
            f"each worker at most {child:.0f})"
        )


if __name__ == "__main__":
    main()
