"""Checks inside a job: the ranks of a layout look around, meet, and are judged by what they wrote."""

import json
import re
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from millrace.cluster import Cluster, NodeType
from millrace.doctor.checks import Check, Result, table, write
from millrace.doctor.worker import Request
from millrace.errors import UserError
from millrace.files import write_json
from millrace.launch.launcher import run_workers, surroundings_of
from millrace.layout import Layout


class FailedError(UserError):
    """A layout cannot be trained here."""


REQUEST = "request.json"
RULE = "preflight_layout"
"""Rule whose jobs these checks run as, for what they ask of the cluster."""
_LARGEST_SKEW_S, _LARGE_SKEW_S = 5.0, 1.0
# A GPU keeps some of its memory for itself, and its makers count in powers of ten.
_SHARE_OF_MEMORY = 0.9

Facts = dict[int, dict[str, Any]]
"""What each rank wrote, see `millrace.doctor.worker.look`."""


def prepare(directory: Path, patience_s: float = 120.0) -> Path:
    """Make a folder that the ranks of a job will look for; remove it after `run`."""
    directory.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".preflight_", dir=directory))
    token = secrets.token_hex(8)
    (folder / token).write_text(token)
    write_json(folder / REQUEST, asdict(Request(token, patience_s)))
    return folder


def run(folder: Path, layout: Layout, cluster: Cluster | None, cpus: int) -> list[Check]:
    """Start the ranks of a layout in this job, or on this machine, and judge what they find.

    Parameters
    ----------
    folder : Path
        Made by `prepare`, possibly on another machine.
    layout : Layout
    cluster : Cluster or None
        Facts to compare with; None: no cluster.
    cpus : int
        CPUs of each node.

    Raises
    ------
    ConfigError
        This job has not as many nodes as the layout.
    """
    around = surroundings_of(cluster)
    node_type = None if cluster is None else cluster.place(layout, RULE).node_type
    code = run_workers("millrace.doctor.worker", folder / REQUEST, layout, cpus, around)
    facts = {
        int(path.stem.removeprefix("rank_")): json.loads(path.read_text())
        for path in sorted(folder.glob("rank_*.json"))
    }
    checks = judge(layout, facts, node_type)
    together = folder / "together.json"
    if together.is_file():
        logs = [path.read_text(errors="replace") for path in sorted(folder.glob("nccl_*.log"))]
        infiniband = "NCCL_IB_HCA" in around.environment
        found = json.loads(together.read_text())
        return checks + judge_together(layout, found, logs, infiniband)
    return [
        *checks,
        Check.failed(
            "all-reduce",
            f"the ranks did not get that far (exit code {code})",
            "Mend what failed above first; else the log of this job tells what the ranks met.",
        ),
    ]


def check_layout(layout: Layout, cluster: Cluster | None, output: Path, cpus: int) -> None:
    """Check a layout in this job, print what is found and write it to a file.

    Raises
    ------
    FailedError
        A check failed; the message names it, and there is no file.
    """
    folder = prepare(output.parent)
    try:
        checks = run(folder, layout, cluster, cpus)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    Console(width=160, highlight=False).print(table(checks, str(layout)))
    failed = [check for check in checks if check.result is Result.FAILED]
    if failed:
        first = failed[0]
        more = f"; {len(failed) - 1} more above" if len(failed) > 1 else ""
        raise FailedError(f"layout {layout}: {first.name}: {first.detail}{more}. {first.remedy}")
    write(output, {str(layout): checks})


def judge(layout: Layout, facts: Facts, node_type: NodeType | None) -> list[Check]:
    """Judge what each rank saw by itself."""
    checks = [_ranks(layout, facts)]
    if facts:
        checks += [_nodes(layout, facts), *_gpus(layout, facts, node_type), _folder(facts)]
        checks += [_names(facts), _interfaces(facts)]
    return checks


def judge_together(
    layout: Layout, together: dict[str, Any], logs: Sequence[str], infiniband: bool
) -> list[Check]:
    """Judge what the ranks found out together, and what NCCL wrote into its logs.

    ``infiniband`` says that the facts of the cluster name an adapter.
    """
    if layout.world_size == 1:
        return [Check.not_applicable("all-reduce", "a single rank has nobody to talk to")]
    return [
        _all_reduce(together),
        _network(together["backend"], logs, infiniband),
        _clocks(layout, together["clock_skew_s"]),
        _claim(together["winners"]),
    ]


def _ranks(layout: Layout, facts: Facts) -> Check:
    missing = sorted(set(range(layout.world_size)) - set(facts))
    if missing:
        return Check.failed(
            "ranks",
            f"{len(missing)} of {layout.world_size} left no file here: {_listed(missing)}",
            "See the log of this job: either Python does not start on these nodes, or they do not see this "
            "folder.",
        )
    versions = {(f["python"], f["torch"]) for f in facts.values()}
    python, torch = next(iter(versions))
    if len(versions) > 1:
        return Check.failed(
            "ranks",
            f"they run different Pythons or torch: {sorted(versions)}",
            "Start from one environment on a shared file system.",
        )
    return Check.ok("ranks", f"{layout.world_size} started {python}, torch {torch}")


