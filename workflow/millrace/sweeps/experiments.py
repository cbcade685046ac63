"""Experiments by name, the trials of sweeps among them."""

from collections.abc import Iterator, Mapping
from typing import Any

from millrace.sweeps.sweep import Sweep


class Experiments(Mapping[str, dict[str, Any]]):
    """The blocks of the configuration, and those of trials, which follow from their names.

    A trial's block is made when it is asked for first, and stands in ``blocks`` from then on, where jobs
    look for it. Iteration is over what the user wrote, and those that were asked for.
    """

    def __init__(self, blocks: dict[str, dict[str, Any]], sweeps: Mapping[str, Sweep]) -> None:
        self._blocks, self._sweeps = blocks, sweeps

    def __getitem__(self, name: str) -> dict[str, Any]:
        if name not in self._blocks:
            for experiment, sweep in self._sweeps.items():
                if (values := sweep.values(name)) is not None:
                    self._blocks[name] = sweep.block(self._blocks[experiment], values)
        return self._blocks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)
