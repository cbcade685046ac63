"""What jobs on raw files take by the size of these, beside what `millrace plan` says before anything runs.

CPU time, bytes written and peak memory of each job, in a process of its own with one thread, on simulated
files of two sizes: time has to grow with the files, and memory must not.

What jobs hold is bounded, by up to some GB, which simulated files do not reach: here the bounds are so low
that the smaller files exceed them, see `BOUNDS`. Of Waymo's scenarios `data_waymo.py` measures the memory
with the bounds of the workflow.
"""

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np

from millrace.data.extraction import extract, simulate
from millrace.systems.base import Cost, resolve
from millrace.systems.downscaling import blocks
from millrace.systems.groundwater import patches, planes
from millrace.systems.registry import formats, get_kind, systems
from millrace.systems.traffic import motion_sample
from millrace.systems.weather import catalogue

SPLIT = {"train": 0.6, "validation": 0.2, "gap": 5}
SIZES = (1, 10)
BOUNDS: dict[tuple[Any, str], int] = {
    (catalogue, "ALL_BYTES"): 16 << 20,
    (blocks, "SLAB_BYTES"): 1 << 20,
    (patches, "SLAB_BYTES"): 1 << 20,
    (planes, "SLAB_BYTES"): 1 << 20,
    (motion_sample, "MOST_SCENARIOS"): 100,
    (motion_sample, "MOST_SEGMENTS"): 40_000,
}
"""Of what is held at once: constants of modules, and what they are here."""
_CACHE = 256 << 10
"""Of each variable of a NetCDF file; that of the library, of 16 MB, holds a small file."""


def in_a_process(job: Callable[[], object], times: int = 1) -> tuple[float, float]:
    """CPU seconds of a job, the fewest of so many runs, and its peak memory (GB)."""

    def run(ends: Connection) -> None:
        seconds = []
        for _ in range(times):
            begun = time.process_time()
            job()
            seconds.append(time.process_time() - begun)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        ends.send((min(seconds), peak))

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=run, args=(there,))
    process.start()
    there.close()  # so that the end of the process is the end of what is said
    found = here.recv()
    process.join()
    return found


def bytes_of(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(one.stat().st_size for one in files if one.is_file())


Jobs = dict[str, tuple[Callable[[], object], Path]]
"""Jobs by name, and what they write."""


def simulated(name: str, section: dict[str, Any], folder: Path) -> None:
    """Raw files, made in a process of its own: what it held does not count."""
    in_a_process(lambda: simulate(formats()[name], section, folder / "raw"))


def weather(folder: Path, size: float) -> Jobs:
    simulated("weather", {"steps": int(200 * size), "spin_up": 0.5}, folder)
    kind, output = get_kind("weather"), folder / "weather.h5"
    return {"extract_weather": (lambda: extract(kind, folder / "raw", output, {}, SPLIT), output)}


def icon(folder: Path, size: float) -> Jobs:
    simulated("icon", {"level": 4, "steps": int(200 * size)}, folder)
    kind, output = get_kind("blocks"), folder / "blocks.h5"
    section = {"variables": ["tas"], "levels": 4}
    return {
        "extract_blocks": (lambda: extract(kind, folder / "raw", output, section, SPLIT), output)
    }


def groundwater(folder: Path, size: float) -> Jobs:
    from millrace.systems.groundwater.patches import PatchConfig, extract_patches
    from millrace.systems.groundwater.planes import PlaneConfig, extract_planes
    from millrace.systems.groundwater.series import preprocess

    simulated("feflow_csv", {"steps": int(100 * size)}, folder)
    series, of_patches, of_planes = (folder / f"{n}.h5" for n in ("series", "patches", "planes"))
    split = resolve("millrace.data.split:SplitConfig").parse(SPLIT, "split")
    names = ("head", "mass_concentration")
    return {
        "preprocess": (
            lambda: preprocess(folder / "raw", series, variables=names, forcings=None, split=split),
            series,
        ),
        "extract_patches": (
            lambda: extract_patches(series, of_patches, PatchConfig(), lambda *_: None),
            of_patches,
        ),
        "extract_planes": (
            lambda: extract_planes(series, of_planes, PlaneConfig(), lambda *_: None),
            of_planes,
        ),
    }


def waymo(folder: Path, size: float) -> Jobs:
    from data_waymo import write

    from millrace.systems.traffic.scenarios import TokenConfig, build_vocabulary, tokenise

    in_a_process(lambda: write(folder / "raw", int(100 * size)))
    vocabulary, scenarios, config = folder / "v.h5", folder / "s.h5", TokenConfig(block=1)
    return {
        "build_vocabulary": (
            lambda: build_vocabulary(folder / "raw", vocabulary, config, raw="waymo") and None,
            vocabulary,
        ),
        "tokenise": (
            lambda: tokenise(folder / "raw", vocabulary, scenarios, config, raw="waymo") and None,
            scenarios,
        ),
    }


def main() -> None:
    for (module, name), value in BOUNDS.items():
        setattr(module, name, value)
    netCDF4.set_chunk_cache(_CACHE)
    declared = {name: cost for system in systems().values() for name, cost in system.costs.items()}
    print(
        "job; raw GB; CPU s; CPU s a GB / declared; written a byte / declared; memory GB / declared"
    )
    growth = []
    for prepare in (weather, icon, groundwater, waymo):
        with tempfile.TemporaryDirectory() as name:  # so that everything has been imported
            for run, _ in prepare(Path(name), 0.5).values():
                run()
        found: dict[str, list[np.ndarray]] = {}
        for size in SIZES:
            with tempfile.TemporaryDirectory() as name:
                jobs = prepare(Path(name), size)
                raw = bytes_of(Path(name) / "raw")
                for job, (run, output) in jobs.items():
                    seconds, peak = in_a_process(run, 3 if size == SIZES[0] else 2)
                    found.setdefault(job, []).append(np.array([raw, seconds, peak]))
                    cost = declared.get(job, Cost(np.nan, np.nan))
                    memory = cost.memory_gb + cost.held * raw / 2**30
                    print(
                        f"{job}; {raw / 1e9:.3f}; {seconds:.2f}; "
                        f"{seconds / raw * 1e9:.0f} / {cost.seconds:.0f}; "
                        f"{bytes_of(output) / raw:.2f} / {cost.written:.2f}; {peak:.3f} / {memory:.2f}",
                        flush=True,
                    )
        growth += [(job, *(large / small)) for job, (small, large) in found.items()]
    print(f"{SIZES[-1]} x the raw files: job; size; time (goal 9-11); memory (goal <= 1.1)")
    for job, *ratios in growth:
        print("; ".join([job, *(f"{ratio:.2f}" for ratio in ratios)]))


if __name__ == "__main__":
    main()
