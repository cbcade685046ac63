"""Checks of SLURM on a login node: nothing is submitted."""

import getpass
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from millrace.cluster import Cluster, NodeType
from millrace.cluster.nodes import MB_PER_GB
from millrace.cluster.requests import sbatch_arguments
from millrace.doctor.checks import Check, any_failed, ask, facts_of
from millrace.errors import UserError
from millrace.layout import Layout

_COMMANDS = ("sbatch", "squeue", "scancel", "sinfo", "scontrol", "srun")
_UNUSABLE = ("down", "drain", "drng", "fail", "maint", "boot", "inval", "unk")


@dataclass(frozen=True)
class Node:
    """A node as ``sinfo`` describes it."""

    name: str
    partition: str
    cores: int
    memory_mb: int
    gpus: int
    features: frozenset[str]
    state: str

    @property
    def usable(self) -> bool:
        """Whether jobs can run on it now or soon."""
        return not self.state.lower().startswith(_UNUSABLE) and "*" not in self.state


def check_slurm(cluster: Cluster, layouts: Sequence[Layout | None]) -> list[Check]:
    """Check commands, account, partitions, nodes, and the request of each layout."""
    checks = [check_commands(), check_answer()]
    if any_failed(checks):
        return checks
    checks += [check_account(cluster)]
    known = [kind for kind in cluster.node_types if kind.enabled]
    for partition in sorted({kind.partition for kind in known if kind.partition}):
        kinds = [kind for kind in known if kind.partition == partition]
        checks.append(check_partition(cluster, partition, kinds))
    nodes = read_nodes()
    checks += [check_nodes(cluster, kind, nodes) for kind in known]
    return [*checks, *(check_request(cluster, layout) for layout in layouts)]


def check_commands() -> Check:
    """The commands that the workflow calls."""
    name = "SLURM commands"
    missing = [command for command in _COMMANDS if shutil.which(command) is None]
    if missing:
        return Check.failed(
            name,
            f"not on PATH: {', '.join(missing)}",
            "Log in to a login node of the cluster, or load its SLURM module (`module load slurm`).",
        )
    return Check.ok(name, ", ".join(_COMMANDS))


def check_answer() -> Check:
    """Whether the controller answers."""
    answer = ask("scontrol", "ping")
    # A backup controller may be down while the primary one works.
    if answer.code == 0 and re.search(r"\bUP\b", answer.out):
        return Check.ok("SLURM answers", answer.out.splitlines()[0].strip())
    return Check.failed(
        "SLURM answers",
        answer.last_line,
        "Wait until the scheduler is back (see the cluster's status page) and try again.",
    )


def check_account(cluster: Cluster) -> Check:
    """The account is named, and accounting knows it for this user with the QOS of the facts."""
    name = "account"
    edit = f"edit {facts_of(cluster)}"
    if cluster.account_required and not cluster.account:
        return Check.failed(
            name,
            f"{cluster.name} takes no job without an account, and none is named",
            f"Set MILLRACE_ACCOUNT, or `account:` in {facts_of(cluster)}.",
        )
    user = getpass.getuser()
    answer = ask(
        "sacctmgr", "-n", "-P", "show", "assoc", f"user={user}", "format=account,partition,qos"
    )
    if answer.code != 0 or not answer.rows:
        reason = answer.last_line if answer.code else f"accounting lists nothing for {user}"
        return Check.skipped(name, f"{cluster.account or 'the default one'}: {reason}")
    rows = (
        [row for row in answer.rows if row[0] == cluster.account]
        if cluster.account
        else answer.rows
    )
    if not rows:
        known = sorted({row[0] for row in answer.rows})
        return Check.failed(
            name,
            f"{user} has no account {cluster.account!r}, but {', '.join(known)}",
            f"Set MILLRACE_ACCOUNT to one of these, or {edit}.",
        )
    wanted = {kind.qos or cluster.qos for kind in cluster.node_types if kind.enabled} - {""}
    granted = {qos for row in rows for qos in row[2].split(",")}
    if wanted - granted:
        return Check.warning(
            name,
            f"{cluster.account or rows[0][0]}, but QOS {', '.join(sorted(wanted - granted))} not granted",
            f"Ask for it, or {edit}, if a layout that you want needs it.",
        )
    return Check.ok(name, f"{cluster.account or rows[0][0]}, QOS {', '.join(sorted(granted))}")


