"""Facts of a cluster from its ``cluster.yaml``, and the placement of jobs there."""

import os
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from millrace.cluster.placement import MB_PER_GB, Needs, NodeType, Placement
from millrace.config import Settings, Text, nearest, option
from millrace.errors import ConfigError
from millrace.home import HOME
from millrace.input_files import is_there
from millrace.layout import Layout
from millrace.yaml_files import load_yaml

FILE = "cluster.yaml"
LAYOUTS = ("n1_gpu1", "n1_gpu2", "n2_gpu1", "n2_gpu2", "n1_gpu4", "n4_gpu1")
"""Layouts that documents and tests list."""

PROFILES = HOME / "profiles"
# Entries of `jobs` that apply to rules without and with GPUs.
_CLASSES = ("cpu", "gpu")


def find_profile(name: str) -> Path:
    """Return the folder of a profile: a path, or the name of one in profiles/ here or of the workflow.

    Raises `ConfigError`, with the nearest name, if there is none.
    """
    places = [Path("profiles") / name, Path(name), PROFILES / name]
    files = ("config.yaml", FILE)
    found = (path for path in places if any((path / file).is_file() for file in files))
    if path := next(found, None):
        return path
    folders = [PROFILES, *(path.parent for path in places)]
    known = {one.parent.name for folder in folders for one in folder.glob("*/config.yaml")}
    raise ConfigError(f"{name}: no such profile; {nearest(Path(name).name, known - {'default'})}")


