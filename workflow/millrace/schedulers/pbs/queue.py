"""PBS from outside: qsub, qstat and qdel, and how their answers are read."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from millrace.cluster.requests import qsub_arguments
from millrace.schedulers.base import Job, SchedulerError, State

DELETED = "deleted (qdel)"

_FINISHED_LONG_AGO, _UNKNOWN_JOB = 35, 153
_DELETED, _FAILED = 91, 93
_KILLED_AT_WALLTIME = -29
_TIMEOUT_S = 60.0
Done = subprocess.CompletedProcess[str]
# Refusals that pass: the server restarts, is overloaded, or cannot be reached for a moment.
_BUSY = re.compile(
    r"cannot connect|connection (refused|reset|timed out)|could not connect|timed? ?out|server (is )?"
    r"(busy|shutting down|not (running|responding))|premature end of message|end of file"
    r"|communication failure|try again|temporar|no free connections|invalid credential",
    re.IGNORECASE,
)


class SubmissionError(SchedulerError):
    """PBS refused a job."""


class BusyError(SchedulerError):
    """PBS does not answer; asking later may help."""


class PbsQueue:
    """Jobs of PBS, see `millrace.schedulers.base.Queue`.

    Parameters
    ----------
    pauses_s : sequence of float
        How long to wait before qstat is tried again, when PBS does not answer.
    submission_pauses_s : sequence of float
        The same for qsub.
    """

    def __init__(
        self,
        pauses_s: Sequence[float] = (0.5, 2.0),
        submission_pauses_s: Sequence[float] = (2.0, 5.0, 15.0),
    ) -> None:
        self._pauses_s, self._submission_pauses_s = pauses_s, submission_pauses_s

    def submit(
        self, command: Sequence[str], resources: Mapping[str, object], name: str, log: str
    ) -> str:
        """Submit a command, to run in this directory with this PATH and library; returns the job's id.

        Raises
        ------
        SubmissionError
            PBS refused it.
        BusyError
            PBS does not answer.
        """
        exports = "\n".join(f"export {k}={shlex.quote(v)}" for k, v in carried().items())
        script = (
            f"{exports}\ncd {shlex.quote(str(Path.cwd()))} || exit\nexec {shlex.join(command)}\n"
        )
        return self.submit_script(qsub_arguments(resources, name, log), stdin=script)

    def submit_script(self, arguments: Sequence[str], stdin: str | None = None) -> str:
        """Call qsub, with the script as the last of the arguments or on its standard input."""
        command = ["qsub", "-S", "/bin/bash", *arguments]
        done = _run_patiently(command, self._submission_pauses_s, _is_busy, stdin)
        words = done.stdout.split()
        if done.returncode == 0 and words:
            return words[0]
        said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        error = BusyError if _is_busy(done) else SubmissionError
        raise error(
            f"PBS {'does not answer' if error is BusyError else 'refused a job'}: {said}; the command "
            f"was: {shlex.join(command)}"
        )

    def jobs(self, ids: Iterable[str]) -> dict[str, Job]:
        """Ask for jobs, waiting, running and ended; see `Queue.jobs`."""
        asked = list(ids)
        if not asked:
            return {}
        done = self._qstat(["-F", "json", *asked])
        if _is_no_answer(done):
            reason = f"qstat: {' '.join(done.stderr.split())}"
            return {id: Job(id, State.UNKNOWN, reason=reason) for id in asked}
        try:
            known = _read_json(done.stdout)
        except ValueError:
            # PBS writes what users put into their environment into its JSON, badly quoted.
            known = _read_text(self._qstat(asked).stdout)
        by_number = {_number(id): fields for id, fields in known.items()}
        jobs = {}
        for id in asked:
            fields = by_number.get(_number(id))
            jobs[id] = (
                read_job(id, fields)
                if fields
                else Job(id, State.GONE, reason="PBS does not know this job")
            )
        return jobs

    def cancel(self, ids: Iterable[str]) -> None:
        """Delete jobs, waiting or running; those that have ended are left alone."""
        if command := list(ids):
            _run_patiently(["qdel", *command], self._pauses_s, _is_busy)

    def _qstat(self, arguments: list[str]) -> Done:
        return _run_patiently(["qstat", "-x", "-f", *arguments], self._pauses_s, _is_no_answer)


def carried() -> dict[str, str]:
    """Variables that a job needs from here: qsub passes none, and with ``-V`` all but PATH."""
    names = ("LANG", "LC_ALL", "LD_LIBRARY_PATH")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    # The job is told its own of these, and has its own deadline.
    kept |= {
        name: value
        for name, value in os.environ.items()
        if name.startswith("MILLRACE_")
        and not name.startswith(("MILLRACE_PBS_", "MILLRACE_DEADLINE"))
    }
    library = str(Path(__file__).parents[3])
    paths = [library, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    kept["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    programs = [str(Path(sys.executable).parent), *os.environ.get("PATH", os.defpath).split(":")]
    kept["PATH"] = ":".join(dict.fromkeys(filter(None, programs)))
    return kept


def read_job(id: str, fields: Mapping[str, str]) -> Job:
    """Read the fields of ``qstat -f``.

    Parameters
    ----------
    id : str
    fields : mapping
        With flat names, such as ``Resource_List.walltime``.
    """
    letter = fields.get("job_state", "")
    start = _time(fields.get("stime") or fields.get("estimated.start_time"))
    end = _time(fields.get("obittime") or fields.get("mtime"))
    reason = fields.get("comment", "")
    if letter in ("R", "E", "B"):
        state, walltime = State.RUNNING, fields.get("Resource_List.walltime")
        end = start + seconds(walltime) if start is not None and walltime else None
    elif letter in ("F", "X"):
        state, reason = _ended(fields)
    else:
        state, end = State.PENDING, None
    hosts = [part.split("/")[0] for part in fields.get("exec_host", "").split("+")]
    nodes = tuple(dict.fromkeys(filter(None, hosts)))
    return Job(id, state, fields.get("Job_Name", ""), nodes, reason, start, end)


def seconds(walltime: str) -> float:
    """Seconds of a duration in the form ``[[HH:]MM:]SS``."""
    total = 0.0
    for part in walltime.split(":"):
        total = 60 * total + float(part)
    return total


def _ended(fields: Mapping[str, str]) -> tuple[State, str]:
    code = int(fields["Exit_status"]) if "Exit_status" in fields else None
    substate = int(fields.get("substate") or 0)
    # A running job that was deleted reports exit status 0.
    if substate == _DELETED:
        return State.FAILED, DELETED
    if code == _KILLED_AT_WALLTIME:
        return State.FAILED, "killed at the end of its walltime"
    if code is None:
        return State.FAILED, "ended without an exit status: never started, or its node was lost"
    if code < 0:
        return State.FAILED, f"ended by PBS (Exit_status {code}): {fields.get('comment', '')}"
    if code > 256:
        return State.FAILED, f"killed by signal {code - 256}"
    if code or substate == _FAILED:
        return State.FAILED, f"exit code {code}"
    return State.DONE, ""


def _is_busy(done: Done) -> bool:
    return done.returncode != 0 and bool(_BUSY.search(done.stderr))


def _is_no_answer(done: Done) -> bool:
    """Whether qstat told nothing about jobs; that it does not know one is an answer."""
    return done.returncode not in (0, _FINISHED_LONG_AGO, _UNKNOWN_JOB) or _is_busy(done)


def _read_json(text: str) -> dict[str, dict[str, str]]:
    if not text.strip():
        return {}
    answer = json.loads(text, strict=False)
    return {id: _flat(fields) for id, fields in (answer.get("Jobs") or {}).items()}


def _flat(fields: Mapping[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": str(inner) for key, inner in value.items()}
        else:
            flat[name] = str(value)
    return flat


def _read_text(text: str) -> dict[str, dict[str, str]]:
    """Read ``qstat -f``: a line ``Job Id: …`` a job, then ``name = value``, wrapped after a tab."""
    known: dict[str, dict[str, str]] = {}
    fields: dict[str, str] = {}
    for line in text.replace("\n\t", "").splitlines():
        if line.startswith("Job Id:"):
            fields = known.setdefault(line.partition(":")[2].strip(), {})
        elif line.startswith("    ") and " = " in line:
            name, _, value = line.strip().partition(" = ")
            fields.setdefault(name, value)
    return known


def _time(value: str | None) -> float | None:
    if not value:
        return None
    try:
        return float(value)
    except ValueError:
        return time.mktime(time.strptime(value, "%a %b %d %H:%M:%S %Y"))


def _number(id: str) -> str:
    """An id with and without the name of the server is the same job."""
    return id.partition(".")[0]


def _run_patiently(
    command: list[str],
    pauses_s: Sequence[float],
    failed_for_now: Callable[[Done], bool],
    stdin: str | None = None,
) -> Done:
    """Run a command of PBS; as long as it fails for now, try again after each pause."""
    done = _run(command, stdin)
    for pause_s in pauses_s:
        if not failed_for_now(done):
            break
        time.sleep(pause_s)
        done = _run(command, stdin)
    return done


def _run(command: list[str], stdin: str | None) -> Done:
    try:
        return subprocess.run(
            command,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise SchedulerError(
            f"{command[0]}: command not found; run this where PBS is installed, for example on a login "
            "node"
        ) from None
    except subprocess.TimeoutExpired:
        return Done(command, 1, "", f"timed out after {_TIMEOUT_S:g} s")
