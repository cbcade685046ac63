"""Jobs that Snakemake submits through PBS: what was submitted for which files, and how it goes on.

Snakemake's plugin knows a job by the id that `submit` printed. Behind it stands a chain of PBS jobs:
one that asked for it (`PbsAllocation.requeue`) is submitted again under a new id. And Snakemake itself
may have been killed and started again while a job runs: the job is then found by its output files.

Everything is in ``.snakemake/pbs/`` of the working directory, which the jobs see as well::

    jobs/<first id>.json       the chain, see `Submission`
    targets/<digest>.json      output files -> first id
    scripts/<digest>.<n>.sh    job scripts, because Snakemake removes its own
    again/<id>                 the job asked to be started again
    ended/<id>                 exit code, written by the job's shell
    cancelled/<first id>       never submit this chain again
"""

import contextlib
import fcntl
import hashlib
import json
import re
import shlex
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from millrace.cluster.requests import qsub_arguments
from millrace.errors import UserError
from millrace.files import write_json
from millrace.schedulers.base import Job, State
from millrace.schedulers.pbs import allocation
from millrace.schedulers.pbs.queue import (
    DELETED,
    BusyError,
    PbsQueue,
    carried,
    seconds,
)

DIRECTORY = Path(".snakemake", "pbs")
LOGS = Path("logs", "pbs")

# A job that asks to be started again this soon has done nothing but start; after some of them in a row
# another one would not do better.
SHORT_S = 60.0
SHORT_IN_A_ROW = 5

_GOING_S = 20.0
"""How long a deleted job may take to end: PBS kills ten seconds after the warning."""

_HEADER = """#!/bin/bash
{exports}
export {started}=$(date +%s)
trap 'echo $? > {ended}/"$PBS_JOBID"' EXIT
# A warning must not end the shell before the training that it waits for.
trap : TERM
"""


@dataclass(frozen=True)
class Submission:
    """A job as Snakemake knows it."""

    ids: tuple[str, ...]
    """Its PBS jobs, oldest first; Snakemake knows the first."""
    script: str
    arguments: tuple[str, ...]
    """Options of qsub."""
    target: str
    """Digest of the output files."""
    definition: str
    """Digest of rule, wildcards, parameters and input: what the job does, not with which resources."""
    short: int = 0
    """How many of the last jobs in a row asked to be started again within `SHORT_S`."""


