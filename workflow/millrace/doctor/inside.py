"""Checks inside a job: ranks examine their nodes and the links between them; their reports are judged."""

import json
import re
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from millrace.cluster import Cluster, NodeType
from millrace.doctor.checks import Check, Result, table, write
from millrace.errors import UserError, listed
from millrace.files import write_json
from millrace.launch.launcher import run_workers, surroundings_of
from millrace.layout import Layout


class FailedError(UserError):
    """A layout cannot be trained here."""


@dataclass(frozen=True)
class Request:
    """Request to the workers, which is passed as a JSON file."""

    token: str
    """Name and content of a file beside the request, which was written before the job started."""
    patience_s: float = 120.0
    """How long to wait for files of other nodes, and for the process group."""


REQUEST = "request.json"
RULE = "preflight_layout"
"""Rule as whose jobs these checks run, which decides the resources that they request."""
_MAX_SKEW_S, _NOTABLE_SKEW_S = 5.0, 1.0
# A GPU reserves some of its memory, and manufacturers count in powers of ten.
_MIN_MEMORY_SHARE = 0.9

Reports = dict[int, dict[str, Any]]
"""The report of each rank, see `millrace.doctor.worker.look`."""


def prepare(directory: Path) -> Path:
    """Make a folder that the ranks of a job will look for; remove it after `run`."""
    directory.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".preflight_", dir=directory))
    token = secrets.token_hex(8)
    (folder / token).write_text(token)
    write_json(folder / REQUEST, asdict(Request(token)))
    return folder


def run(
    folder: Path,
    layout: Layout,
    cluster: Cluster | None,
    cpus: int,
    container: str | None = None,
) -> list[Check]:
    """Start the ranks of a layout in this job, or on this machine, and judge their reports.

    The folder was made by `prepare`, possibly on another machine; each node has ``cpus``. Reports are
    compared with the facts of ``cluster``, if there is one. For ``container`` see
    `millrace.launch.launcher.Surroundings`. Raises `ConfigError` if this job does not have the nodes of the
    layout.
    """
    around = surroundings_of(cluster, container)
    node_type = None if cluster is None else cluster.place(layout, RULE).node_type
    code = run_workers("millrace.doctor.worker", folder / REQUEST, layout, cpus, around)
    reports = {
        int(path.stem.removeprefix("rank_")): json.loads(path.read_text())
        for path in sorted(folder.glob("rank_*.json"))
    }
    checks = judge(layout, reports, node_type)
    if not (together := folder / "together.json").is_file():
        remedy = "Mend what failed above first; otherwise see the log of this job."
        detail = f"the ranks did not get that far (exit code {code})"
        return [*checks, Check.failed("all-reduce", detail, remedy)]
    logs = [path.read_text(errors="replace") for path in sorted(folder.glob("nccl_*.log"))]
    infiniband = "NCCL_IB_HCA" in around.environment
    return checks + judge_together(layout, json.loads(together.read_text()), logs, infiniband)


def check_layout(
    layout: Layout,
    cluster: Cluster | None,
    output: Path,
    cpus: int,
    container: str | None = None,
) -> None:
    """Check a layout in this job as `run` does, print the checks and write them to a file.

    Raises `FailedError`, which names the first check that failed, if any did; no file is written then.
    """
    folder = prepare(output.parent)
    try:
        checks = run(folder, layout, cluster, cpus, container)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    Console(width=160, highlight=False).print(table(checks, str(layout)))
    failed = [check for check in checks if check.result is Result.FAILED]
    if failed:
        first = failed[0]
        more = f"; {len(failed) - 1} more above" if len(failed) > 1 else ""
        raise FailedError(f"layout {layout}: {first.name}: {first.detail}{more}. {first.remedy}")
    write(output, {str(layout): checks})


def judge(layout: Layout, reports: Reports, node_type: NodeType | None) -> list[Check]:
    """Judge the report of each rank on its own node."""
    if not reports:
        return [_ranks(layout, reports)]
    checks = [_ranks(layout, reports), _nodes(layout, reports), _gpus(layout, reports, node_type)]
    return [*checks, _folder(reports), _host_names(reports), _interfaces(reports)]


def judge_together(
    layout: Layout, together: dict[str, Any], logs: Sequence[str], infiniband: bool
) -> list[Check]:
    """Judge the common measurements of the ranks, and the logs of NCCL.

    ``infiniband``: whether the facts of the cluster name an InfiniBand adapter.
    """
    if layout.world_size == 1:
        return [Check.not_applicable("all-reduce", "there is a single rank")]
    return [
        _all_reduce(together),
        _network(together["backend"], logs, infiniband),
        _clocks(layout, together["clock_skew_s"]),
        _exclusive_mkdir(together["winners"]),
    ]