def check_partition(cluster: Cluster, partition: str, kinds: Sequence[NodeType]) -> Check:
    """The partition is there and up, has node(s) with the constraint, and admits the walltime."""
    name = f"partition {partition}"
    edit = f"Edit {facts_of(cluster)}: `sinfo -s` lists the partitions."
    answer = ask("sinfo", "-h", "-p", partition, "-o", "%R|%a|%l|%D|%f")
    if answer.code != 0:
        return Check.skipped(name, answer.last_line)
    if not answer.rows:
        return Check.failed(name, "there is no such partition, or it is hidden from you", edit)
    if all(row[1] != "up" for row in answer.rows):
        return Check.failed(
            name,
            f"it is {answer.rows[0][1]}",
            "Wait until it is back, see the cluster's status page.",
        )
    features = {feature for row in answer.rows for feature in row[4].split(",")}
    for kind in kinds:
        absent = {word for word in _features(kind.constraint) if word not in features}
        if absent:
            return Check.failed(
                name,
                f"no node of it has the feature {', '.join(sorted(absent))} of node type {kind.name}; "
                f"there are {', '.join(sorted(features))}",
                f"Edit `constraint` in {facts_of(cluster)}.",
            )
    limit = max(hours(row[2]) for row in answer.rows)
    longest = max(kind.max_hours for kind in kinds)
    if longest > limit:
        return Check.failed(
            name,
            f"its limit is {limit:g} h, and cluster.yaml says max_hours {longest:g}",
            f"Lower `max_hours` in {facts_of(cluster)} to {limit:g}.",
        )
    nodes = sum(int(row[3]) for row in answer.rows)
    return Check.ok(name, f"up, {nodes} node(s), limit {answer.rows[0][2]}")


def read_nodes() -> list[Node] | str:
    """All nodes, one entry for each partition they are in; a string: why they cannot be told."""
    answer = ask("sinfo", "-h", "-N", "-o", "%N|%P|%c|%m|%G|%f|%t")
    if answer.code != 0:
        return answer.last_line
    nodes = []
    for row in answer.rows:
        if len(row) == 7:
            name, partition, cores, memory, gres, features, state = row
            nodes.append(
                Node(
                    name,
                    partition.rstrip("*"),
                    int(cores),
                    int(memory.rstrip("+")),
                    gpus_of(gres),
                    frozenset(features.split(",")),
                    state,
                )
            )
    return nodes


def check_nodes(cluster: Cluster, kind: NodeType, nodes: list[Node] | str) -> Check:
    """Compare the facts of a node type with the nodes it stands for."""
    name = f"node type {kind.name}"
    file = facts_of(cluster)
    if isinstance(nodes, str):
        return Check.skipped(name, nodes)
    wanted = _features(kind.constraint)
    found = [n for n in nodes if n.partition == kind.partition and wanted <= n.features]
    # A part of the memory is the system's, and no job asks for it.
    memory = int(kind.memory_gb * MB_PER_GB * cluster.usable_memory)
    able = [n for n in found if n.gpus >= kind.gpus and n.cores >= kind.cores]
    able = [n for n in able if n.memory_mb >= memory]
    if not able:
        best = max(found, key=lambda n: (n.gpus, n.cores, n.memory_mb), default=None)
        if best is None:
            return Check.failed(
                name,
                f"no node of partition {kind.partition} fits it",
                f"Edit {file}: `sinfo -N -l` tells.",
            )
        return Check.failed(
            name,
            f"{file} says {_size(kind.gpus, kind.cores, memory)}, but the best node has "
            f"{_size(best.gpus, best.cores, best.memory_mb)} ({best.name})",
            f"Edit {file}.",
        )
    usable = [node for node in able if node.usable]
    said = f"{len(able)} node(s) with {_size(kind.gpus, kind.cores, memory)} or more"
    if not usable:
        return Check.warning(
            name,
            f"{said}, none of them usable now",
            "Wait, or choose a layout for another node type.",
        )
    if len(able) < kind.count:
        return Check.warning(
            name,
            f"{said}, cluster.yaml says {kind.count}",
            f"Lower `count` in {file}, or ask what happened to the others.",
        )
    return Check.ok(name, f"{said}, {len(usable)} of them usable now")