class Cluster(Settings):
    """Facts of a cluster: the keys of its ``cluster.yaml``, and the folder of that file."""

    directory: Path
    """The profile's folder."""
    name: Text
    """Of the cluster, for messages."""
    scheduler: Literal["slurm", "pbs"]
    """What jobs are given to."""
    node_types: Annotated[tuple[NodeType, ...], Field(min_length=1)]
    """In order of preference."""
    jobs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Needs of jobs, keys of `Needs`, by the name of their rule or class."""
    account: str = ""
    """Empty: none. The variable ``MILLRACE_ACCOUNT`` takes precedence."""
    account_required: bool = False
    """Whether every job must name an account."""
    gpu_required: bool = False
    """Whether every job must request a GPU."""
    qos: str = ""
    """Quality of service; empty: none. The variable ``MILLRACE_QOS`` takes precedence."""
    qos_hours: dict[str, Annotated[float, Field(gt=0)]] = option(default_factory=dict, unit="h")
    """Longest job by quality of service."""
    max_nodes: int = option(0, ge=0)
    """Largest number of nodes of a job; 0: no limit."""
    usable_memory: float = option(0.95, gt=0, le=1)
    """Share of a node's memory that jobs may request; the system keeps the rest."""
    usable_gpu_memory: float = option(0.9, gt=0)
    """Share of a GPU's memory that a training may need; the rest is for the driver, the libraries and what
    fragmentation wastes."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables of the training processes."""
    modules: tuple[str, ...] = ()
    """Environment modules that are loaded before training."""

    @classmethod
    def read(cls, name: str | Path, *folders: Path) -> "Cluster":
        """Read the facts of a cluster.

        Parameters
        ----------
        name : str or Path
            A folder beside the other profiles; with a slash, the path of a folder.
        *folders : Path
            Where profiles are looked for, in this order, before those of the workflow itself.

        Raises
        ------
        ConfigError
            There is no such file, or something in it is wrong: the key and what was expected.
        """
        places = [*folders, PROFILES]
        directory = Path(name)
        if "/" not in str(name):
            there = (place / name for place in places if (place / name / FILE).is_file())
            directory = next(there, places[0] / name)
        file = directory / FILE
        if not is_there(file):
            known = {path.parent.name for place in places for path in place.glob(f"*/{FILE}")}
            raise ConfigError(f"no cluster in {file}; {nearest(directory.name, known)}")
        values = load_yaml(file)
        if not isinstance(values, dict):
            raise ConfigError(f"{file}: expected keys and values, got {type(values).__name__}")
        if isinstance(variables := values.get("environment"), dict):
            texts = {key: str(v) for key, v in variables.items() if isinstance(v, int | float)}
            values["environment"] = variables | texts
        for key in ("account", "qos"):
            values[key] = os.environ.get(f"MILLRACE_{key.upper()}") or str(values.get(key) or "")
        cluster = cls.parse({"directory": str(directory.resolve()), **values}, f"{file}:")
        cluster._check()
        return cluster

    @property
    def file(self) -> Path:
        """The file with the facts."""
        return self.directory / FILE

    def place(self, layout: Layout | None, rule: str, memory: int = 1) -> Placement:
        """Place a job on the first node type that it fits on.

        Parameters
        ----------
        layout : Layout or None
            None: a rule without a layout, which runs on one node.
        rule : str
        memory : int
            How many times the usual memory, up to that of the node.

        Raises
        ------
        ConfigError
            The job fits nowhere; the message lists the node types and the nearest layout that fits.
        """
        needs = self.needs(rule, layout is not None)
        nodes = layout.nodes if layout else 1
        gpus = layout.gpus_per_node if layout else needs.gpus or int(self.gpu_required)
        node_type = self._first_fit(nodes, gpus, needs)
        if node_type is None:
            raise ConfigError(self._refusal(layout, rule, needs))
        usable = self._memory_mb(node_type)
        whole = node_type.exclusive and gpus == node_type.gpus
        cores = gpus * min(needs.cores, node_type.cores_per_gpu) if gpus else needs.cores
        wanted_mb = int(needs.memory_gb * max(1, gpus) * memory * MB_PER_GB)
        qos = node_type.qos or self.qos
        limits = (node_type.max_hours, self.qos_hours.get(qos, 0))
        return Placement(
            scheduler=self.scheduler,
            node_type=node_type,
            nodes=nodes,
            gpus_per_node=gpus,
            cpus_per_node=cores,
            memory_mb=usable if whole else min(wanted_mb, usable),
            minutes=int(60 * min([needs.hours, *(hours for hours in limits if hours)])),
            account=self.account,
            qos=qos,
            exclusive=whole,
        )

    def needs(self, rule: str, layout: bool) -> Needs:
        """Return the needs of a rule: its entry of ``jobs`` overrides that of its class."""
        own = self.jobs.get(rule, {})
        kind = "gpu" if layout or own.get("gpus") else "cpu"
        values = {**self.jobs.get(kind, {}), **own}
        return Needs.parse(values, f"{self.file}: jobs.{rule}")

    def check_rules(self, rules: Iterable[str]) -> None:
        """Raise `ConfigError` if ``jobs`` names a rule that is not among these."""
        known = {*rules, *_CLASSES}
        for name in self.jobs:
            if name not in known:
                raise ConfigError(f"{self.file}: jobs: no rule {name!r}; {nearest(name, known)}")

    def check_profile(self) -> None:
        """Raise `ConfigError` if the ``config.yaml`` beside the facts names another folder as ``site``."""
        file = self.directory / "config.yaml"
        try:
            options = load_yaml(file)
        except ConfigError:
            return  # Snakemake will say what is wrong
        given = options.get("default-resources") if isinstance(options, dict) else None
        texts = [f"{key}={given[key]}" for key in given] if isinstance(given, dict) else given or []
        named = [str(text).partition("=")[2] for text in texts if str(text).startswith("site=")]
        site = named[-1].strip("'\"") if named else self.directory.name
        if Path(site).name != self.directory.name:
            raise ConfigError(
                f"{file}: default-resources: site is {site!r}, whose facts would be used; write "
                f"site='{self.directory.name}', the name of this folder"
            )

    def require_account(self) -> None:
        """Raise `ConfigError` if jobs need an account and none is set."""
        if self.account_required and not self.account:
            raise ConfigError(
                f"{self.name}: jobs need an account: set it with `export MILLRACE_ACCOUNT=<name>` or as "
                f"`account: <name>` in {self.file}"
            )

    def check_folder(self, folder: Path) -> None:
        """Raise `ConfigError` if jobs cannot be submitted from a folder, because of its name."""
        if self.scheduler == "slurm" and "%" in str(folder):
            raise ConfigError(
                f"{folder}: SLURM replaces what follows a % in the paths of its logs, and no job would "
                "start: rename the folder, or start from another one"
            )

    def _first_fit(self, nodes: int, gpus: int, needs: Needs) -> NodeType | None:
        if self.max_nodes and nodes > self.max_nodes:
            return None
        candidates = self._candidates(needs, gpus)
        return next((one for one in candidates if self._fits(one, nodes, gpus, needs)), None)

    def _candidates(self, needs: Needs, gpus: int) -> list[NodeType]:
        enabled = {one.name: one for one in self.node_types if one.enabled}
        wanted = [enabled[name] for name in needs.node_types or enabled if name in enabled]
        # Jobs without GPUs avoid nodes that have some.
        return wanted if gpus else sorted(wanted, key=lambda one: one.gpus > 0)

    def _fits(self, node_type: NodeType, nodes: int, gpus: int, needs: Needs) -> bool:
        enough = nodes <= (node_type.count or nodes) and gpus <= node_type.gpus
        if gpus:
            return enough and needs.gpu_memory_gb <= node_type.gpu_memory_gb
        memory_gb = self._memory_mb(node_type) / MB_PER_GB
        return enough and needs.cores <= node_type.cores and needs.memory_gb <= memory_gb

    def _memory_mb(self, node_type: NodeType) -> int:
        return int(node_type.memory_gb * MB_PER_GB * self.usable_memory)

    def _refusal(self, layout: Layout | None, rule: str, needs: Needs) -> str:
        gpus = layout.gpus_per_node if layout else needs.gpus
        types = ", ".join(str(one) for one in self._candidates(needs, gpus) if one.gpus or not gpus)
        if layout is None:
            return (
                f"{self.file}: jobs.{rule}: no node has {needs.cores} cores, {needs.memory_gb:g} GB and "
                f"{gpus} GPUs; there are {types}: ask for less"
            )
        if needs.gpu_memory_gb:
            types += f" (jobs.{rule} asks for {needs.gpu_memory_gb} GB per GPU)"
        if self.max_nodes:
            nodes = "one node" if self.max_nodes == 1 else f"at most {self.max_nodes} nodes"
            types += f" and runs jobs of {nodes} only"
        near = self._nearest_layout(layout, needs)
        return f"layout {layout} does not fit on {self.name}, which has {types}: " + (
            f"the nearest layout that fits is {near}" if near else "no layout fits"
        )

    def _nearest_layout(self, wanted: Layout, needs: Needs) -> Layout | None:
        """Layout that fits and whose number of GPUs, then of nodes, is nearest."""
        widest = max(one.gpus for one in self.node_types)
        pairs = product(range(1, wanted.world_size + 1), range(1, widest + 1))

        def distance(one: Layout) -> tuple[int, int]:
            return abs(one.world_size - wanted.world_size), abs(one.nodes - wanted.nodes)

        layouts = sorted((Layout(*pair) for pair in pairs), key=distance)
        fitting = (one for one in layouts if self._first_fit(one.nodes, one.gpus_per_node, needs))
        return next(fitting, None)

    def _check(self) -> None:
        """Check what concerns several keys."""
        names = [one.name for one in self.node_types]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"{self.file}: node_types: two are named {twice[0]!r}; rename one")
        if self.qos and self.qos not in self.qos_hours:
            raise ConfigError(
                f"{self.file}: no quality of service {self.qos!r} (`qos`, or MILLRACE_QOS); "
                f"{nearest(self.qos, self.qos_hours) if self.qos_hours else 'qos_hours lists none'}"
            )
        if "NCCL_IB_DISABLE" in self.environment:
            raise ConfigError(
                f"{self.file}: environment.NCCL_IB_DISABLE: turns the fast network off; remove it"
            )
        for rule, values in self.jobs.items():
            Needs.parse(values, f"{self.file}: jobs.{rule}")
            if unknown := [n for n in values.get("node_types", ()) if n not in names]:
                raise ConfigError(
                    f"{self.file}: jobs.{rule}.node_types: no node type {unknown[0]!r}; "
                    f"{nearest(unknown[0], names)}"
                )


def cluster_of_job(resources: Mapping[str, Any]) -> Cluster | None:
    """Return the cluster that a job of the workflow runs on; None: no cluster.

    Of the resources of the job, ``site`` is the absolute path of the profile.
    """
    site = resources.get("site")
    return Cluster.read(str(site)) if site else None
