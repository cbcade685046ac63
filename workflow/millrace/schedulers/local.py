"""Allocation without a scheduler: this machine alone."""

from collections.abc import Sequence

from millrace.errors import ConfigError
from millrace.layout import Layout


class LocalAllocation:
    """The machine that this process runs on, see `millrace.schedulers.base.Allocation`."""

    scheduler, job = "", ""

    def end(self) -> float | None:
        """Return None: there is no walltime."""
        return None

    def on_each_node(self, command: Sequence[str], layout: Layout, cpus_per_node: int) -> list[str]:
        """Return the command itself; raises `ConfigError` for several nodes."""
        if layout.nodes > 1:
            raise ConfigError(
                f"layout {layout}: needs {layout.nodes} nodes, and this machine is one; choose "
                f"n1_gpu{layout.world_size}, or the profile of a cluster"
            )
        return list(command)

    def requeue(self) -> bool:
        """Return False: there is no queue."""
        return False
