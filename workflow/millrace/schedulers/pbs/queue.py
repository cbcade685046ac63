"""The queue of PBS: qsub, qstat and qdel, and the reading of their output."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from millrace.schedulers.base import Job, SchedulerError, State, from_here, run_command
from millrace.schedulers.memory import LACKS_MEMORY
from millrace.schedulers.requests import qsub_arguments

DELETED = "deleted (qdel)"
NO_STATUS = "ended without an exit status: never started, or its node was lost"

STARTED = "MILLRACE_PBS_STARTED"
"""Variable with the start of the job, in seconds since 1970 on the clock of its node."""
MARK_START = f"export {STARTED}=$(date +%s)"
"""Line of a job's script that sets it."""

# Pauses between attempts if PBS does not answer: of any command, and of a submission. A server that is down
# for some minutes must cost no attempt of Snakemake.
PAUSES_S, SUBMISSION_PAUSES_S = (0.5, 2.0), (2.0, 5.0, 15.0, 30.0, *[60.0] * 14)
# Exit codes of qstat: the job finished long ago, the job is unknown.
_FINISHED, _UNKNOWN = 35, 153
_NO_HISTORY = "not configured to maintain job history"
_GONE = re.compile(r"Unknown Job Id (\S+)|(\S+) Job has finished", re.IGNORECASE)
_SUBSTATE_DELETED, _SUBSTATE_FAILED = 91, 93
_KILLED_AT_WALLTIME = -29
# SIGKILL of the job's shell, and of what it waited for.
_KILLED, _ALMOST_ALL = ("265", "137"), 0.8
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
        script = (
            f"{exports({})}\n{MARK_START}\ncd {directory} || exit\nexec {shlex.join(command)}\n"
        )
        arguments = qsub_arguments(resources, name, from_here(log))
        return patiently(lambda: self.submit_script(arguments, stdin=script))

    def submit_script(self, arguments: Sequence[str], stdin: str = "") -> str:
        """Call qsub, with the script as the last argument or on the standard input."""
        command = ["qsub", "-S", "/bin/bash", *arguments]
        done = _run(command, PAUSES_S, _is_busy, stdin)
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
        asked = list(dict.fromkeys(ids))
        known = _ask(asked) if asked else {}
        # qstat may answer for some jobs only, with exit code 0. One that it leaves out need not be gone.
        missing = [id for id in asked if id not in known]
        for id in missing if len(asked) > 1 else ():
            known |= _ask([id])
        silent = "qstat says nothing about this job"
        return {id: known.get(id) or Job(id, State.UNKNOWN, reason=silent) for id in asked}

    def cancel(self, ids: Iterable[str]) -> None:
        """Delete jobs with qdel, see `Queue.cancel`."""
        if command := list(ids):
            _run(["qdel", *command], PAUSES_S, _is_busy)


def patiently(submit: Callable[[], str]) -> str:
    """Call ``submit`` again while it raises `BusyError`, for a quarter of an hour."""
    for pause_s in SUBMISSION_PAUSES_S:
        try:
            return submit()
        except BusyError as error:
            print(f"millrace: {error}; trying again", file=sys.stderr, flush=True)
        time.sleep(pause_s)
    return submit()


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
    lacked = state is State.FAILED and _lacked_memory(fields)
    return Job(id, state, nodes, reason, start, end, lacked)


def _lacked_memory(fields: Mapping[str, str]) -> bool:
    """Whether PBS says so, or the job was killed with SIGKILL when it had used almost all of its memory."""
    if LACKS_MEMORY.search(fields.get("comment", "")):
        return True
    used, given = (_bytes(fields.get(f"{key}.mem")) for key in ("resources_used", "Resource_List"))
    killed = fields.get("Exit_status") in _KILLED
    return killed and used is not None and given is not None and used > _ALMOST_ALL * given


def _bytes(text: str | None) -> int | None:
    match = re.fullmatch(r"(\d+)([kmgtp]?)b?", text or "", re.IGNORECASE)
    return int(match[1]) * 1024 ** " kmgtp".index(match[2].lower() or " ") if match else None


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
        return State.FAILED, NO_STATUS
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


def _ask(ids: Sequence[str]) -> dict[str, Job]:
    """Jobs about which qstat says something; it may say nothing about others."""
    done = _run(["qstat", "-x", "-f", *ids], PAUSES_S, _is_no_answer)
    if (
        _NO_HISTORY in done.stderr + done.stdout
    ):  # then it shows no job at all, not even one that runs
        done = _run(["qstat", "-f", *ids], PAUSES_S, _is_no_answer)
    # The text, because the JSON for several jobs holds the first only, and variables badly quoted.
    shown = {_number(id): fields for id, fields in read_answer(done.stdout).items()}
    gone = {_number(id) for pair in _GONE.findall(done.stderr) for id in pair}
    if len(ids) == 1 and done.returncode in (_FINISHED, _UNKNOWN):
        gone.add(_number(ids[0]))
    said: dict[str, Job] = {}
    for id in ids:
        if fields := shown.get(_number(id)):
            said[id] = read_job(id, fields)
        elif _number(id) in gone:
            said[id] = Job(id, State.GONE, reason="PBS does not know this job")
        elif _is_no_answer(done):
            reason = f"qstat: {' '.join(done.stderr.split())}"
            said[id] = Job(id, State.UNKNOWN, reason=reason)
    return said


def _number(id: str) -> str:
    """Id without the server: with it and without it, it is the same job."""
    return id.partition(".")[0]


def read_answer(text: str) -> dict[str, dict[str, str]]:
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
    with contextlib.suppress(ValueError):
        return float(value)
    try:
        return time.mktime(time.strptime(value, "%a %b %d %H:%M:%S %Y"))
    except ValueError:
        return None


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
