"""No scheduler: this machine alone."""

from collections.abc import Sequence

from millrace.errors import ConfigError
from millrace.layout import Layout


class LocalAllocation:
    """The machine that this process runs on, see `Allocation`."""

    scheduler, job = "", ""

    def end(self) -> float | None:
        """No end."""
        return None

    def on_each_node(self, command: Sequence[str], layout: Layout, cpus_per_node: int) -> list[str]:
        """The command itself; raises `ConfigError` for several nodes."""
        if layout.nodes > 1:
            raise ConfigError(
                f"layout {layout}: needs {layout.nodes} nodes, and this machine is one; choose "
                f"n1_gpu{layout.world_size}, or the profile of a cluster"
            )
        return list(command)

    def requeue(self) -> bool:
        """There is no queue."""
        return False