def check_request(cluster: Cluster, layout: Layout | None) -> Check:
    """Have SLURM judge the very request of a layout, without submitting it; None: a CPU rule."""
    name = f"request of {layout or 'CPU rules'}"
    try:
        placement = cluster.place(layout, "train_segment" if layout else "preprocess")
    except UserError as error:
        return Check.failed(
            name, str(error), f"Choose another layout, or edit {facts_of(cluster)}."
        )
    resources: Mapping[str, object] = placement.resources()
    options = sbatch_arguments(resources, "millrace-doctor", "/dev/null")
    answer = ask("sbatch", "--test-only", *options, "--wrap", "true")
    asked = " ".join(option for option in options if not re.match("--(job-name|output)", option))
    limit = _limit(placement.node_type.partition)
    if answer.code == 0 and placement.minutes > 60 * limit:
        # SLURM may take such a job and let it wait for ever.
        return Check.failed(
            name,
            f"{placement.minutes / 60:g} h asked for, the partition's limit is {limit:g} h ({asked})",
            f"Lower `max_hours` of node type {placement.node_type.name} in {facts_of(cluster)}.",
        )
    if answer.code == 0:
        start = re.search(r"to start at (\S+)", answer.err + answer.out)
        return Check.ok(
            name, f"would start {start[1].replace('T', ' ') if start else ''} ({asked})"
        )
    if answer.code in (124, 127):
        return Check.skipped(name, answer.last_line)
    return Check.failed(name, f"{answer.last_line} ({asked})", _remedy(answer.last_line, cluster))


def _limit(partition: str) -> float:
    """Longest job of a partition in hours; infinity where it cannot be told."""
    answer = ask("sinfo", "-h", "-p", partition, "-o", "%l") if partition else None
    rows = answer.rows if answer and answer.code == 0 else []
    return max((hours(row[0]) for row in rows), default=float("inf"))


def _remedy(said: str, cluster: Cluster) -> str:
    file = facts_of(cluster)
    causes = {
        "account": f"Set MILLRACE_ACCOUNT, or `account:` in {file}, to one of `sacctmgr show assoc`.",
        "qos": f"Edit `qos` in {file} to one that your account is granted.",
        "partition": f"Edit `partition` in {file}: `sinfo -s` lists them.",
        "node configuration": f"Edit the node type's GPUs, cores, memory and constraint in {file}.",
        "time limit": f"Lower `max_hours` in {file}.",
        "tasks": f"Edit {file}: the request contradicts itself on this SLURM.",
    }
    for word, remedy in causes.items():
        if word in said.lower():
            return remedy
    return f"Edit {file} so that SLURM takes the request."


def gpus_of(gres: str) -> int:
    """GPUs of a ``GRES`` such as ``gpu:a100:2(S:0-1),gpu:v100:1,nvme:1``."""
    total = 0
    for entry in re.sub(r"\([^)]*\)", "", gres).split(","):
        words = entry.split(":")
        if words[0] == "gpu":
            total += int(words[-1]) if len(words) > 1 and words[-1].isdigit() else 1
    return total


def hours(limit: str) -> float:
    """Hours of a limit ``[days-]hours:minutes:seconds``; no limit: infinity."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit.strip())
    if match is None:
        return float("inf")
    days, hour, minute, second = (int(group or 0) for group in match.groups())
    return 24 * days + hour + minute / 60 + second / 3600


def _features(constraint: str | None) -> set[str]:
    """Features that a constraint needs; those of an alternative cannot be told apart here."""
    if not constraint or re.search(r"[|\[(!*]", str(constraint)):
        return set()
    return set(str(constraint).split("&"))


def _size(gpus: int, cores: int, memory_mb: int) -> str:
    return f"{gpus} GPUs, {cores} cores, {memory_mb} MB"
