"""SLURM: the job this process is in, and its queue."""

import shlex
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from millrace.cluster.requests import sbatch_arguments
from millrace.layout import Layout
from millrace.schedulers.base import Job, SchedulerError, State

_TIMEOUT_S = 60.0
# After `scontrol requeue` SLURM ends this job; until then it must not end by itself.
_REQUEUED_S = 90.0
_ATTEMPTS, _PAUSE_S = 4, 5.0
_FORMAT = "%i|%T|%j|%N|%r|%S|%e"
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED"}
_RUNNING = {"RUNNING", "CONFIGURING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"}


class SlurmAllocation:
    """The SLURM job that this process runs in.

    Parameters
    ----------
    job : str
        Its id.
    """

    scheduler = "slurm"

    def __init__(self, job: str) -> None:
        self.job = job

    def end(self) -> float | None:
        """When the time limit is reached, see `Allocation.end`."""
        done = _ask("squeue", "-h", "-j", self.job, "-o", "%e")
        return _seconds(done.stdout.strip()) if done.returncode == 0 else None

    def on_each_node(self, command: Sequence[str], layout: Layout, cpus_per_node: int) -> list[str]:
        """`srun` in a step of its own, also on one node.

        Only the direct process of a step is sure to get the signals of `scancel` and of the time limit;
        inside the executor's own step these would end Snakemake and leave the ranks to SIGKILL.
        """
        step = ["srun", "--overlap", f"--nodes={layout.nodes}", f"--ntasks={layout.nodes}"]
        step += ["--ntasks-per-node=1", f"--cpus-per-task={cpus_per_node}"]
        step += ["--mem=0", "--input=none", "--unbuffered"]
        if _has_gpus(self.job):
            step.append(f"--gres=gpu:{layout.gpus_per_node}")
        return [*step, *command]

    def requeue(self) -> bool:
        """Put the job back into the queue under the same id; this process is ended by that."""
        if _ask("scontrol", "requeue", self.job).returncode:
            return False
        time.sleep(_REQUEUED_S)
        return True


class SlurmQueue:
    """Jobs of SLURM, as seen from a login node."""

    def submit(
        self,
        command: Sequence[str],
        resources: Mapping[str, object],
        name: str,
        log: str,
    ) -> str:
        """See `Queue.submit`."""
        wrapped = f"exec {shlex.join(command)}"
        request = ["sbatch", "--parsable", "--export=ALL", "-D", str(Path.cwd())]
        request += [*sbatch_arguments(resources, name, log), f"--wrap={wrapped}"]
        done = _ask(*request)
        if done.returncode:
            raise SchedulerError(f"{shlex.join(request[:-1])}: {done.stderr.strip()}")
        return done.stdout.strip().split(";")[0]

    def jobs(self, ids: Iterable[str]) -> dict[str, Job]:
        """See `Queue.jobs`: from squeue, which remembers jobs for some minutes, then from sacct."""
        wanted = list(dict.fromkeys(ids))
        if not wanted:
            return {}
        done = _ask("squeue", "-h", "-t", "all", "--me", "-o", _FORMAT)
        if done.returncode:
            return {job: Job(job, State.UNKNOWN, reason=done.stderr.strip()) for job in wanted}
        known = {job.id: job for job in map(_parse, done.stdout.splitlines())}
        return {job: known.get(job) or _from_accounting(job) for job in wanted}

    def cancel(self, ids: Iterable[str]) -> None:
        """See `Queue.cancel`."""
        wanted = list(ids)
        if wanted:
            _ask("scancel", *wanted)


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of SLURM; a controller that is busy is asked again."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
        except FileNotFoundError:
            message = f"{command[0]}: no such command here"
            return subprocess.CompletedProcess(command, 127, "", message)
        except subprocess.TimeoutExpired:
            done = subprocess.CompletedProcess(command, 124, "", f"{command[0]}: no answer")
        busy = done.returncode and any(
            words in done.stderr
            for words in ("Unable to contact", "timed out", "Connection refused", "try again")
        )
        if not (busy or done.returncode == 124) or attempt == _ATTEMPTS:
            return done
        time.sleep(_PAUSE_S * attempt)
    return done


def _parse(line: str) -> Job:
    job, word, name, nodes, reason, start, end = line.split("|")
    return Job(
        id=job,
        state=_state(word),
        name=name,
        nodes=_nodes(nodes),
        reason="" if reason == "None" else reason,
        start=_seconds(start),
        end=_seconds(end),
    )


def _state(word: str) -> State:
    word = word.split()[0].rstrip("+")  # "CANCELLED by 1000"
    if word in _WAITING:
        return State.PENDING
    if word in _RUNNING:
        return State.RUNNING
    return State.DONE if word == "COMPLETED" else State.FAILED


def _from_accounting(job: str) -> Job:
    done = _ask("sacct", "-nPX", "-j", job, "-o", "State,JobName,NodeList,Start,End")
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return Job(job, State.GONE)
    word, name, nodes, start, end = lines[-1].split("|")
    return Job(job, _state(word), name, _nodes(nodes), word, _seconds(start), _seconds(end))


def _nodes(listed: str) -> tuple[str, ...]:
    if not listed or "assigned" in listed:
        return ()
    if "[" not in listed:
        return tuple(listed.split(","))
    return tuple(_ask("scontrol", "show", "hostnames", listed).stdout.split())


def _seconds(time_of_day: str) -> float | None:
    try:
        return datetime.fromisoformat(time_of_day).timestamp()
    except ValueError:  # "N/A", "NONE", "Unknown"
        return None


def _has_gpus(job: str) -> bool:
    described = _ask("scontrol", "show", "job", job).stdout
    return "gres/gpu" in described or "gres:gpu" in described
