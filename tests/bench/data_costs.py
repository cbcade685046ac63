"""What jobs on raw files take by the size of these, beside what `millrace plan` says before anything runs.

CPU time, bytes written and peak memory of each job, in a process of its own with one thread, on simulated
files of two sizes: time has to grow with the files, memory only as declared.
"""

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from millrace.data.extraction import extract, simulate
from millrace.systems.base import Cost, resolve
from millrace.systems.registry import formats, get_kind, systems

SPLIT = {"train": 0.6, "validation": 0.2, "gap": 5}
SIZES = (1, 4)


def in_a_process(job: Callable[[], None]) -> tuple[float, float]:
    """CPU seconds of a job, and its peak memory (GB)."""

    def run(ends: Connection) -> None:
        begun = time.process_time()
        job()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        ends.send((time.process_time() - begun, peak))

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


def weather(folder: Path, size: int) -> dict[str, tuple[Callable[[], None], Path]]:
    simulate(formats()["weather"], {"steps": 200 * size, "spin_up": 0.5}, folder / "raw")
    kind, output = get_kind("weather"), folder / "weather.h5"
    return {"extract_weather": (lambda: extract(kind, folder / "raw", output, {}, SPLIT), output)}


def icon(folder: Path, size: int) -> dict[str, tuple[Callable[[], None], Path]]:
    simulate(formats()["icon"], {"level": 4, "steps": 200 * size}, folder / "raw")
    kind, output = get_kind("blocks"), folder / "blocks.h5"
    section = {"variables": ["tas"], "levels": 4}
    return {
        "extract_blocks": (lambda: extract(kind, folder / "raw", output, section, SPLIT), output)
    }


def groundwater(folder: Path, size: int) -> dict[str, tuple[Callable[[], None], Path]]:
    from millrace.systems.groundwater.patches import PatchConfig, extract_patches
    from millrace.systems.groundwater.planes import PlaneConfig, extract_planes
    from millrace.systems.groundwater.series import preprocess

    simulate(formats()["feflow_csv"], {"steps": 100 * size}, folder / "raw")
    series, patches, planes = (folder / f"{name}.h5" for name in ("series", "patches", "planes"))
    split = resolve("millrace.data.split:SplitConfig").parse(SPLIT, "split")
    names = ("head", "mass_concentration")
    return {
        "preprocess": (
            lambda: preprocess(folder / "raw", series, variables=names, forcings=None, split=split),
            series,
        ),
        "extract_patches": (
            lambda: extract_patches(series, patches, PatchConfig(), lambda *_: None),
            patches,
        ),
        "extract_planes": (
            lambda: extract_planes(series, planes, PlaneConfig(), lambda *_: None),
            planes,
        ),
    }


def waymo(folder: Path, size: int) -> dict[str, tuple[Callable[[], None], Path]]:
    from data_waymo import write

    from millrace.systems.traffic.scenarios import TokenConfig, build_vocabulary, tokenise

    write(folder / "raw", 100 * size)
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
    declared = {name: cost for system in systems().values() for name, cost in system.costs.items()}
    print(
        "job, raw GB: CPU s a GB measured / declared; written a byte; memory GB measured / declared"
    )
    for prepare in (weather, icon, groundwater, waymo):
        for size in SIZES:
            with tempfile.TemporaryDirectory() as name:
                jobs = prepare(Path(name), size)
                raw = bytes_of(Path(name) / "raw")
                for job, (run, output) in jobs.items():
                    seconds, peak = in_a_process(run)
                    cost = declared.get(job, Cost(np.nan, np.nan))
                    memory = cost.memory_gb + cost.held * raw / 2**30
                    print(
                        f"{job}, {raw / 1e9:.3f}: {seconds / raw * 1e9:.0f} / {cost.seconds:.0f}; "
                        f"{bytes_of(output) / raw:.2f} / {cost.written:.2f}; {peak:.2f} / {memory:.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