def _nodes(layout: Layout, facts: Facts) -> Check:
    nodes: dict[str, dict[str, Any]] = {f["node"]: f for f in facts.values()}
    said = "; ".join(
        f"{name}: {f['cpus']} CPUs, {f['memory_bytes'] / 2**30:.0f} GiB"
        for name, f in sorted(nodes.items())
    )
    ranks = Counter(f["node"] for f in facts.values())
    complete = len(facts) == layout.world_size
    if complete and set(ranks.values()) != {layout.gpus_per_node}:
        spread = ", ".join(f"{count} on {node}" for node, count in sorted(ranks.items()))
        return Check.failed(
            "nodes",
            f"ranks of {layout} are {spread}, expected {layout.gpus_per_node} on each of {layout.nodes}",
            "Ask for whole nodes (`tasks`, `nodes`; PBS: `place=scatter`), see profiles/README.md.",
        )
    few = sorted(name for name, f in nodes.items() if f["cpus"] < layout.gpus_per_node)
    if few:
        return Check.warning(
            "nodes",
            f"{said}: fewer CPUs than ranks on {_listed(few)}",
            "Raise `cores` for these jobs in cluster.yaml.",
        )
    return Check.ok("nodes", said)


def _gpus(layout: Layout, facts: Facts, node_type: NodeType | None) -> list[Check]:
    name = "GPUs"
    counts = {f["node"]: f["gpus"] for f in facts.values()}
    if not any(counts.values()):
        if node_type is None:
            return [Check.not_applicable(name, "no GPU here: CPU processes stand in for them")]
        return [
            Check.failed(
                name,
                "PyTorch sees no GPU on any node",
                "See that the job asks for GPUs (`gpus` of the node type), and that torch is a CUDA build "
                "that the nodes' driver can run (`nvidia-smi` on a node, `torch.version.cuda`).",
            )
        ]
    few = sorted(node for node, count in counts.items() if count < layout.gpus_per_node)
    if few:
        return [
            Check.failed(
                name,
                f"{layout} needs {layout.gpus_per_node} a node, but {_listed(few)} shows "
                f"{counts[few[0]]}",
                "See `gpus` of the node type in cluster.yaml and CUDA_VISIBLE_DEVICES in the job.",
            )
        ]
    broken = {f"{f['node']}: {f['gpu_problem']}" for f in facts.values() if f["gpu_problem"]}
    if broken:
        return [
            Check.failed(
                name,
                f"one does not compute: {'; '.join(sorted(broken))}",
                "Report the node to the cluster's support, or use a torch for the nodes' driver.",
            )
        ]
    uuids = {(f["node"], f["gpu_uuid"]) for f in facts.values()}
    if len(uuids) < len(facts):
        return [
            Check.failed(
                name,
                f"{len(facts)} ranks share {len(uuids)} GPUs",
                "Unset CUDA_VISIBLE_DEVICES in the job's environment.",
            )
        ]
    return _gpu_kind(facts, node_type)


def _gpu_kind(facts: Facts, node_type: NodeType | None) -> list[Check]:
    models = sorted({f["gpu_model"] for f in facts.values()})
    smallest = min(f["gpu_bytes"] for f in facts.values())
    cuda = next(iter(facts.values()))["cuda"]
    said = (
        f"{len(facts)} x {' and '.join(models)}, {smallest / 1e9:.0f} GB, CUDA {cuda}: they compute"
    )
    if node_type is None:
        return [Check.ok("GPUs", said)]
    edit = f"Edit node type {node_type.name} in cluster.yaml."
    # Sites write A100-80 where the driver says NVIDIA A100-SXM4-80GB; memory is compared below.
    family = re.split(r"[-_ ]", node_type.gpu_model)[0].lower()
    wrong = [model for model in models if family not in model.lower()]
    if wrong:
        return [
            Check.failed("GPUs", f"cluster.yaml says {node_type.gpu_model}, found {wrong[0]}", edit)
        ]
    if smallest < _SHARE_OF_MEMORY * node_type.gpu_memory_gb * 1e9:
        return [
            Check.failed(
                "GPUs",
                f"cluster.yaml says {node_type.gpu_memory_gb} GB each, found {smallest / 1e9:.0f} GB "
                f"({models[0]})",
                edit,
            )
        ]
    return [Check.ok("GPUs", said)]


