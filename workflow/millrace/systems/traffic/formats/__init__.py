"""Public data sets of traffic, converted to the CSV files of `millrace.systems.traffic.tracks`.

Each module reads one format: its units, the point of the box that positions refer to, the sense and origin
of its angles, and its rate. All return metres, centres of boxes, radians counter-clockwise from +x, 10 Hz.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from millrace.errors import DataError
from millrace.systems.base import Progress
from millrace.systems.traffic.formats import argoverse, highd, interaction, ngsim, sumo, waymo
from millrace.systems.traffic.tracks import Scenario, write_recording


class Adapter(NamedTuple):
    """How recordings of a public data set are found and read."""

    read: Callable[[Path, Path], Iterator[tuple[str, list[Scenario]]]]
    """(file, directory of all files) -> names of recordings and their scenarios, which may be none."""
    pattern: str
    """Names of the files, which may lie in subdirectories."""
    holds: str
    """What the directory holds, for error messages."""


ADAPTERS = {
    "argoverse2": Adapter(argoverse.read, "scenario_*.parquet", "scenarios of Argoverse 2"),
    "highd": Adapter(highd.read, "*_tracks.csv", "01_tracks.csv and so on of highD"),
    "interaction": Adapter(interaction.read, "vehicle_tracks_*.csv", "recordings of INTERACTION"),
    "ngsim": Adapter(ngsim.read, "*.csv", "trajectories of NGSIM as CSV"),
    "sumo": Adapter(sumo.read, "*.fcd.*", "floating car data of SUMO, <name>.fcd.xml"),
    "waymo": Adapter(waymo.read, "*tfrecord*", "TFRecord files of the Waymo Open Motion Dataset"),
}


def convert(name: str, source: Path, output: Path, progress: Progress | None = None) -> int:
    """Convert a directory of a public data set, one of `ADAPTERS`; returns the number of scenarios.

    Raises
    ------
    DataError
        There are no files of the format, or one is malformed.
    """
    adapter, count = ADAPTERS[name], 0
    files = sorted(path for path in source.rglob(adapter.pattern) if path.is_file())
    if not files:
        raise DataError(f"{source}: no file {adapter.pattern}; expected {adapter.holds}")
    for number, path in enumerate(files):
        for recording, scenarios in adapter.read(path, source):
            if scenarios:
                write_recording(output, recording, scenarios)
            count += len(scenarios)
        if progress is not None:
            progress(number + 1, len(files))
    return count
