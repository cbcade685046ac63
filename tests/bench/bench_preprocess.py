"""CPU time and memory from raw CSV to a series and to patches, against parsing the CSV files alone.

The files are of the reference's size, 61,360 rows, and lie in the page cache. Each run is a process of its
own, as in a job: `preprocess` reads, checks and writes the series, `extract_patches` cuts it.
Peers parse the text of the same files and do nothing else: pandas, and pyarrow and polars where they are
installed. The reference reads every file once for each of its 20 patches.
"""

import importlib.util
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from rows import Row, in_turns, run

FILES, RATE, MEMORY, REPEATED = 15, 170, 500, 3
CHILD = "--child"
SLICES, PER_SLICE, PATCHES = 26, 2360, 20
N = SLICES * PER_SLICE
FOLDERS = ("all", "forcings_corrected_all")


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
    for folder in FOLDERS:
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


def of_files(base: Path, parse: Callable[[bytes], object]) -> Callable[[], None]:
    """Parse all files in memory, one after the other, so that only parsing is timed."""
    content = [path.read_bytes() for path in files(base)]

    def work() -> None:
        for one in content:
            parse(one)

    return work


def files(base: Path) -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (base / folder).iterdir())


def parsers() -> dict[str, Callable[[bytes], object]]:
    """What is installed."""
    found: dict[str, Callable[[bytes], object]] = {
        "pandas": lambda text: pd.read_csv(io.BytesIO(text), dtype=np.float64)
    }
    if importlib.util.find_spec("pyarrow"):
        from pyarrow import csv

        serial = csv.ReadOptions(use_threads=False)
        found["pyarrow"] = lambda text: csv.read_csv(io.BytesIO(text), read_options=serial)
    if importlib.util.find_spec("polars"):
        os.environ["POLARS_MAX_THREADS"] = "1"
        import polars

        found["polars"] = lambda text: polars.read_csv(text, infer_schema_length=None)
    return found


def child(base: Path, output: Path) -> None:
    """Print CPU seconds of both stages, and the most memory, in MB, of the first and of both."""
    from rows import cpu_seconds

    from millrace.data.split import SplitConfig
    from millrace.processes import keep_freed_memory
    from millrace.systems.groundwater.patches import PatchConfig, extract_patches
    from millrace.systems.groundwater.series import preprocess

    keep_freed_memory()  # as the job does
    split = SplitConfig(train=0.6, validation=0.2, gap=2)
    series = output / "series.h5"
    variables = ("mass_concentration", "head")
    seconds = [
        cpu_seconds(
            lambda: preprocess(base, series, variables=variables, forcings=None, split=split)
        )
    ]
    peaks = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]
    seconds.append(
        cpu_seconds(lambda: extract_patches(series, output / "patches.h5", PatchConfig()))
    )
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps([*seconds, *peaks]))


def measure(rounds: int) -> Iterator[Row]:
    """Rates of preprocessing and of parsers, time to patches, memory."""
    with tempfile.TemporaryDirectory() as folder:
        base, output = Path(folder, "raw"), Path(folder)
        write_directory(base, FILES)
        command = [sys.executable, __file__, CHILD, str(base), str(output)]
        found: list[list[float]] = []

        def ours() -> None:
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))

        peers = {name: of_files(base, parse) for name, parse in parsers().items()}
        times = in_turns({"ours": ours, **peers}, rounds)
        megabytes = sum(path.stat().st_size for path in files(base)) / 1e6
    series, patches, peak, both = zip(*found[1:], strict=True)
    rates = [megabytes / seconds for seconds in series]
    what = f"preprocessing, {FILES} x 2 files of {N:,} nodes, {megabytes:.0f} MB"
    yield Row(what, "MB/s", rates, goal=RATE, larger=True)
    yield Row(f"{what}: memory", "MB", peak, goal=MEMORY)
    for name in peers:
        parsed = [megabytes / seconds for seconds in times[name]]
        yield Row(f"{what}, to parsing alone by {name}", "MB/s", rates, name, parsed, larger=True)
    total = [a + b for a, b in zip(series, patches, strict=True)]
    again = [PATCHES * seconds for seconds in times["pandas"]]
    peer = f"pandas, {PATCHES} times"
    yield Row(f"from raw files to {PATCHES} patches", "s", total, peer, again, REPEATED)
    yield Row(f"from raw files to {PATCHES} patches: memory", "MB", both)


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        child(*map(Path, sys.argv[2:]))
    else:
        run({"preprocess": measure}, __doc__)
