"""Raw traffic of a directory, of any format, as scenarios.

Each module reads one public format: its units, the point of the box that positions refer to, the sense and
origin of its angles, and its rate. All return metres, centres of boxes, radians counter-clockwise from +x,
10 Hz.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from millrace.data.account import Account
from millrace.errors import DataError
from millrace.input_files import files_below
from millrace.systems.traffic.formats import argoverse, highd, interaction, ngsim, sumo, waymo
from millrace.systems.traffic.formats.recordings import Converted, Wanted
from millrace.systems.traffic.plausibility import checked
from millrace.systems.traffic.settings import TokenConfig
from millrace.systems.traffic.splits import OFFICIAL, named_split
from millrace.systems.traffic.tracks import Scenario, find_recordings, read_recording, read_splits


class Adapter(NamedTuple):
    """How recordings of a public data set are found and read."""

    read: Callable[..., Iterator[Converted]]
    """(file, directory of all files, what is left out) -> recordings, which may hold no scenario."""
    find: Callable[[Path], list[Path]]
    """Directory -> its files in order, which may lie in subdirectories."""
    holds: str
    """What the directory holds, for error messages."""
    beside: Callable[[Path, Path], list[Path]] = lambda _path, _source: []
    """(file, directory of all files) -> what a recording is read from beside its file."""
    chooses: bool = False
    """Whether ``read`` takes a fourth argument, which scenarios are wanted, and saves reading others."""


def _named(pattern: str) -> Callable[[Path], list[Path]]:
    return lambda source: files_below(source, pattern)


ADAPTERS = {
    "argoverse2": Adapter(
        argoverse.read,
        _named("scenario_*.parquet"),
        "scenario_*.parquet of Argoverse 2",
        lambda path, _: [argoverse.map_of(path)],
    ),
    "highd": Adapter(
        highd.read,
        _named("*_tracks.csv"),
        "01_tracks.csv and so on of highD",
        lambda path, _: [*highd.meta_of(path)],
    ),
    "interaction": Adapter(
        interaction.read,
        interaction.find,
        "recordings of INTERACTION as CSV",
        interaction.beside,
    ),
    "ngsim": Adapter(ngsim.read, _named("*.csv"), "trajectories of NGSIM as CSV"),
    "sumo": Adapter(
        sumo.read,
        sumo.find,
        "floating car data of SUMO, <name>.fcd.xml",
        lambda path, _: sumo.beside(path),
    ),
    "waymo": Adapter(
        waymo.read,
        _named("*tfrecord*"),
        "TFRecord files of the Waymo Open Motion Dataset",
        chooses=True,
    ),
}


class Traffic:
    """Raw traffic, file by file: of the format ``tracks``, or one of `ADAPTERS`.

    Raises `DataError` if the directory holds no files of the format.
    """

    def __init__(self, name: str, source: Path) -> None:
        self.source = source
        self._adapter = None if name == "tracks" else ADAPTERS[name]
        self._table: dict[str, str] | None = None
        self.table: Path | None = None
        """``splits.csv``, if there is one."""
        if self._adapter is None:
            self._recordings = find_recordings(source)
            self.files = [one.tracks for one in self._recordings]
            if (path := source / "splits.csv").is_file():
                self.table, self._table = path, read_splits(path, OFFICIAL)
            return
        self.files = self._adapter.find(source)
        if not self.files:
            raise DataError(f"{source}: no file of {name}; expected {self._adapter.holds}")

    @property
    def units(self) -> list[str]:
        """Names of the files, relative to the directory."""
        return [path.relative_to(self.source).as_posix() for path in self.files]

    def read_from(self, number: int) -> list[Path]:
        """What a file's scenarios are read from."""
        if self._adapter is None:
            one = self._recordings[number]
            return [path for path in (one.tracks, one.map, one.lights) if path is not None]
        path = self.files[number]
        return [p for p in (path, *self._adapter.beside(path, self.source)) if p.is_file()]

    def official_splits(self) -> set[str]:
        """Those of `OFFICIAL` that some scenario or file is said to be in."""
        if self._adapter is None:
            return set((self._table or {}).values())
        named = (named_split(path.relative_to(self.source)) for path in self.files)
        return {split for split in named if split is not None}

    def official_split(self, number: int, name: str) -> str | None:
        """The one of `OFFICIAL` that a scenario of a file is said to be in; None: it is said of none."""
        if self._adapter is None:
            return (self._table or {}).get(name)
        return named_split(self.files[number].relative_to(self.source))

    def bytes_of_splits(self, config: TokenConfig) -> bytes:
        """What the data say of splits, if that is used: ``splits.csv``, or the names of the files."""
        if config.splits != "official":
            return b""
        if self._adapter is None:
            return (self.source / "splits.csv").read_bytes()
        return "\n".join(str(path.relative_to(self.source)) for path in self.files).encode()

    def scenarios(
        self, number: int, account: Account, wanted: Wanted = lambda _: True
    ) -> Iterator[Scenario]:
        """Scenarios of a file whose names are wanted; those of a recording share one object as their map.

        Raises `DataError` if the file is malformed, or a scenario is not plausible.
        """
        path = self.files[number]
        for recording in self._read(number, account, wanted):
            for one in checked(path, recording.map, recording.scenarios):
                if not one.name.isprintable():
                    raise DataError(
                        f"{path}: scenario {one.name!r}: expected a name without control characters"
                    )
                if wanted(one.name):
                    yield one

    def _read(self, number: int, account: Account, wanted: Wanted) -> Iterator[Converted]:
        path = self.files[number]
        if self._adapter is None:
            files = self._recordings[number]
            yield Converted(path.name, files.map, read_recording(files, account))
            return
        choice = [wanted] if self._adapter.chooses else []
        try:
            yield from self._adapter.read(path, self.source, account, *choice)
        except DataError as error:
            if str(self.source) in str(error):
                raise
            raise DataError(f"{path}: {error}") from error

    def digest(self, number: int, contents: Sequence[bytes]) -> bytes:
        """SHA-256 of a file, which has scenarios of these `content`."""
        made = hashlib.sha256()
        if self._adapter is not None:
            for one in contents:
                made.update(one)
            return made.digest()
        files = self._recordings[number]
        for path in (files.tracks, files.map, files.lights):
            if path is not None:
                made.update(path.read_bytes())
        return made.digest()


def content(scenario: Scenario) -> bytes:
    """SHA-256 of all that a scenario holds."""
    made = hashlib.sha256(repr((scenario.name, scenario.track_A)).encode())
    arrays = [scenario.kind_A, scenario.size_A2, scenario.pose_AT3, scenario.velocity_AT2]
    for line in scenario.road:
        made.update(f"{line.name} {line.type} {len(line.points_P2)}".encode())
        arrays.append(line.points_P2)
    for name, states_T in sorted(scenario.lights.items()):
        made.update(name.encode())
        arrays.append(states_T)
    for array in arrays:
        made.update(np.ascontiguousarray(array).data)
    return made.digest()
