"""Jobs of the workflow, as Snakemake plans them: what it would run, and what it would run from scratch.

Asked of Snakemake's own command line, which knows profiles, modules and merged configurations; the jobs
come through its interface for loggers, see ``snakemake_logger_plugin_millrace``.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.errors import ConfigError
from millrace.processes import dying_with_this, library_environment

# Wildcards by which jobs of equal cost differ.
_REPEATED = ("seed", "epoch", "repeat", "part")


@dataclass(frozen=True)
class Job:
    """A job of the workflow, with the fields of the logger plugin."""

    rule: str
    wildcards: Mapping[str, str]
    output: Sequence[str]
    benchmark: str | None
    threads: int
    resources: Mapping[str, Any]
    """Of the first attempt, by the names of Snakemake's executor."""
    input: Sequence[str] = ()

    @property
    def stage(self) -> str:
        """The folder below ``results/`` that it writes to; the name of the rule for rules of others."""
        found = re.search(r"(?:^|/)results/(\w+)", self.output[0])
        return found[1] if found else self.rule

    @property
    def kind(self) -> tuple[str, ...]:
        """What jobs of about equal cost have in common; trainings by epoch."""
        chosen = {k: v for k, v in sorted(self.wildcards.items()) if k not in _REPEATED}
        return (self.rule, *chosen.values())

    @property
    def nodes(self) -> int:
        """Nodes that it asks for."""
        return int(self.resources.get("nodes") or 1)

    @property
    def gpus(self) -> int:
        """GPUs that it asks for, on all nodes."""
        per_node = self.resources.get("ngpus") or str(self.resources.get("gres") or "0")
        return self.nodes * int(str(per_node).rpartition(":")[2])

    @property
    def walltime(self) -> float | None:
        """Hours that it asks for; None on this machine."""
        minutes = self.resources.get("runtime")
        return None if minutes is None else float(minutes) / 60

    @property
    def memory_mb(self) -> int:
        """Memory that it asks for on each node."""
        return int(self.resources.get("mem_mb") or 0)

    @property
    def request(self) -> dict[str, Any]:
        """Resources that a cluster is asked for; those of Snakemake itself are left out."""
        own = ("_cores", "_nodes", "tmpdir", "site", "mem_mib", "disk_mib")
        return {k: v for k, v in self.resources.items() if k not in own}


def planned_jobs(arguments: Sequence[str]) -> list[Job]:
    """Jobs with outputs that ``snakemake`` would run with these arguments, in its order.

    Raises `ConfigError` with what Snakemake says if it refuses the plan.
    """
    with tempfile.TemporaryDirectory(prefix="millrace_plan_") as scratch:
        path = Path(scratch) / "jobs.jsonl"
        own = ("--dry-run", "--logger", "millrace", "--logger-millrace-path", str(path))
        done = run_snakemake([*arguments, *own])
        if done.returncode:
            raise ConfigError(_refusal(done.stdout + done.stderr))
        lines = path.read_text().splitlines() if path.exists() else []
    jobs = (Job(**json.loads(line)) for line in lines)
    return [job for job in jobs if job.output]


def run_snakemake(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run ``snakemake`` with the library of this process."""
    # Not the working directory: nothing that Snakemake imports may come from there.
    command = [sys.executable, "-P", "-m", "snakemake", *arguments]
    return subprocess.run(
        command,
        env=library_environment(),
        capture_output=True,
        text=True,
        preexec_fn=dying_with_this(),
    )


def _refusal(said: str) -> str:
    """The error in what Snakemake says, without where in the Snakefile it was raised."""
    lines = [line for line in said.splitlines() if line.strip()]
    heads = [n for n, line in enumerate(lines) if re.match(r"\w+(Error|Exception)\b.*:$", line)]
    if not heads:
        return "\n".join(lines[-5:])
    error = itertools.takewhile(lambda line: not line.startswith("  File "), lines[heads[0] + 1 :])
    return "\n".join(error)
