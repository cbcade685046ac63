"""Names of GPU layouts: ``n<nodes>_gpu<GPUs per node>``."""

import re
from dataclasses import dataclass

from millrace.errors import ConfigError

_PATTERN = re.compile(r"n([1-9][0-9]*)_gpu([1-9][0-9]*)")


@dataclass(frozen=True, order=True)
class Layout:
    """How many nodes a training job takes, and how many GPUs on each of them.

    On a machine without GPUs the same number of CPU processes stands in for them.
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

    def __str__(self) -> str:
        return f"n{self.nodes}_gpu{self.gpus_per_node}"