def _folder(facts: Facts) -> Check:
    blind = sorted({f["node"] for f in facts.values() if not f["sees_folder"]})
    if blind:
        return Check.failed(
            "shared folder",
            f"{_listed(blind)} did not see a file that was written before the job started",
            "Move the project to a file system that all nodes share.",
        )
    lost = sorted({f["node"] for f in facts.values() if f.get("missing_ranks")})
    if lost:
        return Check.failed(
            "shared folder",
            f"{_listed(lost)} did not see the files of other nodes within "
            f"{max(f['waited_s'] for f in facts.values()):.0f} s",
            "Move the project to a file system that all nodes share.",
        )
    waited = max(f.get("waited_s", 0.0) for f in facts.values())
    return Check.ok("shared folder", f"all ranks saw each other's files within {waited:.1f} s")


def _names(facts: Facts) -> Check:
    hosts = {f["host"] for f in facts.values()}
    unknown = sorted({host for f in facts.values() for host in f.get("unknown_hosts", ())})
    if unknown:
        return Check.failed(
            "host names",
            f"{_listed(unknown)} cannot be resolved from all nodes",
            "Ask the cluster's support: torchrun meets at the name of the first node.",
        )
    return Check.ok("host names", f"{_listed(sorted(hosts))}: known everywhere")


def _interfaces(facts: Facts) -> Check:
    """The interface that NCCL is told to use must be there."""
    name = "network interface"
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        for f in facts.values():
            wanted = f["environment"].get(variable, "")
            if wanted and not _present(wanted, f["interfaces"]):
                return Check.failed(
                    name,
                    f"{variable}={wanted}, but {f['node']} has {', '.join(f['interfaces'])}",
                    "Edit `environment` in cluster.yaml.",
                )
    told = next(iter(facts.values()))["environment"]
    chosen = {key: value for key, value in told.items() if key.startswith(("NCCL_", "GLOO_"))}
    said = ", ".join(f"{key}={value}" for key, value in chosen.items())
    return Check.ok(name, said or "the library chooses")


def _present(wanted: str, interfaces: Sequence[str]) -> bool:
    """Whether an interface matches a list as NCCL reads it: prefixes, ``=exact``, ``^not``."""
    if wanted.startswith("^"):
        return True
    exact, names = wanted.startswith("="), wanted.lstrip("=").split(",")
    return any(i == name if exact else i.startswith(name) for i in interfaces for name in names)


def _all_reduce(together: dict[str, Any]) -> Check:
    name = "all-reduce"
    rows = together["all_reduce"]
    said = ", ".join(f"{r['megabytes']} MB {r['gb_per_s']:.2f} GB/s" for r in rows)
    wrong = [f"{r['megabytes']} MB" for r in rows if not r["correct"]]
    if wrong:
        return Check.failed(
            name,
            f"the sum over all ranks is wrong for {', '.join(wrong)} ({said})",
            "Train nothing here, and report these nodes to the cluster's support.",
        )
    return Check.ok(name, f"{together['backend']}, sums are right, bus bandwidth {said}")


def _network(backend: str, logs: Sequence[str], infiniband: bool) -> Check:
    name = "network"
    if backend != "nccl":
        return Check.not_applicable(name, f"{backend} between CPU processes")
    used = sorted({m[1] for log in logs for m in re.finditer(r"Using network (\S+)", log)})
    devices = sorted({m[1] for log in logs for m in re.finditer(r"NET/\w+ : Using (.+)", log)})
    said = f"NCCL uses {', '.join(used) or 'what it does not name'}: {'; '.join(devices)}"
    if infiniband and used and "IB" not in used:
        return Check.warning(
            name,
            f"{said}, although NCCL_IB_HCA names InfiniBand",
            "See `environment` in cluster.yaml and `ibstat` on a node: training over nodes will crawl.",
        )
    return Check.ok(name, said)


def _clocks(layout: Layout, skew_s: float) -> Check:
    said = f"they differ by {skew_s:.3f} s at most"
    if layout.nodes == 1:
        return Check.not_applicable("clocks", "one node, one clock")
    if skew_s > _LARGEST_SKEW_S:
        return Check.failed(
            "clocks",
            said,
            "Ask the cluster's support to set them: deadlines and locks compare times of different nodes.",
        )
    if skew_s > _LARGE_SKEW_S:
        return Check.warning("clocks", said, "Tell the cluster's support; it works up to 5 s.")
    return Check.ok("clocks", said)


def _claim(winners: int) -> Check:
    if winners != 1:
        return Check.failed(
            "exclusive mkdir",
            f"{winners} ranks made the same directory at once",
            "Put the project on another file system, and use no race of layouts on this one.",
        )
    return Check.ok("exclusive mkdir", "one of all ranks gets the name")


def _listed(things: Sequence[object]) -> str:
    shown = ", ".join(str(thing) for thing in things[:4])
    return shown if len(things) <= 4 else f"{shown} and {len(things) - 4} more"
