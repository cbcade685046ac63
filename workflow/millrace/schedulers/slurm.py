"""SLURM: the job that this process runs in, and the queue."""

import re
import shlex
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from millrace.layout import Layout
from millrace.schedulers.base import Job, SchedulerError, State, from_here, run_command
from millrace.schedulers.requests import sbatch_arguments

# After `scontrol requeue` SLURM ends this job; until then it must not end by itself.
_REQUEUED_S = 90.0
_ATTEMPTS, PAUSE_S = 4, 5.0
_BUSY = re.compile("Unable to contact|timed out|Connection refused|try again|no answer within")
# Without the name, in which anything may stand.
_FORMAT = "%i|%T|%N|%S|%e|%r"
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED"}
_RUNNING = {"RUNNING", "CONFIGURING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"}


class SlurmAllocation:
    """The SLURM job ``job`` that this process runs in, see `millrace.schedulers.base.Allocation`."""

    scheduler = "slurm"

    def __init__(self, job: str) -> None:
        self.job = job

    def exists(self) -> bool:
        """Whether SLURM does not say that there is no such job, or that it is over."""
        done = _ask("squeue", "-h", "-j", self.job, "-o", "%T")
        if done.returncode:
            return "Invalid job id" not in done.stderr
        return any(not _state(word).is_over for word in done.stdout.split())

    def end(self) -> float | None:
        """Return the end of the time limit in seconds since 1970, see `Allocation.end`."""
        done = _ask("squeue", "-h", "-j", self.job, "-o", "%e")
        return timestamp(done.stdout.strip()) if done.returncode == 0 else None

    def on_each_node(self, command: Sequence[str], layout: Layout, cpus_per_node: int) -> list[str]:
        """Return a command with ``srun`` that makes a job step of its own, also on one node.

        Only the direct process of a step reliably receives the signals of ``scancel`` and of the time
        limit. Inside the executor's own step they would end Snakemake, and SIGKILL would end the ranks.
        """
        step = ["srun", "--overlap", f"--nodes={layout.nodes}", f"--ntasks={layout.nodes}"]
        step += ["--ntasks-per-node=1", f"--cpus-per-task={cpus_per_node}"]
        step += ["--mem=0", "--input=none", "--unbuffered"]
        described = _ask("scontrol", "show", "job", self.job).stdout
        if "gres/gpu" in described or "gres:gpu" in described:
            step.append(f"--gres=gpu:{layout.gpus_per_node}")
        return [*step, *command]

    def requeue(self) -> bool:
        """Put the job back into the queue under the same id, which ends this process."""
        if _ask("scontrol", "requeue", self.job).returncode:
            return False
        time.sleep(_REQUEUED_S)
        return True


class SlurmQueue:
    """Jobs of SLURM, see `millrace.schedulers.base.Queue`."""

    def submit(
        self, command: Sequence[str], resources: Mapping[str, object], name: str, log: str
    ) -> str:
        """Submit a command with ``sbatch``, see `Queue.submit`."""
        wrapped = f"exec {shlex.join(command)}"
        request = ["sbatch", "--parsable", "--export=ALL", "-D", str(Path.cwd())]
        request += [*sbatch_arguments(resources, name, from_here(log)), f"--wrap={wrapped}"]
        done = _ask(*request)
        if done.returncode:
            raise SchedulerError(f"{shlex.join(request[:-1])}: {done.stderr.strip()}")
        return done.stdout.strip().split(";")[0]

    def jobs(self, ids: Iterable[str]) -> dict[str, Job]:
        """Ask ``squeue``, which remembers ended jobs for some minutes, then ``sacct``; see `Queue.jobs`."""
        wanted = list(dict.fromkeys(ids))
        if not wanted:
            return {}
        done = _ask("squeue", "-h", "-t", "all", "--me", "-o", _FORMAT)
        if done.returncode:
            return {job: Job(job, State.UNKNOWN, reason=done.stderr.strip()) for job in wanted}
        lines = [line.split("|", 5) for line in done.stdout.splitlines()]
        known = {job.id: job for job in (_job(*line) for line in lines if len(line) == 6)}
        return {job: known.get(job) or _from_accounting(job) for job in wanted}

    def cancel(self, ids: Iterable[str]) -> None:
        """Cancel jobs with ``scancel``, see `Queue.cancel`."""
        if wanted := list(ids):
            _ask("scancel", *wanted)


def timestamp(text: str) -> float | None:
    """Return the seconds since 1970 of a time of SLURM; None: it is not known."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:  # "N/A", "NONE", "Unknown"
        return None


def duration(text: str) -> float | None:
    """Return the seconds of ``[days-][hours:]minutes:seconds[.fraction]``; None: another text."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):([\d.]+)", text.strip())
    if match is None:
        return None
    days, hours, minutes = (int(group or 0) for group in match.groups()[:3])
    return 86400 * days + 3600 * hours + 60 * minutes + float(match[4])


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of SLURM; if the controller is busy, try again."""
    for attempt in range(1, _ATTEMPTS + 1):
        done = run_command(*command)
        if done.returncode == 0 or not _BUSY.search(done.stderr):
            break
        if attempt < _ATTEMPTS:
            time.sleep(PAUSE_S * attempt)
    return done


def _job(job: str, word: str, nodes: str, start: str, end: str, reason: str) -> Job:
    reason = "" if reason == "None" else reason
    return Job(job, _state(word), _nodes(nodes), reason, timestamp(start), timestamp(end))


def _state(word: str) -> State:
    word = word.split()[0].rstrip("+")  # "CANCELLED by 1000"
    if word in _WAITING:
        return State.PENDING
    if word in _RUNNING:
        return State.RUNNING
    return State.DONE if word == "COMPLETED" else State.FAILED


def _from_accounting(job: str) -> Job:
    done = _ask("sacct", "-nPX", "-j", job, "-o", "State,NodeList,Start,End")
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return Job(job, State.GONE)
    word, nodes, start, end = lines[-1].split("|")
    return Job(job, _state(word), _nodes(nodes), word, timestamp(start), timestamp(end))


def _nodes(listed: str) -> tuple[str, ...]:
    if not listed or "assigned" in listed:
        return ()
    if "[" not in listed:
        return tuple(listed.split(","))
    return tuple(_ask("scontrol", "show", "hostnames", listed).stdout.split())
