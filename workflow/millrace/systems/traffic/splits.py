"""Which scenarios are for training, validation and test: by their names, or as the data set says.

A converted data set that says so has ``splits.csv`` (``scenario_id,split``) beside its tracks; tracks of
your own may have it.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from millrace.errors import DataError
from millrace.files import atomic_write
from millrace.systems.traffic.settings import TokenConfig
from millrace.systems.traffic.tracks import read_splits

OFFICIAL = ("training", "validation", "test")
"""Names in ``splits.csv``, in the order of `millrace.data.split.SPLITS`."""

_WORDS = {"train": 0, "training": 0, "val": 1, "validation": 1, "valid": 1, "test": 2, "testing": 2}


def named_split(path: Path) -> str | None:
    """The split that folders and name of a file say, one of `OFFICIAL`; None if none or several.

    ``path`` is relative to the directory of the data set, such as
    ``validation/validation.tfrecord-00000-of-00150`` (Waymo) or ``val/<id>/scenario_<id>.parquet``.
    """
    words = re.split(r"[^a-z]+", path.as_posix().lower())
    found = {_WORDS[word] for word in words if word in _WORDS}
    return OFFICIAL[found.pop()] if len(found) == 1 else None


def write_splits(base: Path, splits: Mapping[str, str]) -> None:
    """Write the split of each scenario; raises `OutputError` if the file system refuses to take it."""
    with atomic_write(base / "splits.csv") as partial:
        table = pd.DataFrame({"scenario_id": list(splits), "split": list(splits.values())})
        table.to_csv(partial, index=False)


def splits_of(base: Path, config: TokenConfig) -> Callable[[str], int | None]:
    """Split of a scenario by its name, an index into `millrace.data.split.SPLITS`; None: it is left out.

    Official test sets without futures are not read. Where they were the only test set, what is official
    validation is divided into validation and test, in the proportion of the configured shares.

    Raises
    ------
    DataError
        The official split is asked for, and the data do not say what is training or validation; also
        when a scenario is asked for that is in no split.
    """
    path = base / "splits.csv"
    if config.splits == "by_name":
        return config.split
    if not path.is_file():
        raise DataError(
            f"{path}: no such file, and tokens.splits is official; expected files in folders, or with "
            "names, such as training, validation and testing (train, val and test), or this file with the "
            "columns scenario_id and split; leave out the key to split by name"
        )
    official = read_splits(path, OFFICIAL)
    for name in OFFICIAL[:2]:
        if name not in official.values():
            raise DataError(
                f"{path}: no scenario is official {name}; expected some, add the files of the folder "
                f"{name} to the source, or leave out tokens.splits"
            )
    divided = "test" not in official.values()
    # Of what is not for training, as if that were all.
    share = config.validation / (1 - config.train)

    def split(name: str) -> int | None:
        if name not in official:
            raise DataError(
                f"{path}: scenario {name!r} is in no split; expected one, its file lies in no folder such "
                "as training or validation, or folders and name contradict each other"
            )
        number = OFFICIAL.index(official[name])
        return config.placed(name, (share,), first=1) if divided and number == 1 else number

    return split
