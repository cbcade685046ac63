"""Checks of SLURM on a login node: nothing is submitted."""

import getpass
import math
import re
from collections.abc import Sequence

from millrace.cluster import Cluster, NodeType
from millrace.cluster.placement import Placement
from millrace.doctor.checks import Check, any_failed, ask, facts_of
from millrace.doctor.scheduler import (
    TRY_AGAIN,
    Node,
    check_commands,
    check_placement,
    compare_nodes,
    missing_account,
)
from millrace.layout import Layout
from millrace.schedulers.requests import sbatch_arguments
from millrace.schedulers.slurm import duration

_COMMANDS = ("sbatch", "squeue", "scancel", "sinfo", "scontrol", "srun")
_UNUSABLE = ("down", "drain", "drng", "fail", "maint", "boot", "inval", "unk")


def check_slurm(cluster: Cluster, layouts: Sequence[Layout | None]) -> list[Check]:
    """Check commands, account, partitions, nodes, and the request of each layout."""
    commands = check_commands("SLURM", _COMMANDS, "load its SLURM module (`module load slurm`)")
    checks = [commands, check_answer()]
    if any_failed(checks):
        return checks
    checks.append(check_account(cluster))
    enabled = [kind for kind in cluster.node_types if kind.enabled]
    for partition in sorted({kind.partition for kind in enabled if kind.partition}):
        kinds = [kind for kind in enabled if kind.partition == partition]
        checks.append(check_partition(cluster, partition, kinds))
    nodes = read_nodes()
    checks += [check_nodes(cluster, kind, nodes) for kind in enabled]
    return [*checks, *(check_request(cluster, layout) for layout in layouts)]


def check_answer() -> Check:
    """Check that the controller answers."""
    answer = ask("scontrol", "ping")
    # A backup controller may be down while the primary one works.
    if answer.code == 0 and re.search(r"\bUP\b", answer.out):
        return Check.ok("SLURM answers", answer.out.splitlines()[0].strip())
    return Check.failed("SLURM answers", answer.last_line, TRY_AGAIN)


def check_account(cluster: Cluster) -> Check:
    """Check that accounting knows the account for this user, with the QOS of the facts."""
    if missing := missing_account(cluster):
        return missing
    name, edit, user = "account", f"edit {facts_of(cluster)}", getpass.getuser()
    answer = ask(
        "sacctmgr", "-n", "-P", "show", "assoc", f"user={user}", "format=account,partition,qos"
    )
    if answer.code != 0 or not answer.rows:
        reason = answer.last_line if answer.code else f"accounting lists nothing for {user}"
        return Check.skipped(name, f"{cluster.account or 'the default one'}: {reason}")
    rows = [row for row in answer.rows if not cluster.account or row[0] == cluster.account]
    if not rows:
        known = ", ".join(sorted({row[0] for row in answer.rows}))
        detail = f"{user} has no account {cluster.account!r}, but {known}"
        return Check.failed(name, detail, f"Set MILLRACE_ACCOUNT to one of these, or {edit}.")
    account = cluster.account or rows[0][0]
    wanted = {kind.qos or cluster.qos for kind in cluster.node_types if kind.enabled} - {""}
    granted = {qos for row in rows for qos in row[2].split(",")}
    if lacking := ", ".join(sorted(wanted - granted)):
        remedy = f"Ask for it, or {edit}, if a layout that you want needs it."
        return Check.warning(name, f"{account}, but QOS {lacking} not granted", remedy)
    return Check.ok(name, f"{account}, QOS {', '.join(sorted(granted))}")


def check_partition(cluster: Cluster, partition: str, kinds: Sequence[NodeType]) -> Check:
    """Check that the partition exists and is up, and has the features and the walltime of the facts."""
    name, file = f"partition {partition}", facts_of(cluster)
    answer = ask("sinfo", "-h", "-p", partition, "-o", "%R|%a|%l|%D|%f")
    if answer.code != 0:
        return Check.skipped(name, answer.last_line)
    if not answer.rows:
        remedy = f"Edit {file}: `sinfo -s` lists the partitions."
        return Check.failed(name, "there is no such partition, or it is hidden from you", remedy)
    if all(row[1] != "up" for row in answer.rows):
        remedy = "Wait until it is back, see the cluster's status page."
        return Check.failed(name, f"it is {answer.rows[0][1]}", remedy)
    features = {feature for row in answer.rows for feature in row[4].split(",")}
    for kind in kinds:
        if absent := ", ".join(sorted(_features(kind.constraint) - features)):
            detail = f"no node of it has the feature {absent} of node type {kind.name}; there are "
            detail += ", ".join(sorted(features))
            return Check.failed(name, detail, f"Edit `constraint` in {file}.")
    limit = max(hours(row[2]) for row in answer.rows)
    longest = max(kind.max_hours for kind in kinds)
    if longest > limit:
        detail = f"its limit is {limit:g} h, and cluster.yaml says max_hours {longest:g}"
        return Check.failed(name, detail, f"Lower `max_hours` in {file} to {limit:g}.")
    nodes = sum(int(row[3]) for row in answer.rows)
    return Check.ok(name, f"up, {nodes} node(s), limit {answer.rows[0][2]}")


