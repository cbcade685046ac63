"""Names of GPU layouts: ``n<nodes>_gpu<GPUs per node>``."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from millrace.errors import ConfigError

_PATTERN = re.compile(r"n([1-9][0-9]*)_gpu([1-9][0-9]*)")
_OR = "-or-"


@dataclass(frozen=True, order=True)
class Layout:
    """How many nodes a training job uses, and how many GPUs on each of them.

    On a machine without GPUs the same number of CPU processes takes their place.
    """

    nodes: int
    gpus_per_node: int

    @classmethod
    def parse(cls, name: str) -> "Layout":
        """Read a layout name such as ``n2_gpu4``; raises `ConfigError` for anything else."""
        match = _PATTERN.fullmatch(name)
        if match is None:
            raise ConfigError(
                f"layout {name!r}: expected n<nodes>_gpu<GPUs per node>, for example n2_gpu4"
            )
        return cls(int(match[1]), int(match[2]))

    @property
    def world_size(self) -> int:
        """Number of training processes, one per GPU."""
        return self.nodes * self.gpus_per_node

    @classmethod
    def entrants(cls, name: str) -> "list[Layout]":
        """Layouts of a race such as ``n1_gpu4-or-n4_gpu1``; a single layout is the only one."""
        return [cls.parse(part) for part in name.split(_OR)]

    @staticmethod
    def race(names: Iterable[str]) -> str:
        """Name of a race of layouts, as it stands in paths."""
        return _OR.join(names)

    def __str__(self) -> str:
        return f"n{self.nodes}_gpu{self.gpus_per_node}"
