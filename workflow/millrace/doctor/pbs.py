"""Checks of PBS Pro on a login node: nothing is submitted."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

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
from millrace.schedulers.requests import qsub_arguments

_COMMANDS = ("qsub", "qstat", "qdel", "pbsnodes")
_UNUSABLE = ("down", "offline", "unknown", "stale")
_KB = {"kb": 1, "mb": 1024, "gb": 1024**2, "tb": 1024**3, "b": 1 / 1024}


def check_pbs(cluster: Cluster, layouts: Sequence[Layout | None]) -> list[Check]:
    """Check commands, account, queues and nodes, and that each layout fits on a node type."""
    commands = check_commands("PBS", _COMMANDS, "put PBS on PATH (often /opt/pbs/bin)")
    checks = [commands, check_answer()]
    if any_failed(checks):
        return checks
    checks.append(check_history())
    checks.append(check_account(cluster))
    enabled = [kind for kind in cluster.node_types if kind.enabled]
    queues = sorted({kind.partition for kind in enabled if kind.partition})
    checks += [check_queue(cluster, queue) for queue in queues]
    nodes = read_nodes()
    checks += [check_nodes(cluster, kind, nodes) for kind in enabled]
    return [*checks, *(check_request(cluster, layout) for layout in layouts)]


def check_answer() -> Check:
    """Check that the server answers."""
    answer = ask("qstat", "-B")
    if answer.code:
        return Check.failed("PBS answers", answer.last_line, TRY_AGAIN)
    lines = answer.out.strip().splitlines()
    return Check.ok("PBS answers", " ".join(lines[-1].split()) if lines else "yes")


def check_history() -> Check:
    """Check that the server remembers jobs that have ended."""
    name, answer = "job history", ask("qstat", "-B", "-f")
    if answer.code:
        return Check.skipped(name, answer.last_line)
    if re.search(r"^\s*job_history_enable = True\s*$", answer.out, re.MULTILINE):
        return Check.ok(name, "job_history_enable = True")
    return Check.warning(
        name,
        "job_history_enable is off: PBS forgets a job when it ends, and does not tell why it failed",
        "Ask the administrators for `qmgr -c 'set server job_history_enable = True'`.",
    )


def check_account(cluster: Cluster) -> Check:
    """Check that an account is given if one is required; PBS has no command that lists those of a user."""
    if missing := missing_account(cluster):
        return missing
    if not cluster.account:
        return Check.not_applicable("account", "none is named, and none is required")
    return Check.skipped("account", f"{cluster.account}: PBS checks it when a job is submitted")


def check_queue(cluster: Cluster, queue: str) -> Check:
    """Check that the queue exists, accepts jobs and runs them."""
    name = f"queue {queue}"
    answer = ask("qstat", "-Q", "-f", "-F", "json", queue)
    try:
        described = json.loads(answer.out)["Queue"][queue]
    except (ValueError, KeyError, TypeError):
        if "unknown queue" in (answer.err + answer.out).lower():
            remedy = f"Edit `partition` in {facts_of(cluster)}: `qstat -Q` lists the queues."
            return Check.failed(name, answer.last_line, remedy)
        return Check.skipped(name, answer.last_line)
    if off := [key for key in ("enabled", "started") if described.get(key) != "True"]:
        remedy = "Wait until it is back, or choose another queue."
        return Check.failed(name, f"it is not {' and not '.join(off)}", remedy)
    limit = described.get("resources_max", {}).get("walltime", "none")
    return Check.ok(name, f"enabled and started, walltime limit {limit}")


def read_nodes() -> list[Node] | str:
    """Return the vnodes as ``pbsnodes`` describes them; a string says why they are not known."""
    # Without -v the vnodes of a host are added up, and what differs between them is told as "<various>".
    answer = ask("pbsnodes", "-a", "-v", "-F", "json")
    try:
        described = dict(json.loads(answer.out)["nodes"])
    except (ValueError, KeyError, TypeError):
        return answer.last_line
    return [_node(name, node) for name, node in described.items()]


def check_nodes(cluster: Cluster, kind: NodeType, nodes: list[Node] | str) -> Check:
    """Compare the facts of a node type with the nodes that it describes."""
    name, model = f"node type {kind.name}", kind.gpu_model.lower()
    if isinstance(nodes, str):
        return Check.skipped(name, nodes)
    if found := [node for node in nodes if not model or node.gpu_model.lower() == model]:
        check = compare_nodes(cluster, kind, found)
        # A job may take several vnodes of a host, such as its sockets.
        return compare_nodes(cluster, kind, _hosts(found)) if any_failed([check]) else check
    models = ", ".join(sorted({node.gpu_model for node in nodes} - {""})) or "none"
    detail = f"no node has gpu_model={kind.gpu_model}; there are {models}"
    return Check.failed(name, detail, f"Edit `gpu_model` in {facts_of(cluster)}.")


def check_request(cluster: Cluster, layout: Layout | None) -> Check:
    """Show what a layout would request; PBS checks a request only when it is submitted."""
    return check_placement(cluster, layout, _request)


def _request(name: str, placement: Placement) -> Check:
    options = " ".join(qsub_arguments(placement.resources(), "doctor", "/dev/null"))
    match = re.search(r"select=\S+", options)
    request = f"-l {match[0] if match else ''}, {placement.minutes} min"
    fits = f"fits {placement.node_type.name} ({request})"
    return Check.ok(name, f"{fits}; PBS checks it when it is submitted")


def _hosts(vnodes: Sequence[Node]) -> list[Node]:
    """Hosts that have these vnodes."""
    by_host: dict[str, list[Node]] = {}
    for one in vnodes:
        by_host.setdefault(one.host, []).append(one)
    return [
        replace(
            parts[0],
            name=host,
            gpus=sum(part.gpus for part in parts),
            cores=sum(part.cores for part in parts),
            memory_mb=sum(part.memory_mb for part in parts),
            usable=all(part.usable for part in parts),
        )
        for host, parts in by_host.items()
    ]


def _node(name: str, described: dict[str, Any]) -> Node:
    resources = described.get("resources_available", {})
    memory = re.fullmatch(r"(\d+)([kmgt]?b)", str(resources.get("mem", "")).lower())
    return Node(
        name,
        int(resources.get("ngpus", 0)),
        int(resources.get("ncpus", 0)),
        int(int(memory[1]) * _KB[memory[2]] / 1024) if memory else 0,
        not str(described.get("state", "")).startswith(_UNUSABLE),
        gpu_model=str(resources.get("gpu_model", "")),
        host=str(resources.get("host") or name),
    )
