"""Jobs that needed more memory than they had: only those ask for more when they are tried again."""

import json
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from millrace.files import write_json

# Of SLURM, PBS with and without cgroups, the kernel, Python and torch; that of a GPU is another memory.
LACKS_MEMORY = re.compile(
    r"oom[-_ ]kill|job killed: v?mem |mem(?:sw|ory)? limit exceeded|exceeded (?:\w+ )?memory limit"
    r"|\bMemoryError\b|\bbad_alloc\b|can(?:no|')t allocate memory",
    re.IGNORECASE,
)
_TAIL = 2**16
# By which the clock of a file server may be behind.
_SKEW_S = 60.0
SLURM_LOGS = Path("logs", "slurm")
"""``slurm-logdir`` of the profiles."""
PBS_RECORDS = Path(".snakemake", "pbs", "memory")


def note_shortage(name: str, wildcards: Mapping[str, str]) -> None:
    """Note that a job of rule ``name`` on PBS lacked memory."""
    path = _record(name, wildcards)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, [*_noted(path), time.time()])


def count_shortages(scheduler: str, name: str, wildcards: Mapping[str, str], since: float) -> int:
    """Count the attempts of a job that lacked memory.

    Parameters
    ----------
    scheduler : str
        ``slurm`` or ``pbs``.
    name : str
        Name of its rule.
    wildcards : mapping of str
    since : float
        Only attempts that ended later count, in seconds since 1970.
    """
    if scheduler == "pbs":
        return sum(moment >= since for moment in _noted(_record(name, wildcards)))
    # As the plugin for SLURM names them.
    folder = SLURM_LOGS / f"rule_{name}" / "_".join(wildcards.values()).replace("/", "_")
    logs = [path for path in folder.glob("*.log") if path.stat().st_mtime >= since - _SKEW_S]
    return sum(lacks_memory([path]) for path in logs)


def lacks_memory(outputs: Iterable[Path]) -> bool:
    """Whether the end of one of these files says that memory was lacking; a file need not exist."""
    for path in outputs:
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _TAIL))
                if LACKS_MEMORY.search(file.read().decode(errors="replace")):
                    return True
        except OSError:
            continue
    return False


def _record(name: str, wildcards: Mapping[str, str]) -> Path:
    text = "_".join([name, *(value for _, value in sorted(wildcards.items()))])
    return PBS_RECORDS / (re.sub(r"[^\w.+-]", "_", text) + ".json")


def _noted(path: Path) -> list[float]:
    try:
        return [float(moment) for moment in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        return []
