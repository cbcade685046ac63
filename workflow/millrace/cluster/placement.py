"""Where a job goes, as the resources that Snakemake asks the scheduler for."""

from dataclasses import dataclass

from millrace.cluster.nodes import NodeType

RESOURCES = (
    *("nodes", "mem_mb", "runtime"),
    *("slurm_partition", "slurm_account", "constraint", "qos", "slurm_extra"),
    *("cpus_per_task", "gres", "tasks_per_gpu", "tasks", "mpi"),
    *("queue", "account", "ncpus", "ngpus", "gpu_model", "place"),
)
"""Names of all resources that a placement may have."""


@dataclass(frozen=True)
class Placement:
    """A job on nodes of one type.

    Parameters
    ----------
    scheduler : str
        ``slurm`` or ``pbs``.
    node_type : NodeType
    nodes, gpus_per_node, cpus_per_node : int
    memory_mb : int
        Memory on each node.
    minutes : int
        Time that is asked for.
    account, qos : str
        Empty: none.
    exclusive : bool
        The nodes are not shared with other jobs.
    """

    scheduler: str
    node_type: NodeType
    nodes: int
    gpus_per_node: int
    cpus_per_node: int
    memory_mb: int
    minutes: int
    account: str = ""
    qos: str = ""
    exclusive: bool = False

    def resources(self) -> dict[str, str | int]:
        """Resources, named as Snakemake's executor, `sbatch_arguments` and `qsub_arguments` know them."""
        made = self._slurm() if self.scheduler == "slurm" else self._pbs()
        shared = {"nodes": self.nodes, "mem_mb": self.memory_mb, "runtime": self.minutes}
        return {key: value for key, value in {**shared, **made}.items() if value != ""}

    def _slurm(self) -> dict[str, str | int]:
        made: dict[str, str | int] = {
            "slurm_partition": self.node_type.partition,
            "slurm_account": self.account,
            "constraint": self.node_type.constraint,
            "qos": self.qos,
            "cpus_per_task": self.cpus_per_node,
            "slurm_extra": "--exclusive" if self.exclusive else "",
        }
        if self.gpus_per_node:
            # `gres` counts GPUs per node. Without the zero, the plugin would bind tasks to GPUs.
            made |= {"gres": f"gpu:{self.gpus_per_node}", "tasks_per_gpu": 0}
        if self.nodes > 1:
            # One task a node. The plugin knows such a job by `mpi`, which it refuses on one node.
            made |= {"tasks": self.nodes, "mpi": "srun"}
        return made

    def _pbs(self) -> dict[str, str | int]:
        made: dict[str, str | int] = {
            "queue": self.node_type.partition,
            "account": self.account,
            "ncpus": self.cpus_per_node,
            "place": "scatter" if self.nodes > 1 else "",
        }
        if self.gpus_per_node:
            made |= {"ngpus": self.gpus_per_node, "gpu_model": self.node_type.gpu_model}
        return made
