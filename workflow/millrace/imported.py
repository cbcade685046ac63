"""Things known by name, imported when they are asked for.

A rank needs one model and its samples. With all of them it would start a second later and read thousands
of files more, which on a shared file system takes longer still.
"""

import pkgutil
from collections.abc import Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class Imported(Mapping[str, T]):
    """Mapping of names to objects of modules.

    Parameters
    ----------
    places : mapping
        Name -> ``module:object``. Names are known without an import.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = dict(places)

    def __getitem__(self, name: str) -> T:
        found: T = pkgutil.resolve_name(self._places[name])
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places
