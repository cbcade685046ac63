"""Checks of PBS Pro on a login node: nothing is submitted."""

import json
import re
import shutil
from collections.abc import Sequence
from typing import Any

from millrace.cluster import Cluster, NodeType
from millrace.cluster.nodes import MB_PER_GB
from millrace.cluster.requests import qsub_arguments
from millrace.doctor.checks import Check, any_failed, ask, facts_of
from millrace.errors import UserError
from millrace.layout import Layout

_COMMANDS = ("qsub", "qstat", "qdel", "pbsnodes")
_UNUSABLE = ("down", "offline", "unknown", "stale")
_KB = {"kb": 1, "mb": 1024, "gb": 1024**2, "tb": 1024**3, "b": 1 / 1024}


def check_pbs(cluster: Cluster, layouts: Sequence[Layout | None]) -> list[Check]:
    """Check commands, account, queues and nodes, and that each layout fits somewhere."""
    checks = [check_commands(), check_answer()]
    if any_failed(checks):
        return checks
    checks.append(check_account(cluster))
    known = [kind for kind in cluster.node_types if kind.enabled]
    queues = sorted({kind.partition for kind in known if kind.partition})
    checks += [check_queue(cluster, queue) for queue in queues]
    nodes = read_nodes()
    checks += [check_nodes(cluster, kind, nodes) for kind in known]
    return [*checks, *(check_request(cluster, layout) for layout in layouts)]


def check_commands() -> Check:
    """The commands that the workflow calls."""
    missing = [command for command in _COMMANDS if shutil.which(command) is None]
    if missing:
        return Check.failed(
            "PBS commands",
            f"not on PATH: {', '.join(missing)}",
            "Log in to a login node of the cluster, or put PBS on PATH (often /opt/pbs/bin).",
        )
    return Check.ok("PBS commands", ", ".join(_COMMANDS))


def check_answer() -> Check:
    """Whether the server answers."""
    answer = ask("qstat", "-B")
    if answer.code == 0:
        lines = answer.out.strip().splitlines()
        return Check.ok("PBS answers", " ".join(lines[-1].split()) if lines else "yes")
    return Check.failed(
        "PBS answers",
        answer.last_line,
        "Wait until the scheduler is back (see the cluster's status page) and try again.",
    )


def check_account(cluster: Cluster) -> Check:
    """An account is named where one is needed; PBS has no command that lists those of a user."""
    if cluster.account_required and not cluster.account:
        return Check.failed(
            "account",
            f"{cluster.name} takes no job without an account, and none is named",
            f"Set MILLRACE_ACCOUNT, or `account:` in {facts_of(cluster)}.",
        )
    if not cluster.account:
        return Check.not_applicable("account", "none is named, and none is required")
    return Check.skipped("account", f"{cluster.account}: PBS tells when a job is submitted")


def check_queue(cluster: Cluster, queue: str) -> Check:
    """The queue is there, takes jobs and runs them."""
    name = f"queue {queue}"
    answer = ask("qstat", "-Q", "-f", "-F", "json", queue)
    try:
        described = json.loads(answer.out)["Queue"][queue]
    except (ValueError, KeyError, TypeError):
        if "unknown queue" in (answer.err + answer.out).lower():
            return Check.failed(
                name,
                answer.last_line,
                f"Edit `partition` in {facts_of(cluster)}: `qstat -Q` lists the queues.",
            )
        return Check.skipped(name, answer.last_line)
    off = [key for key in ("enabled", "started") if described.get(key) != "True"]
    if off:
        return Check.failed(
            name,
            f"it is not {' and not '.join(off)}",
            "Wait until it is back, or choose another queue.",
        )
    limit = described.get("resources_max", {}).get("walltime", "none")
    return Check.ok(name, f"enabled and started, walltime limit {limit}")


def read_nodes() -> dict[str, Any] | str:
    """Nodes as ``pbsnodes`` describes them; a string: why they cannot be told."""
    answer = ask("pbsnodes", "-a", "-F", "json")
    try:
        nodes = json.loads(answer.out)["nodes"]
    except (ValueError, KeyError, TypeError):
        return answer.last_line
    return dict(nodes)


def check_nodes(cluster: Cluster, kind: NodeType, nodes: dict[str, Any] | str) -> Check:
    """Compare the facts of a node type with the nodes it stands for."""
    name, file = f"node type {kind.name}", facts_of(cluster)
    if isinstance(nodes, str):
        return Check.skipped(name, nodes)
    sizes = {node: _size(described) for node, described in nodes.items()}
    memory = int(kind.memory_gb * MB_PER_GB * cluster.usable_memory)
    model = kind.gpu_model.lower()
    found = {n: s for n, s in sizes.items() if not model or s[3].lower() == model}
    if not found:
        models = sorted({size[3] for size in sizes.values() if size[3]})
        return Check.failed(
            name,
            f"no node has gpu_model={kind.gpu_model}; there are {', '.join(models) or 'none'}",
            f"Edit `gpu_model` in {file}.",
        )
    able = [
        n for n, s in found.items() if s[0] >= kind.gpus and s[1] >= kind.cores and s[2] >= memory
    ]
    if not able:
        best = max(found, key=lambda n: found[n][:3])
        gpus, cores, had, _ = found[best]
        return Check.failed(
            name,
            f"{file} says {kind.gpus} GPUs, {kind.cores} cores, {memory} MB, but the best node has "
            f"{gpus} GPUs, {cores} cores, {had} MB ({best})",
            f"Edit {file}.",
        )
    usable = [n for n in able if not str(nodes[n].get("state", "")).startswith(_UNUSABLE)]
    said = f"{len(able)} node(s) with {kind.gpus} GPUs, {kind.cores} cores, {memory} MB or more"
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
    """Say what would be asked for; PBS judges a request only when it is submitted."""
    name = f"request of {layout or 'CPU rules'}"
    try:
        placement = cluster.place(layout, "train_segment" if layout else "preprocess")
    except UserError as error:
        return Check.failed(
            name, str(error), f"Choose another layout, or edit {facts_of(cluster)}."
        )
    options = " ".join(qsub_arguments(placement.resources(), "doctor", "/dev/null"))
    asked = re.search(r"select=\S+", options)
    return Check.ok(
        name,
        f"fits {placement.node_type.name} (-l {asked[0] if asked else ''}, {placement.minutes} min); "
        "PBS judges it when it is submitted",
    )


def _size(node: dict[str, Any]) -> tuple[int, int, int, str]:
    """GPUs, cores, memory in MB and GPU model of a node."""
    has = node.get("resources_available", {})
    memory = re.fullmatch(r"(\d+)([kmgt]?b)", str(has.get("mem", "")).lower())
    megabytes = int(int(memory[1]) * _KB[memory[2]] / 1024) if memory else 0
    return (
        int(has.get("ngpus", 0)),
        int(has.get("ncpus", 0)),
        megabytes,
        str(has.get("gpu_model", "")),
    )
