"""What a cluster has, and what a job needs."""

from dataclasses import dataclass

MB_PER_GB = 1024  # SLURM and PBS both count in powers of two


@dataclass(frozen=True)
class NodeType:
    """Nodes of one kind.

    Parameters
    ----------
    name : str
    cores : int
        CPU cores of a node.
    memory_gb : int
        Memory of a node.
    count : int
        Number of such nodes; 0: not stated.
    gpus : int
        GPUs of a node.
    gpu_model : str
        As the site names it. PBS is asked for it.
    gpu_memory_gb : int
        Memory of a GPU.
    partition : str
        Partition of SLURM or queue of PBS; empty: the site's default.
    constraint : str
        Feature that tells these nodes from others of the partition (SLURM).
    qos : str
        Quality of service that this partition insists on; empty: that of the cluster.
    max_hours : float
        Longest job; 0: no limit of its own.
    max_cores_per_gpu : int
        Most cores that a job gets with a GPU; 0: the node's cores divided by its GPUs.
    exclusive : bool
        A job that takes all GPUs of such a node, or any job if it has none, gets the node for itself.
    enabled : bool
        Off: the nodes are open to some groups only, and nothing is placed there.
    """

    name: str
    cores: int
    memory_gb: int
    count: int = 0
    gpus: int = 0
    gpu_model: str = ""
    gpu_memory_gb: int = 0
    partition: str = ""
    constraint: str = ""
    qos: str = ""
    max_hours: float = 0
    max_cores_per_gpu: int = 0
    exclusive: bool = False
    enabled: bool = True

    @property
    def cores_per_gpu(self) -> int:
        """Cores that a job may take with each GPU."""
        share = self.cores // self.gpus
        return min(share, self.max_cores_per_gpu or share)

    def __str__(self) -> str:
        gpus = f"{self.gpus} {self.gpu_model}".rstrip() if self.gpus else "no GPU"
        return f"{self.name} ({f'{self.count} x ' if self.count else ''}{gpus})"


@dataclass(frozen=True)
class Needs:
    """What the jobs of a rule need.

    Parameters
    ----------
    cores : int
        CPU cores for each GPU, or in all if the job has no GPU; fewer where the node has not as many.
    memory_gb : float
        Memory for each GPU, or in all. Attempt n asks for n times as much, within the node's.
    hours : float
        Time; less where the node type or the quality of service has a lower limit.
    gpus : int
        GPUs of a rule that has no layout.
    gpu_memory_gb : int
        Memory that each GPU must have.
    node_types : tuple of str
        Names of the node types to try, in order; empty: all, in the order of the file.
    """

    cores: int = 2
    memory_gb: float = 8
    hours: float = 1
    gpus: int = 0
    gpu_memory_gb: int = 0
    node_types: tuple[str, ...] = ()