def _ranks(layout: Layout, reports: Reports) -> Check:
    name = "ranks"
    if missing := sorted(set(range(layout.world_size)) - set(reports)):
        return Check.failed(
            name,
            f"{len(missing)} of {layout.world_size} left no file here: {listed(missing, 4)}",
            "See the log of this job: either Python does not start on these nodes, or they do not see this "
            "folder.",
        )
    versions = sorted({(one["python"], one["torch"]) for one in reports.values()})
    if len(versions) > 1:
        detail = f"they run different Pythons or torch: {versions}"
        return Check.failed(name, detail, "Start from one environment on a shared file system.")
    [(python, torch)] = versions
    return Check.ok(name, f"{layout.world_size} started {python}, torch {torch}")


def _nodes(layout: Layout, reports: Reports) -> Check:
    name = "nodes"
    nodes = {one["node"]: one for one in reports.values()}
    ranks = Counter(one["node"] for one in reports.values())
    complete = len(reports) == layout.world_size
    if complete and set(ranks.values()) != {layout.gpus_per_node}:
        spread = ", ".join(f"{count} on {node}" for node, count in sorted(ranks.items()))
        expected = f"expected {layout.gpus_per_node} on each of {layout.nodes}"
        remedy = (
            "Ask for whole nodes (`tasks`, `nodes`; PBS: `place=scatter`), see profiles/README.md."
        )
        return Check.failed(name, f"ranks of {layout} are {spread}, {expected}", remedy)
    found = "; ".join(
        f"{node}: {one['cpus']} CPUs, {one['memory_bytes'] / 2**30:.0f} GiB"
        for node, one in sorted(nodes.items())
    )
    if few := sorted(node for node, one in nodes.items() if one["cpus"] < layout.gpus_per_node):
        detail = f"{found}: fewer CPUs than ranks on {listed(few, 4)}"
        return Check.warning(name, detail, "Raise `cores` for these jobs in cluster.yaml.")
    return Check.ok(name, found)


def _gpus(layout: Layout, reports: Reports, node_type: NodeType | None) -> Check:
    name = "GPUs"
    counts = {one["node"]: one["gpus"] for one in reports.values()}
    if not any(counts.values()):
        if node_type is None:
            return Check.not_applicable(name, "no GPU here: CPU processes stand in for them")
        return Check.failed(
            name,
            "PyTorch sees no GPU on any node",
            "See that the job asks for GPUs (`gpus` of the node type), and that torch is a CUDA build "
            "that the nodes' driver can run (`nvidia-smi` on a node, `torch.version.cuda`); jobs in an "
            "image need `apptainer-args: --nv`.",
        )
    if few := sorted(node for node, count in counts.items() if count < layout.gpus_per_node):
        found = f"{listed(few, 4)} shows {counts[few[0]]}"
        detail = f"{layout} needs {layout.gpus_per_node} per node, but {found}"
        remedy = "See `gpus` of the node type in cluster.yaml and CUDA_VISIBLE_DEVICES in the job."
        return Check.failed(name, detail, remedy)
    problems = {f"{o['node']}: {o['gpu_problem']}" for o in reports.values() if o["gpu_problem"]}
    if problems:
        detail = f"one does not compute: {'; '.join(sorted(problems))}"
        remedy = "Report the node to the cluster's support, or use a torch for the nodes' driver."
        return Check.failed(name, detail, remedy)
    uuids = {(one["node"], one["gpu_uuid"]) for one in reports.values()}
    if len(uuids) < len(reports):
        detail = f"{len(reports)} ranks share {len(uuids)} GPUs"
        return Check.failed(name, detail, "Unset CUDA_VISIBLE_DEVICES in the job's environment.")
    return _gpu_model(reports, node_type)


def _gpu_model(reports: Reports, node_type: NodeType | None) -> Check:
    name = "GPUs"
    models = sorted({one["gpu_model"] for one in reports.values()})
    smallest = min(one["gpu_bytes"] for one in reports.values())
    if node_type is not None:
        remedy = f"Edit node type {node_type.name} in cluster.yaml."
        # Sites write A100-80 where the driver reports NVIDIA A100-SXM4-80GB; memory is compared below.
        family = re.split(r"[-_ ]", node_type.gpu_model)[0].lower()
        if wrong := [model for model in models if family not in model.lower()]:
            detail = f"cluster.yaml says {node_type.gpu_model}, found {wrong[0]}"
            return Check.failed(name, detail, remedy)
        if smallest < _MIN_MEMORY_SHARE * node_type.gpu_memory_gb * 1e9:
            found = f"found {smallest / 1e9:.0f} GB ({models[0]})"
            detail = f"cluster.yaml says {node_type.gpu_memory_gb} GB each, {found}"
            return Check.failed(name, detail, remedy)
    cuda = next(iter(reports.values()))["cuda"]
    gpus = f"{len(reports)} x {' and '.join(models)}, {smallest / 1e9:.0f} GB, CUDA {cuda}"
    return Check.ok(name, f"{gpus}: they compute")