def read_nodes() -> list[Node] | str:
    """Return all nodes, once for each of their partitions; a string says why they are not known."""
    answer = ask("sinfo", "-h", "-N", "-o", "%N|%P|%c|%m|%G|%f|%t")
    if answer.code != 0:
        return answer.last_line
    rows = [row for row in answer.rows if len(row) == 7]
    return [
        Node(
            name,
            gpus_of(gres),
            int(cores),
            int(memory.rstrip("+")),
            not state.lower().startswith(_UNUSABLE) and "*" not in state,
            partition.rstrip("*"),
            frozenset(features.split(",")),
        )
        for name, partition, cores, memory, gres, features, state in rows
    ]


def check_nodes(cluster: Cluster, kind: NodeType, nodes: list[Node] | str) -> Check:
    """Compare the facts of a node type with the nodes that it describes."""
    name, wanted = f"node type {kind.name}", _features(kind.constraint)
    if isinstance(nodes, str):
        return Check.skipped(name, nodes)
    of_partition = [node for node in nodes if node.partition == kind.partition]
    if found := [node for node in of_partition if wanted <= node.features]:
        return compare_nodes(cluster, kind, found)
    detail = f"no node of partition {kind.partition} fits it"
    return Check.failed(name, detail, f"Edit {facts_of(cluster)}: `sinfo -N -l` lists the nodes.")


def check_request(cluster: Cluster, layout: Layout | None) -> Check:
    """Have SLURM check the request of a layout without submitting it; None: rules without a layout."""

    def judge(name: str, placement: Placement) -> Check:
        options = sbatch_arguments(placement.resources(), "millrace-doctor", "/dev/null")
        answer = ask("sbatch", "--test-only", *options, "--wrap", "true")
        request = " ".join(o for o in options if not re.match("--(job-name|output)", o))
        node_type, limit = placement.node_type, _limit(placement.node_type.partition)
        if answer.code == 0 and placement.minutes > 60 * limit:
            # SLURM may accept such a job and let it wait for ever.
            detail = f"{placement.minutes / 60:g} h requested, the partition's limit is {limit:g} h"
            remedy = f"Lower `max_hours` of node type {node_type.name} in {facts_of(cluster)}."
            return Check.failed(name, f"{detail} ({request})", remedy)
        if answer.code == 0:
            start = re.search(r"to start at (\S+)", answer.err + answer.out)
            when = start[1].replace("T", " ") if start else ""
            return Check.ok(name, f"would start {when} ({request})")
        if answer.code in (124, 127):
            return Check.skipped(name, answer.last_line)
        remedy = _remedy(answer.last_line, cluster)
        return Check.failed(name, f"{answer.last_line} ({request})", remedy)

    return check_placement(cluster, layout, judge)


def _limit(partition: str) -> float:
    """Longest job of a partition in hours; infinity if it is not known."""
    answer = ask("sinfo", "-h", "-p", partition, "-o", "%l") if partition else None
    rows = answer.rows if answer and answer.code == 0 else []
    return max((hours(row[0]) for row in rows), default=math.inf)


def _remedy(message: str, cluster: Cluster) -> str:
    file = facts_of(cluster)
    causes = {
        "account": f"Set MILLRACE_ACCOUNT, or `account:` in {file}, to one of `sacctmgr show assoc`.",
        "qos": f"Edit `qos` in {file} to one that your account is granted.",
        "partition": f"Edit `partition` in {file}: `sinfo -s` lists them.",
        "node configuration": f"Edit the node type's GPUs, cores, memory and constraint in {file}.",
        "time limit": f"Lower `max_hours` in {file}.",
        "tasks": f"Edit {file}: the request contradicts itself on this SLURM.",
    }
    found = (remedy for word, remedy in causes.items() if word in message.lower())
    return next(found, f"Edit {file} so that SLURM accepts the request.")


def gpus_of(gres: str) -> int:
    """Return the number of GPUs in a ``GRES`` such as ``gpu:a100:2(S:0-1),gpu:v100:1,nvme:1``."""
    total = 0
    for entry in re.sub(r"\([^)]*\)", "", gres).split(","):
        words = entry.split(":")
        if words[0] == "gpu":
            total += int(words[-1]) if len(words) > 1 and words[-1].isdigit() else 1
    return total


def hours(limit: str) -> float:
    """Return the hours of a limit ``[days-][hours:]minutes:seconds``; infinity for any other text."""
    seconds = duration(limit)
    return math.inf if seconds is None else seconds / 3600


def _features(constraint: str) -> set[str]:
    """Features that a constraint requires; none if it has alternatives, which are not checked."""
    if not constraint or re.search(r"[|\[(!*]", constraint):
        return set()
    return set(constraint.split("&"))
