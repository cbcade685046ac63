"""Public data sets of traffic, converted to the CSV of `millrace.systems.traffic.tracks`.

Each module knows one format: its units, the point of the box that positions mean, the sense and origin of
its angles, and its rate. All write metres, middles of boxes, radians counter-clockwise from +x, and 10 Hz.
"""

from collections.abc import Callable
from pathlib import Path

from millrace.errors import ConfigError
from millrace.systems.base import Progress
from millrace.systems.traffic.formats import argoverse, highd, interaction, ngsim, sumo, waymo

ADAPTERS: dict[str, Callable[[Path, Path, Progress | None], int]] = {
    "argoverse2": argoverse.convert,
    "highd": highd.convert,
    "interaction": interaction.convert,
    "ngsim": ngsim.convert,
    "sumo": sumo.convert,
    "waymo": waymo.convert,
}


def convert(name: str, source: Path, output: Path, progress: Progress | None = None) -> int:
    """Convert a directory of a public data set; returns the number of scenarios.

    Raises
    ------
    ConfigError
        There is no such format.
    DataError
        The files are not of the format.
    """
    if name not in ADAPTERS:
        raise ConfigError(f"format {name!r}: expected one of {', '.join(ADAPTERS)}")
    return ADAPTERS[name](Path(source), Path(output), progress)