def _folder(reports: Reports) -> Check:
    name, remedy = "shared folder", "Move the project to a file system that all nodes share."
    waited = max(one.get("waited_s", 0.0) for one in reports.values())
    if blind := sorted({one["node"] for one in reports.values() if not one["sees_folder"]}):
        detail = f"{listed(blind, 4)} did not see a file that was written before the job started"
        return Check.failed(name, detail, remedy)
    if blind := sorted({one["node"] for one in reports.values() if one.get("missing_ranks")}):
        detail = f"{listed(blind, 4)} did not see the files of other nodes within {waited:.0f} s"
        return Check.failed(name, detail, remedy)
    return Check.ok(name, f"all ranks saw each other's files within {waited:.1f} s")


def _host_names(reports: Reports) -> Check:
    name = "host names"
    unknown = {host for one in reports.values() for host in one.get("unknown_hosts", ())}
    if unknown:
        detail = f"{listed(sorted(unknown), 4)} cannot be resolved from all nodes"
        remedy = "Ask the cluster's support: torchrun connects to the name of the first node."
        return Check.failed(name, detail, remedy)
    hosts = sorted({one["host"] for one in reports.values()})
    return Check.ok(name, f"{listed(hosts, 4)}: known everywhere")


def _interfaces(reports: Reports) -> Check:
    """The interface that the configuration names for NCCL must exist."""
    name = "network interface"
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        for one in reports.values():
            wanted = one["environment"].get(variable, "")
            if wanted and not is_present(wanted, one["interfaces"]):
                detail = (
                    f"{variable}={wanted}, but {one['node']} has {', '.join(one['interfaces'])}"
                )
                return Check.failed(name, detail, "Edit `environment` in cluster.yaml.")
    environment = next(iter(reports.values()))["environment"]
    chosen = {k: v for k, v in environment.items() if k.startswith(("NCCL_", "GLOO_"))}
    found = ", ".join(f"{key}={value}" for key, value in chosen.items())
    return Check.ok(name, found or "the library chooses")


def is_present(wanted: str, interfaces: Sequence[str]) -> bool:
    """Whether an interface matches a list as NCCL reads it: prefixes, ``=exact``, ``^not``."""
    if wanted.startswith("^"):
        return True
    exact, names = wanted.startswith("="), wanted.lstrip("=").split(",")
    return any(i == name if exact else i.startswith(name) for i in interfaces for name in names)


def _all_reduce(together: dict[str, Any]) -> Check:
    name, rows = "all-reduce", together["all_reduce"]
    rates = ", ".join(f"{row['megabytes']} MB {row['gb_per_s']:.2f} GB/s" for row in rows)
    if wrong := ", ".join(f"{row['megabytes']} MB" for row in rows if not row["correct"]):
        detail = f"the sum over all ranks is wrong for {wrong} ({rates})"
        remedy = "Train nothing here, and report these nodes to the cluster's support."
        return Check.failed(name, detail, remedy)
    return Check.ok(name, f"{together['backend']}, sums are right, bus bandwidth {rates}")


def _network(backend: str, logs: Sequence[str], infiniband: bool) -> Check:
    name = "network"
    if backend != "nccl":
        return Check.not_applicable(name, f"{backend} between CPU processes")
    used = sorted({m[1] for log in logs for m in re.finditer(r"Using network (\S+)", log)})
    devices = sorted({m[1] for log in logs for m in re.finditer(r"NET/\w+ : Using (.+)", log)})
    found = (
        f"NCCL uses {', '.join(used) or 'a network that it does not name'}: {'; '.join(devices)}"
    )
    if infiniband and used and "IB" not in used:
        remedy = "See `environment` in cluster.yaml and `ibstat` on a node: training over nodes will crawl."
        return Check.warning(name, f"{found}, although NCCL_IB_HCA names InfiniBand", remedy)
    return Check.ok(name, found)


def _clocks(layout: Layout, skew_s: float) -> Check:
    name, detail = "clocks", f"they differ by {skew_s:.3f} s at most"
    if layout.nodes == 1:
        return Check.not_applicable(name, "one node, one clock")
    if skew_s > _MAX_SKEW_S:
        remedy = (
            "Ask the cluster's support to set them: deadlines and locks compare times of nodes."
        )
        return Check.failed(name, detail, remedy)
    if skew_s > _NOTABLE_SKEW_S:
        return Check.warning(name, detail, "Tell the cluster's support; it works up to 5 s.")
    return Check.ok(name, detail)


def _exclusive_mkdir(winners: int) -> Check:
    name = "exclusive mkdir"
    if winners != 1:
        remedy = "Put the project on another file system, and use no race of layouts on this one."
        return Check.failed(name, f"{winners} ranks made the same directory at once", remedy)
    return Check.ok(name, "one of all ranks makes the directory")
