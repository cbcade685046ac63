"""Which scenarios are for training, validation and test: by their names, or as the data set says.

Public data sets say so by their folders and names of files, tracks by ``splits.csv``
(``scenario_id,split``) beside them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from millrace.errors import DataError
from millrace.systems.traffic.settings import TokenConfig
from millrace.systems.traffic.tracks import read_splits

OFFICIAL = ("training", "validation", "test")
"""Names of splits as data sets say them, in the order of `millrace.data.split.SPLITS`."""

_WORDS = {"train": 0, "training": 0, "val": 1, "validation": 1, "valid": 1, "test": 2, "testing": 2}


class SaysSplits(Protocol):
    """Raw traffic that may say which split a scenario is in, see `millrace.systems.traffic.formats`."""

    source: Path

    @property
    def files(self) -> Sequence[Path]:
        """Its files."""

    def official_splits(self) -> set[str]:
        """Those of `OFFICIAL` that are said of something."""

    def official_split(self, number: int, name: str) -> str | None:
        """The one that a scenario of a file is said to be in."""


def splits_in(table: Path, names: Sequence[str]) -> dict[str, str | None]:
    """What ``splits.csv`` says of some scenarios."""
    said = read_splits(table, OFFICIAL)
    return {name: said.get(name) for name in sorted(names)}


def are_still(path: Path, told: Sequence[Mapping[str, str | None]]) -> list[bool]:
    """Whether it still says so to some parts, though it may say more: see `RawFormat.still`."""
    try:
        said = read_splits(path, OFFICIAL)
    except DataError:
        return [False] * len(told)  # jobs say what is wrong with it
    return [all(said.get(name) == split for name, split in one.items()) for one in told]


def named_split(path: Path) -> str | None:
    """The split that folders and name of a file say, one of `OFFICIAL`; None if none or several.

    ``path`` is relative to the directory of the data set, such as
    ``validation/validation.tfrecord-00000-of-00150`` (Waymo) or ``val/<id>/scenario_<id>.parquet``.
    """
    words = re.split(r"[^a-z]+", path.as_posix().lower())
    found = {_WORDS[word] for word in words if word in _WORDS}
    return OFFICIAL[found.pop()] if len(found) == 1 else None


def splits_of(
    traffic: SaysSplits, config: TokenConfig, has_test: bool
) -> Callable[[int, str], int | None]:
    """Split of a scenario by file and name, an index into `millrace.data.split.SPLITS`; None: left out.

    Official test sets without futures are not read. Where they were the only test set, which
    ``has_test`` denies, what is official validation is divided into validation and test, in the proportion
    of the configured shares.

    Raises
    ------
    DataError
        The official split is asked for, and the data do not say what is training or validation; also
        when a scenario is asked for that is in no split.
    """
    if config.splits == "by_name":
        return lambda _, name: config.split(name)
    said = traffic.official_splits()
    if not said:
        raise DataError(
            f"{traffic.source}: nothing says what is training, and tokens.splits is official; expected "
            "files in folders, or with names, such as training, validation and testing (train, val and "
            "test), or beside tracks splits.csv with the columns scenario_id and split; leave out the key "
            "to split by name"
        )
    for name in OFFICIAL[:2]:
        if name not in said:
            raise DataError(
                f"{traffic.source}: no scenario is official {name}; expected some, add the files of the "
                f"folder {name}, or leave out tokens.splits"
            )
    # Of what is not for training, as if that were all.
    share = config.validation / (1 - config.train)

    def split(file: int, name: str) -> int | None:
        official = traffic.official_split(file, name)
        if official is None:
            raise DataError(
                f"{traffic.files[file]}: scenario {name!r} is in no split; expected one, its file lies in "
                "no folder such as training or validation, or folders and name contradict each other"
            )
        number = OFFICIAL.index(official)
        return number if has_test or number != 1 else config.placed(name, (share,), first=1)

    return split
