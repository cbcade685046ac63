"""Worker of the checks inside a job, started like a training: ``torchrun -m millrace.doctor.worker``.

Every rank first writes a report on its node into the folder of the request, ``rank_<n>.json``, and looks
for the reports of the others: this works even if the ranks cannot communicate. Then they communicate, and
the first rank writes their common measurements, ``together.json``. `millrace.doctor.inside` judges both.
"""

import argparse
import json
import os
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from millrace.doctor.filesystem import make_directory
from millrace.doctor.inside import Request
from millrace.errors import exits_with_code
from millrace.files import write_json
from millrace.training.distributed import Ranks, node_name, process_group

# Message sizes of the all-reduce in 2²⁰ bytes, as of buckets of gradients.
_SIZES_MB = (1, 16, 64)
_ROUNDS, _WARM_UP = 5, 2
_VARIABLES = ("NCCL_", "GLOO_", "TORCH_NCCL_", "CUDA_VISIBLE_DEVICES", "MASTER_ADDR")


@exits_with_code
def main() -> int:
    """Write the report of this rank, then the common measurements, into files beside the request."""
    parser = argparse.ArgumentParser(description="Check a job from inside; start it with torchrun.")
    parser.add_argument("request", type=Path, help="JSON file, see millrace.doctor.inside.Request")
    path: Path = parser.parse_args().request
    request = Request(**json.loads(path.read_text()))
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    folder = path.parent
    report = look(folder, request)
    write_json(folder / f"rank_{rank}.json", report)
    report |= look_at_others(folder, world_size, request.patience_s)
    write_json(folder / f"rank_{rank}.json", report)
    os.environ.setdefault("NCCL_DEBUG", "INFO")
    os.environ.setdefault("NCCL_DEBUG_SUBSYS", "INIT,NET")
    os.environ["NCCL_DEBUG_FILE"] = str(folder / f"nccl_{rank}.log")
    with process_group(timedelta(seconds=request.patience_s)) as ranks:
        together = measure(ranks, folder)
        if ranks.is_first:
            write_json(folder / "together.json", together)
    return 0


def look(folder: Path, request: Request) -> dict[str, Any]:
    """Return a report on the node and the GPU of this rank."""
    try:
        seen = (folder / request.token).read_text() == request.token
    except OSError:
        seen = False
    memory, addresses = psutil.virtual_memory(), psutil.net_if_addrs()
    return {
        "host": socket.gethostname(),
        "node": node_name(),
        "python": sys.executable,
        "torch": str(torch.__version__),
        "sees_folder": seen,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": memory.total,
        "interfaces": sorted(addresses),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)},
        **look_at_gpu(),
    }


def look_at_gpu() -> dict[str, Any]:
    """Return the number of GPUs of the node, the one of this rank, and whether it computes."""
    found: dict[str, Any] = {"gpus": 0, "cuda": torch.version.cuda, "gpu_problem": None}
    try:
        found["gpus"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local < found["gpus"]:
            properties = torch.cuda.get_device_properties(local)
            found |= {"gpu_model": properties.name, "gpu_bytes": properties.total_memory}
            found["gpu_uuid"] = str(getattr(properties, "uuid", local))
            ones = torch.ones(256, 256, device=torch.device("cuda", local))
            total = float((ones @ ones).sum())
            if total != 256.0**3:
                found["gpu_problem"] = f"a product of matrices gave {total}, expected {256.0**3}"
    except RuntimeError as error:  # what CUDA reports
        found["gpu_problem"] = str(error).splitlines()[0]
    return found


def look_at_others(folder: Path, world_size: int, patience_s: float) -> dict[str, Any]:
    """Wait for the reports of all ranks, and resolve the names of their hosts."""
    hosts: dict[int, str] = {}
    started = time.monotonic()
    while len(hosts) < world_size and time.monotonic() - started < patience_s:
        # Listing asks the file server; some clients remember that a name did not exist.
        for path in folder.glob("rank_*.json"):
            number = int(path.stem.removeprefix("rank_"))
            if number not in hosts:
                hosts[number] = json.loads(path.read_text())["host"]
        if len(hosts) < world_size:
            time.sleep(0.2)
    unknown = sorted(host for host in set(hosts.values()) if not resolves(host))
    return {
        "waited_s": round(time.monotonic() - started, 1),
        "missing_ranks": sorted(set(range(world_size)) - set(hosts)),
        "unknown_hosts": unknown,
    }


def resolves(host: str) -> bool:
    """Whether a host has an address."""
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def measure(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Return the common measurements of all ranks, as on the first one."""
    if ranks.world_size == 1:
        return {"backend": "none", "clock_skew_s": 0.0, "winners": 1, "all_reduce": []}
    return {
        "backend": dist.get_backend(),
        "clock_skew_s": clock_skew(ranks),
        "winners": winners(ranks, folder / "claim"),
        "all_reduce": [all_reduce(ranks, size) for size in _SIZES_MB],
    }


def all_reduce(ranks: Ranks, megabytes: int) -> dict[str, Any]:
    """Time an all-reduce over all ranks, and check its sums.

    Returns ``megabytes`` (2²⁰ bytes); ``seconds`` of the slowest rank, median over rounds; ``gb_per_s``,
    the bus bandwidth in 10⁹ bytes/s: 2 (n - 1) / n times size over time, as in nccl-tests; ``correct``.
    """
    count, n = megabytes * 2**20 // 4, ranks.world_size
    times, correct = [], True
    for turn in range(_WARM_UP + _ROUNDS):
        # A ramp that differs by rank reveals lost and swapped chunks. Sums are exact in float32.
        ramp = torch.arange(count, device=ranks.device, dtype=torch.float32) % 1024
        values, expected = ramp + ranks.rank, n * ramp + n * (n - 1) / 2
        seconds = ranks.time_all_reduce(values)
        if turn >= _WARM_UP:
            times.append(seconds)
        correct = correct and torch.equal(values, expected)
    seconds, wrong = ranks.maximum(sorted(times)[len(times) // 2], not correct)
    rate = 2 * (n - 1) / n * megabytes * 2**20 / seconds / 1e9
    return {"megabytes": megabytes, "seconds": seconds, "gb_per_s": rate, "correct": not wrong}


def clock_skew(ranks: Ranks) -> float:
    """Return the largest difference between the ranks' clocks, s, with the time to leave a barrier."""
    spreads = []
    for _ in range(_ROUNDS):
        dist.barrier()
        now = time.time()
        late, early = ranks.maximum(now, -now)
        spreads.append(late + early)
    return min(spreads)


def winners(ranks: Ranks, path: Path) -> int:
    """Return how many ranks succeed in making the same directory at once."""
    dist.barrier()
    return int(ranks.sum(float(make_directory(path)))[0])


if __name__ == "__main__":
    sys.exit(main())
