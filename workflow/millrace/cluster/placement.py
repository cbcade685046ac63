"""Node types of a cluster, the needs of its jobs, and the placement of a job on nodes."""

from dataclasses import dataclass

from millrace.config import Count, Settings, Text, option

MB_PER_GB = 1024  # for SLURM and PBS

RESOURCES = (
    *("nodes", "mem_mb", "runtime"),
    *("slurm_partition", "slurm_account", "constraint", "qos", "slurm_extra"),
    *("cpus_per_task", "gres", "tasks_per_gpu", "tasks", "mpi"),
    *("queue", "account", "ncpus", "ngpus", "gpu_model", "place"),
)
"""Names of all resources that a placement may have."""


class NodeType(Settings):
    """Nodes of one kind; an entry of ``node_types``."""

    name: Text
    """Of your choice."""
    cores: Count
    """CPU cores of a node."""
    memory_gb: Count = option(unit="GB")
    """Memory of a node."""
    count: int = option(0, ge=0)
    """Number of such nodes; 0: not stated."""
    gpus: int = option(0, ge=0)
    """GPUs of a node."""
    gpu_model: str = ""
    """Name of the GPU at this site, which requests to PBS contain."""
    gpu_memory_gb: int = option(0, ge=0, unit="GB")
    """Memory of a GPU."""
    partition: str = ""
    """Partition of SLURM or queue of PBS; empty: the site's default."""
    constraint: str = ""
    """Feature that distinguishes these nodes from others of the partition (SLURM)."""
    qos: str = ""
    """Quality of service that this partition requires; empty: that of the cluster."""
    max_hours: float = option(0.0, ge=0, unit="h")
    """Longest job; 0: no limit of its own."""
    max_cores_per_gpu: int = option(0, ge=0)
    """Largest number of cores for each GPU of a job; 0: the node's cores divided by its GPUs."""
    exclusive: bool = False
    """A job that takes all GPUs of such a node, or any job if it has none, does not share the node."""
    enabled: bool = True
    """false: the nodes are open to some groups only, and no job is placed there."""

    @property
    def cores_per_gpu(self) -> int:
        """Cores that a job may take with each GPU."""
        share = self.cores // self.gpus
        return min(share, self.max_cores_per_gpu or share)

    def __str__(self) -> str:
        gpus = f"{self.gpus} {self.gpu_model}".rstrip() if self.gpus else "no GPU"
        return f"{self.name} ({f'{self.count} x ' if self.count else ''}{gpus})"


class Needs(Settings):
    """Needs of the jobs of a rule, or of all without (``cpu``) and with GPUs (``gpu``)."""

    cores: Count = 2
    """CPU cores for each GPU, or in total if the job has no GPU; fewer if the node has not as many."""
    memory_gb: float = option(8.0, gt=0, unit="GB")
    """Memory for each GPU, or in total. After lack of memory a job is tried again with twice as much, then
    three times, up to that of the node."""
    hours: float = option(1.0, gt=0, unit="h")
    """Time; less if the node type or the quality of service has a lower limit."""
    gpus: int = option(0, ge=0)
    """GPUs of a rule that has no layout."""
    gpu_memory_gb: int = option(0, ge=0, unit="GB")
    """Memory that each GPU must have."""
    node_types: tuple[Text, ...] = ()
    """Names of the node types to try, in order; empty: all, in the order of the file."""


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
        Requested time.
    account, qos : str
        Empty: none.
    exclusive : bool
        Whether the nodes are not shared with other jobs.
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
        """Return the resources by the names of Snakemake and of `millrace.schedulers.requests`."""
        specific = self._slurm() if self.scheduler == "slurm" else self._pbs()
        shared = {"nodes": self.nodes, "mem_mb": self.memory_mb, "runtime": self.minutes}
        return {key: value for key, value in {**shared, **specific}.items() if value != ""}

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
            # `gres` is the number of GPUs per node. Without the zero, the plugin would bind tasks to GPUs.
            made |= {"gres": f"gpu:{self.gpus_per_node}", "tasks_per_gpu": 0}
        if self.nodes > 1:
            # One task per node. The plugin recognises such jobs by `mpi`, which it refuses on one node.
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
