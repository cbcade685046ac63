"""The queue of PBS: qsub, qstat and qdel, and the reading of their output."""

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
from millrace.schedulers.base import Job, SchedulerError, State, run_command

DELETED = "deleted (qdel)"

# Pauses between attempts of qstat and qdel, and of qsub, if PBS does not answer.
PAUSES_S, SUBMISSION_PAUSES_S = (0.5, 2.0), (2.0, 5.0, 15.0)
# Exit codes of qstat: the job finished long ago, the job is unknown.
_FINISHED, _UNKNOWN = 35, 153
_SUBSTATE_DELETED, _SUBSTATE_FAILED = 91, 93
_KILLED_AT_WALLTIME = -29
Done = subprocess.CompletedProcess[str]
# Temporary problems: the server restarts, is overloaded, or cannot be reached for a moment.
_BUSY = re.compile(
    r"cannot connect|connection (refused|reset|timed out)|could not connect|timed? ?out|server (is )?"
    r"(busy|shutting down|not (running|responding))|premature end of message|end of file"
    r"|communication failure|try again|temporar|no free connections|invalid credential"
    r"|no answer within",
    re.IGNORECASE,
)


class SubmissionError(SchedulerError):
    """PBS refused a job."""


class BusyError(SchedulerError):
    """PBS does not answer; a later attempt may succeed."""


class PbsQueue:
    """Jobs of PBS, see `millrace.schedulers.base.Queue`."""

    def submit(
        self, command: Sequence[str], resources: Mapping[str, object], name: str, log: str
    ) -> str:
        """Submit a command with this process's PATH and library, see `Queue.submit`.

        Raises
        ------
        SubmissionError
            PBS refused the job.
        BusyError
            PBS does not answer.
        """
        directory = shlex.quote(str(Path.cwd()))
        script = f"{exports({})}\ncd {directory} || exit\nexec {shlex.join(command)}\n"
        return self.submit_script(qsub_arguments(resources, name, log), stdin=script)

    def submit_script(self, arguments: Sequence[str], stdin: str = "") -> str:
        """Call qsub, with the script as the last argument or on the standard input."""
        command = ["qsub", "-S", "/bin/bash", *arguments]
        done = _run(command, SUBMISSION_PAUSES_S, _is_busy, stdin)
        words = done.stdout.split()
        if done.returncode == 0 and words:
            return words[0]
        message = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        message += f"; the command was: {shlex.join(command)}"
        if _is_busy(done):
            raise BusyError(f"PBS does not answer: {message}")
        raise SubmissionError(f"PBS refused a job: {message}")

    def jobs(self, ids: Iterable[str]) -> dict[str, Job]:
        """Ask qstat for jobs, see `Queue.jobs`."""
        asked = list(ids)
        if not asked:
            return {}
        done = _qstat("-F", "json", *asked)
        if _is_no_answer(done):
            reason = f"qstat: {' '.join(done.stderr.split())}"
            return {id: Job(id, State.UNKNOWN, reason=reason) for id in asked}
        try:
            known = _read_json(done.stdout)
        except ValueError:
            # PBS copies variables of the user's environment into its JSON, badly quoted.
            known = _read_text(_qstat(*asked).stdout)
        # An id with the name of the server and one without it name the same job.
        by_number = {id.partition(".")[0]: fields for id, fields in known.items()}
        gone = "PBS does not know this job"
        return {
            id: read_job(id, fields) if fields else Job(id, State.GONE, reason=gone)
            for id in asked
            for fields in [by_number.get(id.partition(".")[0])]
        }

    def cancel(self, ids: Iterable[str]) -> None:
        """Delete jobs with qdel, see `Queue.cancel`."""
        if command := list(ids):
            _run(["qdel", *command], PAUSES_S, _is_busy)


def exports(more: Mapping[str, str]) -> str:
    """Return shell commands that set the variables which a job needs, and ``more``.

    qsub passes no variables on, and with ``-V`` all but PATH.
    """
    names = ("LANG", "LC_ALL", "LD_LIBRARY_PATH")
    # A job has a deadline and MILLRACE_PBS_... of its own.
    own = ("MILLRACE_PBS_", "MILLRACE_DEADLINE")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in names or (name.startswith("MILLRACE_") and not name.startswith(own))
    }
    library = str(Path(__file__).parents[3])
    paths = [library, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    kept["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    programs = [str(Path(sys.executable).parent), *os.environ.get("PATH", os.defpath).split(":")]
    kept["PATH"] = ":".join(dict.fromkeys(filter(None, programs)))
    return "\n".join(f"export {name}={shlex.quote(v)}" for name, v in {**kept, **more}.items())


def read_job(id: str, fields: Mapping[str, str]) -> Job:
    """Return a job from the fields of ``qstat -f``, whose names are flat: ``Resource_List.walltime``."""
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
    """Return the seconds of a walltime in the form ``[[HH:]MM:]SS``."""
    total = 0.0
    for part in walltime.split(":"):
        total = 60 * total + float(part)
    return total


def _ended(fields: Mapping[str, str]) -> tuple[State, str]:
    code = int(fields["Exit_status"]) if "Exit_status" in fields else None
    substate = int(fields.get("substate") or 0)
    # A job that was deleted while it ran reports exit status 0.
    if substate == _SUBSTATE_DELETED:
        return State.FAILED, DELETED
    if code == _KILLED_AT_WALLTIME:
        return State.FAILED, "killed at the end of its walltime"
    if code is None:
        return State.FAILED, "ended without an exit status: never started, or its node was lost"
    if code < 0:
        return State.FAILED, f"ended by PBS (Exit_status {code}): {fields.get('comment', '')}"
    if code > 256:
        return State.FAILED, f"killed by signal {code - 256}"
    if code or substate == _SUBSTATE_FAILED:
        return State.FAILED, f"exit code {code}"
    return State.DONE, ""


def _is_busy(done: Done) -> bool:
    return done.returncode != 0 and bool(_BUSY.search(done.stderr))


def _is_no_answer(done: Done) -> bool:
    """Whether qstat reported nothing about jobs; that it does not know a job is an answer."""
    return done.returncode not in (0, _FINISHED, _UNKNOWN) or _is_busy(done)


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
    """Read ``qstat -f``: for each job ``Job Id: …`` and lines ``name = value``, continued after a tab."""
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


def _qstat(*arguments: str) -> Done:
    return _run(["qstat", "-x", "-f", *arguments], PAUSES_S, _is_no_answer)


def _run(
    command: list[str],
    pauses_s: Sequence[float],
    failed_for_now: Callable[[Done], bool],
    stdin: str = "",
) -> Done:
    """Run a command of PBS; while it fails temporarily, try again after each pause."""
    for pause_s in (*pauses_s, None):
        done = run_command(*command, stdin=stdin)
        if done.returncode == 127 and done.stderr.endswith("command not found"):
            raise SchedulerError(
                f"{done.stderr}; run this where PBS is installed, for example on a login node"
            )
        if pause_s is None or not failed_for_now(done):
            break
        time.sleep(pause_s)
    return done
