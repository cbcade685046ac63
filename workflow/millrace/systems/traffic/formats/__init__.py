"""Public data sets of traffic, converted to the CSV files of `millrace.systems.traffic.tracks`.

Each module reads one format: its units, the point of the box that positions refer to, the sense and origin
of its angles, and its rate. All return metres, centres of boxes, radians counter-clockwise from +x, 10 Hz.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from millrace.data.account import Account
from millrace.errors import DataError
from millrace.files import safe_name
from millrace.input_files import files_below
from millrace.systems.base import Progress
from millrace.systems.traffic.formats import argoverse, highd, interaction, ngsim, sumo, waymo
from millrace.systems.traffic.formats.recordings import Converted
from millrace.systems.traffic.plausibility import checked
from millrace.systems.traffic.splits import named_split, write_splits
from millrace.systems.traffic.tracks import write_recording


class Adapter(NamedTuple):
    """How recordings of a public data set are found and read."""

    read: Callable[[Path, Path, Account], Iterator[Converted]]
    """(file, directory of all files, what is left out) -> recordings, which may hold no scenario."""
    find: Callable[[Path], list[Path]]
    """Directory -> its files in order, which may lie in subdirectories."""
    holds: str
    """What the directory holds, for error messages."""


def _named(pattern: str) -> Callable[[Path], list[Path]]:
    return lambda source: files_below(source, pattern)


ADAPTERS = {
    "argoverse2": Adapter(
        argoverse.read, _named("scenario_*.parquet"), "scenario_*.parquet of Argoverse 2"
    ),
    "highd": Adapter(highd.read, _named("*_tracks.csv"), "01_tracks.csv and so on of highD"),
    "interaction": Adapter(interaction.read, interaction.find, "recordings of INTERACTION as CSV"),
    "ngsim": Adapter(ngsim.read, _named("*.csv"), "trajectories of NGSIM as CSV"),
    "sumo": Adapter(sumo.read, sumo.find, "floating car data of SUMO, <name>.fcd.xml"),
    "waymo": Adapter(
        waymo.read, _named("*tfrecord*"), "TFRecord files of the Waymo Open Motion Dataset"
    ),
}


def _read(adapter: Adapter, path: Path, source: Path, account: Account) -> Iterator[Converted]:
    """Recordings of a file, which each error names."""
    try:
        yield from adapter.read(path, source, account)
    except DataError as error:
        if str(source) in str(error):
            raise
        raise DataError(f"{path}: {error}") from error


def convert(name: str, source: Path, output: Path, progress: Progress | None = None) -> int:
    """Convert a directory of a public data set, one of `ADAPTERS`; returns the number of scenarios.

    ``account.json`` in ``output`` says what was read, kept, and left out for which reason, and
    ``splits.csv`` what is training, validation and test, where names of folders or files do.

    Raises
    ------
    DataError
        There are no files of the format or no scenarios, one is malformed or not plausible, or two
        recordings have one name.
    """
    adapter, account = ADAPTERS[name], Account()
    files = adapter.find(source)
    if not files:
        raise DataError(f"{source}: no file of {name}; expected {adapter.holds}")
    places: dict[str, Path] = {}
    splits: dict[str, str] = {}
    count = 0
    for number, path in enumerate(files):
        for recording in _read(adapter, path, source, account):
            names = [recording.name, *(one.name for one in recording.scenarios)]
            if not all(name.isprintable() for name in names):
                raise DataError(
                    f"{path}: recording {recording.name!r}: expected a name without control characters"
                )
            # File systems may not distinguish capitals.
            key = recording.name.casefold()
            if key in places:
                raise DataError(
                    f"{path}: recording {recording.name!r} is in {places[key]}, too; expected each once, "
                    "remove one or rename it"
                )
            places[key] = path
            scenarios = list(checked(path, recording.map, recording.scenarios))
            if scenarios:
                write_recording(output, safe_name(recording.name), scenarios)
            count += len(scenarios)
            if split := named_split(path.relative_to(source)):
                account.keep(f"scenarios of the official {split} set", len(scenarios))
                splits |= {one.name: split for one in scenarios}
        if progress is not None:
            progress(number + 1, len(files))
    account.keep("files", len(files))
    account.keep("scenarios", count)
    if splits:
        write_splits(output, splits)
    account.write(output / "account.json")
    if not count:
        raise DataError(
            f"{source}: no scenario in {len(files)} files of {name}; expected road users at the current "
            f"step, and 1.1 s of traffic or more; {account.to_json()}"
        )
    return count
