"""Checks on a login node that are the same for SLURM and PBS."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from millrace.cluster import Cluster, NodeType
from millrace.cluster.placement import MB_PER_GB, Placement
from millrace.doctor.checks import Check, facts_of
from millrace.errors import UserError
from millrace.layout import Layout

TRY_AGAIN = "Wait until the scheduler is back (see the cluster's status page) and try again."


@dataclass(frozen=True)
class Node:
    """A node as the scheduler describes it."""

    name: str
    gpus: int
    cores: int
    memory_mb: int
    usable: bool
    """Whether jobs can run on it now or soon."""
    partition: str = ""
    features: frozenset[str] = frozenset()
    gpu_model: str = ""
    host: str = ""
    """The machine, if a node may be a part of one (PBS)."""


def check_commands(scheduler: str, commands: Sequence[str], where: str) -> Check:
    """Check that the commands are found; ``where`` says how to find them otherwise."""
    name = f"{scheduler} commands"
    if missing := [command for command in commands if shutil.which(command) is None]:
        remedy = f"Log in to a login node of the cluster, or {where}."
        return Check.failed(name, f"not on PATH: {', '.join(missing)}", remedy)
    return Check.ok(name, ", ".join(commands))


def missing_account(cluster: Cluster) -> Check | None:
    """Return a failed check if the cluster requires an account and none is given."""
    if not cluster.account_required or cluster.account:
        return None
    return Check.failed(
        "account",
        f"{cluster.name} takes no job without an account, and none is named",
        f"Set MILLRACE_ACCOUNT, or `account:` in {facts_of(cluster)}.",
    )


def compare_nodes(cluster: Cluster, kind: NodeType, nodes: Sequence[Node]) -> Check:
    """Compare the facts of a node type with the nodes that it describes, of which there is at least one."""
    name, file = f"node type {kind.name}", facts_of(cluster)
    # The system uses a part of the memory, which no job requests.
    memory = int(kind.memory_gb * MB_PER_GB * cluster.usable_memory)
    wanted = f"{kind.gpus} GPUs, {kind.cores} cores, {memory} MB"
    able = [
        node
        for node in nodes
        if node.gpus >= kind.gpus and node.cores >= kind.cores and node.memory_mb >= memory
    ]
    if not able:
        best = max(nodes, key=lambda node: (node.gpus, node.cores, node.memory_mb))
        found = f"{best.gpus} GPUs, {best.cores} cores, {best.memory_mb} MB ({best.name})"
        detail = f"{file} says {wanted}, but the best node has {found}"
        return Check.failed(name, detail, f"Edit {file}.")
    usable = sum(node.usable for node in able)
    found = f"{len(able)} node(s) with {wanted} or more"
    if not usable:
        remedy = "Wait, or choose a layout for another node type."
        return Check.warning(name, f"{found}, none of them usable now", remedy)
    if len(able) < kind.count:
        remedy = f"Lower `count` in {file}, or ask what happened to the others."
        return Check.warning(name, f"{found}, cluster.yaml says {kind.count}", remedy)
    return Check.ok(name, f"{found}, {usable} of them usable now")


def check_placement(
    cluster: Cluster, layout: Layout | None, judge: Callable[[str, Placement], Check]
) -> Check:
    """Check that a layout fits, by ``judge`` with the name of the check; None: rules without a layout."""
    name = f"request of {layout or 'CPU rules'}"
    try:
        placement = cluster.place(layout, "train_segment" if layout else "preprocess")
    except UserError as error:
        remedy = f"Choose another layout, or edit {facts_of(cluster)}."
        return Check.failed(name, str(error), remedy)
    return judge(name, placement)
