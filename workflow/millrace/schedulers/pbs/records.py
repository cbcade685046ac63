"""Jobs that Snakemake submits through PBS: what was submitted for which files, and how it continues.

Snakemake's plugin knows a job by the id that `submit` printed. Behind this id is a chain of PBS jobs: one
that requested it (`PbsAllocation.requeue`) is submitted again under a new id. Snakemake itself may have
been killed and started again while a job runs: the job is then found by its output files.

All records are in ``.snakemake/pbs/`` of the working directory, which the jobs see as well::

    jobs/<first id>.json       the chain, see `Submission`
    targets/<digest>.json      output files -> first id
    scripts/<digest>.<n>.sh    job scripts, because Snakemake removes its own
    nodes/<id>.<n>/            what the nodes of a job say, while it runs on several
    memory/<rule and wildcards>.json  times at which a job lacked memory
    again/<id>                 the job requested to be started again
    ended/<id>                 exit code, written by the job's shell
    cancelled/<first id>       never submit this chain again
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from millrace.errors import UserError
from millrace.files import write_json
from millrace.schedulers.base import State
from millrace.schedulers.memory import lacks_memory, note_shortage
from millrace.schedulers.pbs import allocation
from millrace.schedulers.pbs.queue import (
    DELETED,
    MARK_START,
    NO_STATUS,
    BusyError,
    PbsQueue,
    exports,
    patiently,
    seconds,
)
from millrace.schedulers.requests import qsub_arguments

# A job that requests to be started again this soon has done nothing but start; after several of them in a
# row another one would not succeed either.
_SHORT_S = 60.0
MAX_SHORT_JOBS = 5
# How long a deleted job may take to end: PBS kills it ten seconds after the warning.
_END_S = 20.0

_HEADER = """#!/bin/bash
{exports}
{mark_start}
trap 'echo $? > "${records}/ended/$PBS_JOBID"' EXIT
# A warning must not end the shell before the training that it waits for.
trap : TERM
"""


@dataclass(frozen=True)
class Submission:
    """A job of Snakemake."""

    ids: tuple[str, ...]
    """Ids of its PBS jobs, oldest first; Snakemake knows the first."""
    script: str = ""
    arguments: tuple[str, ...] = ()
    """Options of qsub."""
    target: str = ""
    """Digest of the output files."""
    definition: str = ""
    """Digest of rule, wildcards, parameters and input: what the job does, not with which resources."""
    short: int = 0
    """How many of the last jobs in a row requested to be started again within a minute."""
    rule: str = ""
    wildcards: Mapping[str, str] = field(default_factory=dict)
    logs: tuple[str, ...] = ()
    """Files to which the rule writes what it says."""


class Records:
    """The submissions from the current directory."""

    def __init__(self) -> None:
        self.directory = Path(".snakemake", "pbs").absolute()
        self.queue = PbsQueue()

    def submit(self, script: Path, options: Sequence[str] = ()) -> str:
        """Submit a job script of Snakemake, unless its job already exists, and return the id.

        Parameters
        ----------
        script : Path
        options : sequence of str
            Further options of qsub.

        Raises
        ------
        UserError
            The script is not one of Snakemake's, or PBS refuses the job.
        """
        text = os.fsdecode(script.read_bytes())
        properties = _properties(text, script)
        target, definition = _digests(properties)
        submission = Submission(
            ids=(),
            arguments=(*_arguments(properties), *options),
            target=target,
            definition=definition,
            rule=str(properties.get("rule") or ""),
            wildcards=dict(properties.get("wildcards") or {}),
            logs=tuple(properties.get("log") or ()),
        )
        # Each attempt takes the lock anew: others must not wait for a server that is down.
        return patiently(lambda: self._submit(text, submission))

    def _submit(self, text: str, wanted: Submission) -> str:
        with self._lock():
            if (before := self._of_target(wanted.target)) is not None:
                if self._can_continue(before, wanted.definition):
                    return before.ids[0]
                self._forget(before)
            copy = self._write_script(text, wanted.target, wanted.arguments)
            try:
                id = self.queue.submit_script([*wanted.arguments, str(copy)])
            except UserError:
                copy.unlink()
                raise
            self._write(replace(wanted, ids=(id,), script=str(copy)))
            write_json(self.directory / "targets" / f"{wanted.target}.json", {"first": id})
        return id

    def status(self, id: str) -> str:
        """Return the state of a job in the terms of the plugin: running, success or failed.

        A job that requested it is submitted again and counts as running.
        """
        submission = self._read(id) or Submission((id,))
        last = submission.ids[-1]
        job = self.queue.jobs([last])[last]
        if not job.state.is_over:
            return "running"
        # Where PBS says nothing of the end, the job's own shell has.
        untold = job.state is State.GONE or job.reason == NO_STATUS
        if job.state is State.DONE or (untold and self._exit_code(last) == 0):
            return "success"
        may_continue = submission.script and not self._is_cancelled(submission)
        if job.reason != DELETED and may_continue and self._requeued_after(last) is not None:
            with self._lock():
                return self._submit_again(id, last)
        code = self._exit_code(last) if untold else None
        reason = job.reason if code is None else f"exit code {code}"
        if job.lacked_memory or lacks_memory(_outputs(submission, last)):
            note_shortage(submission.rule, submission.wildcards)
            reason += "; it needed more memory than it had"
        _print(f"PBS job {last}: {reason}")
        return "failed"

    def cancel(self, ids: Iterable[str]) -> None:
        """Delete jobs, and prevent that they are submitted again."""
        ids = list(ids)
        # These files come first: from here on `status` deletes a job that it is just submitting again.
        (self.directory / "cancelled").mkdir(parents=True, exist_ok=True)
        for id in ids:
            (self.directory / "cancelled" / id).touch()
        self.queue.cancel([(self._read(id) or Submission((id,))).ids[-1] for id in ids])

    def _can_continue(self, before: Submission, definition: str) -> bool:
        """Whether the job submitted before for the same files still exists and does the same.

        A job that still exists but must not continue is deleted.
        """
        last = before.ids[-1]
        if self._is_over(last):
            return False
        if before.definition == definition and not self._is_cancelled(before):
            _print(f"PBS job {last} already exists for the same files; continuing with it")
            return True
        # It was cancelled and is still ending, or it was started with other settings.
        _print(f"PBS job {last} writes the same files and must not continue; deleting it")
        self.cancel([before.ids[0]])
        end = time.monotonic() + _END_S
        while not self._is_over(last) and time.monotonic() < end:
            time.sleep(0.5)
        return False

    def _submit_again(self, id: str, last: str) -> str:
        submission = self._read(id)
        after_s = self._requeued_after(last)
        if submission is None or submission.ids[-1] != last or after_s is None:
            return "running"  # another process was faster
        short = submission.short + 1 if after_s < _SHORT_S else 0
        if short > MAX_SHORT_JOBS:
            walltime = _walltime(submission.arguments) or "the default"
            _print(
                f"PBS job {last}: requested to be started again, as the {MAX_SHORT_JOBS} before it, less "
                f"than {_SHORT_S:g} s after its start; give it more time than {walltime}"
            )
            return "failed"
        try:
            new = self.queue.submit_script([*submission.arguments, submission.script])
        except BusyError as error:
            _print(f"{error}; trying again later")
            return "running"
        except UserError as error:
            _print(str(error))
            return "failed"
        self._write(replace(submission, ids=(*submission.ids, new), short=short))
        _print(f"PBS job {last} continues as {new}")
        if self._is_cancelled(submission):
            self.queue.cancel([new])
        return "running"

    def _is_over(self, id: str) -> bool:
        return self.queue.jobs([id])[id].state.is_over

    def _requeued_after(self, id: str) -> float | None:
        """Seconds from the start of a job to `PbsAllocation.requeue`; None: not called."""
        try:
            return float(json.loads((self.directory / "again" / id).read_text())["after_s"])
        except FileNotFoundError:
            return None

    def _is_cancelled(self, submission: Submission) -> bool:
        return (self.directory / "cancelled" / submission.ids[0]).exists()

    def _exit_code(self, id: str) -> int | None:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self.directory / "ended" / id).read_text())
        return None

    def _write_script(self, text: str, target: str, arguments: Sequence[str]) -> Path:
        """Copy a job script, with the environment that it needs."""
        (self.directory / "ended").mkdir(parents=True, exist_ok=True)
        variables = {allocation.RECORDS: str(self.directory)}
        if walltime := _walltime(arguments):
            variables[allocation.WALLTIME] = f"{seconds(walltime):.0f}"
        header = _HEADER.format(
            exports=exports(variables), mark_start=MARK_START, records=allocation.RECORDS
        )
        copy = self.directory / "scripts" / f"{target}.{uuid.uuid4().hex[:8]}.sh"
        copy.parent.mkdir(exist_ok=True)
        copy.touch(mode=0o700)  # the workflow may pass secrets
        copy.write_bytes(os.fsencode(header + text))
        return copy

    def _write(self, submission: Submission) -> None:
        write_json(self.directory / "jobs" / f"{submission.ids[0]}.json", asdict(submission))

    def _read(self, id: str) -> Submission | None:
        try:
            content = json.loads((self.directory / "jobs" / f"{id}.json").read_text())
        except FileNotFoundError:
            return None
        return Submission(**content | {key: tuple(content[key]) for key in ("ids", "arguments")})

    def _of_target(self, target: str) -> Submission | None:
        try:
            first = json.loads((self.directory / "targets" / f"{target}.json").read_text())["first"]
        except (FileNotFoundError, ValueError, KeyError):
            return None
        return self._read(first)

    def _forget(self, submission: Submission) -> None:
        names = [f"jobs/{submission.ids[0]}.json", f"cancelled/{submission.ids[0]}"]
        for id in submission.ids:
            names += [f"again/{id}", f"ended/{id}"]
            for left in (self.directory / "nodes").glob(f"{id}.*"):  # by a job that was killed
                shutil.rmtree(left, ignore_errors=True)
        for path in [self.directory / name for name in names] + [Path(submission.script)]:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Let one process at a time submit; a file system without flock is not an error."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("a") as file:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _properties(text: str, script: Path) -> dict[str, Any]:
    """Description of the job that Snakemake writes into a job script."""
    match = re.search(r"^# properties = (\{.*\})$", text, re.MULTILINE)
    if match is None:
        raise UserError(
            f"{script}: expected a job script of Snakemake, with a line '# properties = {{...}}'"
        )
    return dict(json.loads(match[1]))


def _digests(properties: Mapping[str, Any]) -> tuple[str, str]:
    """Digests of the output files and of what the job does."""
    name = [properties.get(key) for key in ("rule", "groupid", "wildcards")]
    # Snakemake omits long lists of files.
    outputs = properties.get("output") or name
    definition = [*name, *(properties.get(key) for key in ("params", "input"))]
    texts = [json.dumps(value, sort_keys=True).encode() for value in (outputs, definition)]
    first, second = (hashlib.sha256(text).hexdigest()[:16] for text in texts)
    return first, second


def _arguments(properties: Mapping[str, Any]) -> list[str]:
    """Options of qsub for a job of Snakemake."""
    name = str(properties.get("rule") or properties.get("groupid") or "snakemake")
    log = Path("logs", "pbs", name)  # relative, see `millrace.schedulers.base.from_here`
    log.mkdir(parents=True, exist_ok=True)
    resources = dict(properties.get("resources") or {})
    resources.setdefault("ncpus", properties.get("threads", 1))
    return qsub_arguments(resources, name, f"{log}/")


def _outputs(submission: Submission, id: str) -> list[Path]:
    """Files with what a job and PBS said."""
    given = submission.arguments
    folders = [Path(given[i + 1]) for i, option in enumerate(given[:-1]) if option == "-o"]
    return [*(folder / f"{id}.OU" for folder in folders), *map(Path, submission.logs)]


def _walltime(arguments: Iterable[str]) -> str | None:
    """Walltime in options of qsub; the last one counts."""
    found = re.findall(r"\bwalltime=([\d:]+)", " ".join(arguments))
    return found[-1] if found else None


def _print(sentence: str) -> None:
    """Print to the console of Snakemake; the plugin reads the standard output."""
    print(f"millrace: {sentence}", file=sys.stderr, flush=True)
