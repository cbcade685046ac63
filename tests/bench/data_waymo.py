"""Waymo's scenarios to tokens: CPU time, memory and disk of a scenario, and what the data set would take.

Records as they are: about 1 MB, 60 to 250 tracks of 91 states, 20,000 points of a map; written here, 250 in
a file, which all other files hold under other ids. One process and thread for each step, as the jobs of the
workflow. Numbers of scenarios may be given: from 2,000 on the memory of the vocabulary is at its bound.
"""

import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from millrace.systems.traffic.formats.waymo import masked_crc, message

NUMBERS = (100, 3_000)
TOGETHER = 250
ALL = 487_000
GOALS = {"CPU s": 0.15, "MB on disk": 0.1, "GB of memory": 1.0}


def name_of(number: int) -> str:
    return f"{np.random.default_rng(number).integers(1 << 60):016x}"


def scenario(number: int) -> bytes:
    """Agents that drive through a place of 40 streets, some of them seen for a part of the time."""
    random = np.random.default_rng(number)
    made = message("Scenario")
    made.scenario_id, made.current_time_index = name_of(number), 10
    made.timestamps_seconds.extend(0.1 * np.arange(91))
    t = 0.1 * np.arange(91)
    for agent in range(int(random.integers(60, 251))):
        kind = int(random.choice([1, 1, 1, 1, 2, 3]))
        speed = random.uniform(0, (0, 15, 2, 6)[kind])
        turn, heading = random.normal(0, 0.02), random.uniform(-np.pi, np.pi)
        way = heading + turn * t
        x = random.uniform(-100, 100) + np.cumsum(speed * np.cos(way)) * 0.1
        y = random.uniform(-100, 100) + np.cumsum(speed * np.sin(way)) * 0.1
        begin, end = sorted(random.integers(0, 92, 2)) if random.random() < 0.6 else (0, 91)
        track = made.tracks.add(id=agent, object_type=kind)
        size = {1: (4.6, 1.9), 2: (0.8, 0.8), 3: (1.8, 0.7)}[kind]
        for step in range(91):
            if not begin <= step < end:
                track.states.add(valid=False)
                continue
            track.states.add(
                center_x=x[step],
                center_y=y[step],
                length=size[0],
                width=size[1],
                heading=way[step],
                velocity_x=speed * np.cos(way[step]),
                velocity_y=speed * np.sin(way[step]),
                valid=True,
            )
    for line in range(200):
        feature = made.map_features.add(id=line)
        part = feature.lane if line % 2 else feature.road_edge
        x, y, way = *random.uniform(-150, 150, 2), random.uniform(-np.pi, np.pi)
        along, bend = 0.5 * np.arange(100), random.normal(0, 0.005)
        for point in np.stack(
            [x + along * np.cos(way + bend * along), y + along * np.sin(way + bend * along)], axis=1
        ):
            part.polyline.add(x=point[0], y=point[1])
    return made.SerializeToString()


def write(folder: Path, number: int) -> int:
    """Files of up to `TOGETHER` scenarios; returns bytes."""
    folder.mkdir()
    size, made = 0, [scenario(one) for one in range(min(number, TOGETHER))]
    for first in range(0, number, TOGETHER):
        with (folder / f"training.tfrecord-{first:05d}").open("wb") as file:
            for one in range(first, min(first + TOGETHER, number)):
                ids = [name_of(of).encode() for of in (one % TOGETHER, one)]
                content = made[one % TOGETHER].replace(*ids, 1)
                head = struct.pack("<Q", len(content))
                for part in (head, content):
                    file.write(part + struct.pack("<I", masked_crc(part)))
                size += len(content)
    return size


STEPS = {
    "vocabulary": "build_vocabulary(raw, out / 'vocabulary.h5', config, raw='waymo')",
    "tokens": "tokenise(raw, out / 'vocabulary.h5', out / 'scenarios.h5', config, raw='waymo')",
}


def run(step: str, raw: Path, out: Path) -> tuple[float, float]:
    """CPU seconds without the start of Python, and peak memory (GB)."""
    program = f"""
import resource, sys, time
from pathlib import Path
from millrace.systems.traffic.scenarios import TokenConfig, build_vocabulary, tokenise
raw, out, config = Path({str(raw)!r}), Path({str(out)!r}), TokenConfig(block=1)
begun = time.process_time()
{STEPS[step]}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(time.process_time() - begun, peak, file=sys.stderr)
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    seconds, memory = done.stderr.strip().splitlines()[-1].split()
    return float(seconds), float(memory)


def main() -> None:
    numbers = tuple(map(int, sys.argv[1:])) or NUMBERS
    with tempfile.TemporaryDirectory() as name:
        for number in numbers:
            raw, out = Path(name) / f"raw{number}", Path(name) / f"out{number}"
            size = write(raw, number)
            out.mkdir()
            print(f"{number} scenarios of {size / number / 1e6:.2f} MB, measured:")
            total = 0.0
            for step in STEPS:
                seconds, memory = run(step, raw, out)
                total += seconds
                print(
                    f"  {step}: {seconds / number:.3f} CPU s a scenario, {memory:.2f} GB of memory "
                    f"(goal < {GOALS['GB of memory']:g})"
                )
            disk = (out / "scenarios.h5").stat().st_size / number / 1e6
            print(f"  together {total / number:.3f} CPU s (goal <= {GOALS['CPU s']})")
            print(f"  {disk:.3f} MB on disk a scenario (goal <= {GOALS['MB on disk']})")
        hours = total / number * ALL / 3600
        print(f"extrapolated to {ALL:,} scenarios: {hours:.0f} CPU hours (goal < 25)")


if __name__ == "__main__":
    main()