class Records:
    """The submissions of a working directory.

    Parameters
    ----------
    directory : Path
    queue : PbsQueue
    """

    def __init__(self, directory: Path = DIRECTORY, queue: PbsQueue | None = None) -> None:
        self.directory = directory.absolute()
        self.queue = queue or PbsQueue()

    def submit(self, script: Path, options: Sequence[str] = ()) -> str:
        """Submit a job script of Snakemake, unless its job is already there; returns the id.

        Parameters
        ----------
        script : Path
        options : sequence of str
            More options for qsub.

        Raises
        ------
        UserError
            The script is none of Snakemake's, or PBS refuses the job.
        """
        text = script.read_text()
        properties = read_properties(text, script)
        target, definition = _digests(properties)
        with self._lock():
            if (before := self._of_target(target)) is not None:
                if self._goes_on(before, definition):
                    return before.ids[0]
                self._forget(before)
            arguments = [*_arguments(properties), *options]
            copy = self._write_script(text, target, arguments)
            id = self.queue.submit_script([*arguments, str(copy)])
            submission = Submission((id,), str(copy), tuple(arguments), target, definition)
            self._write(submission)
            write_json(self.directory / "targets" / f"{target}.json", {"first": id})
        return id

    def status(self, id: str) -> str:
        """How a job is, in the words of the plugin: running, success or failed.

        A job that asked for it is submitted again and counts as running.
        """
        submission = self._read(id) or Submission((id,), "", (), "", "")
        last = submission.ids[-1]
        job = self.queue.jobs([last])[last]
        if not job.state.is_over:
            return "running"
        if job.state is State.DONE or (job.state is State.GONE and self._exit_code(last) == 0):
            return "success"
        if self._asks_again(submission, job):
            with self._lock():
                return self._submit_again(id, last)
        _say(f"PBS job {last}: {job.reason}")
        return "failed"

    def cancel(self, ids: Iterable[str]) -> None:
        """Delete jobs, and have them not submitted again."""
        ids = list(ids)
        # First the marks: from here on `status` deletes what it is just submitting again.
        (self.directory / "cancelled").mkdir(parents=True, exist_ok=True)
        for id in ids:
            (self.directory / "cancelled" / id).touch()
        submissions = [self._read(id) for id in ids]
        last = [s.ids[-1] if s else id for s, id in zip(submissions, ids, strict=True)]
        self.queue.cancel(last)

    def _goes_on(self, before: Submission, definition: str) -> bool:
        """Whether the job submitted before for the same files is still there and does the same.

        One that is still there but must not go on is deleted.
        """
        last = before.ids[-1]
        if self._is_over(last):
            return False
        if before.definition == definition and not self._is_cancelled(before):
            _say(f"PBS job {last} is already there for the same files; taking it over")
            return True
        # Cancelled and still ending, or started with other settings.
        _say(f"PBS job {last} writes the same files and must not go on; deleting it")
        self.cancel([before.ids[0]])
        end = time.monotonic() + _GOING_S
        while not self._is_over(last) and time.monotonic() < end:
            time.sleep(0.5)
        return False

    def _asks_again(self, submission: Submission, job: Job) -> bool:
        if job.reason == DELETED or not submission.script or self._is_cancelled(submission):
            return False
        return allocation.asked_again_after(self.directory, job.id) is not None

    def _submit_again(self, id: str, last: str) -> str:
        submission = self._read(id)
        after_s = allocation.asked_again_after(self.directory, last)
        if submission is None or submission.ids[-1] != last or after_s is None:
            return "running"  # somebody else was faster
        short = submission.short + 1 if after_s < SHORT_S else 0
        if short > SHORT_IN_A_ROW:
            walltime = _walltime(submission.arguments)
            _say(
                f"PBS job {last}: asked to be started again, as the {SHORT_IN_A_ROW} before it, less than "
                f"{SHORT_S:g} s after its start; give it more time than {walltime or 'the default'}"
            )
            return "failed"
        try:
            new = self.queue.submit_script([*submission.arguments, submission.script])
        except BusyError as error:
            _say(f"{error}; trying again later")
            return "running"
        except UserError as error:
            _say(str(error))
            return "failed"
        self._write(replace(submission, ids=(*submission.ids, new), short=short))
        _say(f"PBS job {last} goes on as {new}")
        if self._is_cancelled(submission):
            self.queue.cancel([new])
        return "running"

    def _is_over(self, id: str) -> bool:
        return self.queue.jobs([id])[id].state.is_over

    def _is_cancelled(self, submission: Submission) -> bool:
        return (self.directory / "cancelled" / submission.ids[0]).exists()

    def _exit_code(self, id: str) -> int | None:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self.directory / "ended" / id).read_text())
        return None

    def _write_script(self, text: str, target: str, arguments: Sequence[str]) -> Path:
        """Copy a job script, with the environment it needs."""
        ended = self.directory / "ended"
        ended.mkdir(parents=True, exist_ok=True)
        exports = carried() | {allocation.RECORDS: str(self.directory)}
        if walltime := _walltime(arguments):
            exports[allocation.WALLTIME] = f"{seconds(walltime):.0f}"
        header = _HEADER.format(
            exports="\n".join(f"export {name}={shlex.quote(v)}" for name, v in exports.items()),
            started=allocation.STARTED,
            ended=shlex.quote(str(ended)),
        )
        copy = self.directory / "scripts" / f"{target}.{uuid.uuid4().hex[:8]}.sh"
        copy.parent.mkdir(exist_ok=True)
        copy.touch(mode=0o700)  # the workflow may hand over secrets
        copy.write_text(header + text)
        return copy

    def _write(self, submission: Submission) -> None:
        write_json(self.directory / "jobs" / f"{submission.ids[0]}.json", asdict(submission))

    def _read(self, id: str) -> Submission | None:
        return _read_submission(self.directory / "jobs" / f"{id}.json")

    def _of_target(self, target: str) -> Submission | None:
        try:
            first = json.loads((self.directory / "targets" / f"{target}.json").read_text())["first"]
        except (FileNotFoundError, ValueError, KeyError):
            return None
        return self._read(first)

    def _forget(self, submission: Submission) -> None:
        names = [f"jobs/{submission.ids[0]}.json", f"cancelled/{submission.ids[0]}"]
        for id in submission.ids:
            names += [f"again/{id}", f"ended/{id}", f"nodes/{id}.sh"]
        for path in [self.directory / name for name in names] + [Path(submission.script)]:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One process at a time submits; another file system's missing flock is not an error."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("a") as file:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def read_properties(text: str, script: Path) -> dict[str, Any]:
    """Read what Snakemake writes into a job script about its job."""
    match = re.search(r"^# properties = (\{.*\})$", text, re.MULTILINE)
    if match is None:
        raise UserError(
            f"{script}: expected a job script of Snakemake, with a line '# properties = {{...}}'"
        )
    properties = json.loads(match[1])
    assert isinstance(properties, dict)
    return properties


def _digests(properties: Mapping[str, Any]) -> tuple[str, str]:
    """Digests of the output files and of what the job does."""
    who = [properties.get(key) for key in ("rule", "groupid", "wildcards")]
    # Snakemake leaves long lists of files out.
    outputs = properties.get("output") or who
    does = [*who, *(properties.get(key) for key in ("params", "input"))]
    digests = [json.dumps(value, sort_keys=True).encode() for value in (outputs, does)]
    target, definition = (hashlib.sha256(value).hexdigest()[:16] for value in digests)
    return target, definition


def _arguments(properties: Mapping[str, Any]) -> list[str]:
    """Options of qsub for a job of Snakemake."""
    name = str(properties.get("rule") or properties.get("groupid") or "snakemake")
    log = (LOGS / name).absolute()
    log.mkdir(parents=True, exist_ok=True)
    resources = dict(properties.get("resources") or {})
    resources.setdefault("ncpus", properties.get("threads", 1))
    return qsub_arguments(resources, name, f"{log}/")


def _walltime(arguments: Iterable[str]) -> str | None:
    """The last walltime in options of qsub."""
    found = re.findall(r"\bwalltime=([\d:]+)", " ".join(arguments))
    return found[-1] if found else None


def _read_submission(path: Path) -> Submission | None:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    content |= {key: tuple(content[key]) for key in ("ids", "arguments")}
    return Submission(**content)


def _say(sentence: str) -> None:
    """To the console of Snakemake; the standard output is read by its plugin."""
    print(f"millrace: {sentence}", file=sys.stderr, flush=True)
