"""A scheduler that lies about a job: the stand-in of PBS, behind a qstat and a qsub that sometimes do.

Right is that each job is submitted once, and that the last of the chain is found to have succeeded.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil
from cases import ORPHAN, OTHER, RESTORED, TRACEBACK, Outcome, Single, chance
from warm import TRACE, forked

from millrace.schedulers.pbs import queue
from millrace.schedulers.pbs.__main__ import main as pbs

BIN = Path(__file__).parents[1] / "cluster/pbs/bin"
KIND = "lies"
ENDED_S = 90.0
LIES = {
    "nothing": "",
    "another job": "Job Id: 999.pbs\n    Job_Name = other\n    job_state = F\n    Exit_status = 1\n",
    "an error": "qstat: cannot connect to server pbs (errno=111)\n",
    "unknown state": None,
    "late": None,
    "cut": None,
    "busy": None,
}
_LIAR = """#!{python} -SE
import fcntl, os, random, subprocess, sys, time
folder, real, program = {folder!r}, {real!r}, {program!r}
lies = {lies!r}
with open(folder + "/calls", "a+") as calls:
    fcntl.flock(calls, fcntl.LOCK_EX)
    calls.write(".")
    number = calls.tell()
chance = random.Random({seed!r} + f"/{{number}}")
lie = chance.choice(sorted(lies)) if chance.random() < 0.6 else "truth"
if program != "qstat" and lie not in ("late", "busy"):
    lie = "truth"
if lie == "late":
    time.sleep(chance.uniform(0.2, 2.0))
if lie in ("truth", "late"):
    os.execv(real, [real, *sys.argv[1:]])
if lie == "busy":
    sys.exit("Connection refused\\n" + program + ": cannot connect to server pbs (errno=111)")
text = lies[lie]
if text is None:
    text = subprocess.run([real, *sys.argv[1:]], stdout=subprocess.PIPE, text=True).stdout
    if lie == "cut":
        text = text[: chance.randrange(len(text) + 1)]
    else:
        text = "\\n".join(
            "    job_state = ?" if "job_state" in one else one for one in text.splitlines()
        )
sys.stdout.write(text)
"""
# A job asks to be started again until it has done all; after more than a minute, or so it says.
_JOB = """#!/bin/bash
# properties = {properties}
cd {here}
mkdir running || touch twice
sleep 0.3
while [ -e hold ]; do sleep 0.05; done
echo done >> count
rmdir running
if [ $(wc -l < count) -lt {jobs} ]; then
  mkdir -p .snakemake/pbs/again
  echo '{{"after_s": 100.0}}' > ".snakemake/pbs/again/$PBS_JOBID"
  exit 1
fi
touch out.txt
"""


class Lies(Single):
    """Cases below a folder."""

    def __init__(self, finished, base: Path, folder: Path) -> None:
        self._folder = folder

    def run(self, seed, number) -> Outcome:
        random = chance(seed, KIND, number)
        jobs = random.randint(1, 3)
        folder = self._folder / "lies"
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("pbs", "bin", "work"):
            (folder / name).mkdir(parents=True)
        self._write_liars(folder, f"{seed}/{number}")
        said = folder / "said"
        done = forked(lambda: _chain(folder, jobs, random.random() < 0.5), folder / "work", said)
        submitted = len(list((folder / "pbs/jobs").glob("*.json")))
        what = f"{jobs} jobs"
        result, why = RESTORED, ""
        if left := _end_all(folder):
            result, why = ORPHAN, str(left)
        elif TRACE in done.said:
            result, why = TRACEBACK, done.last
        elif done.code != 0:
            result, why = OTHER, f"exit code {done.code}: {done.last}"
        elif submitted != jobs:
            result, why = OTHER, f"{submitted} jobs were submitted: {done.last}"
        return Outcome(KIND, number, what, result, why)

    def _write_liars(self, folder, seed):
        for program in ("qstat", "qsub", "qdel"):
            path = folder / "bin" / program
            path.write_text(
                _LIAR.format(
                    python=sys.executable,
                    folder=str(folder),
                    real=str(BIN / program),
                    program=program,
                    lies=LIES,
                    seed=f"{seed}/{program}",
                )
            )
            path.chmod(0o755)


def _chain(folder, jobs, killed):
    """Submit a job, and ask for it until its chain is over; Snakemake may start again meanwhile."""
    os.environ["PBS_STANDIN"] = str(folder / "pbs")
    os.environ["PATH"] = os.pathsep.join([str(folder / "bin"), str(BIN), os.environ["PATH"]])
    for name in [name for name in os.environ if name.startswith(("MILLRACE_", "PBS_JOB"))]:
        del os.environ[name]
    queue.PAUSES_S, queue.SUBMISSION_PAUSES_S = (0.05,), (0.1,) * 50
    script = Path("job.sh")
    properties = {
        "rule": "train_segment",
        "output": ["out.txt"],
        "wildcards": {"seed": "0"},
        "log": ["log.txt"],
        "resources": {"mem_mb": 100, "runtime": 10, "ncpus": 1},
    }
    here = Path.cwd()
    script.write_text(_JOB.format(properties=json.dumps(properties), here=here, jobs=jobs))
    hold = Path("hold")
    if killed:  # the job lives for certain when Snakemake starts again
        hold.touch()
    id, end = _said(["submit", str(script)]), time.monotonic() + ENDED_S
    while (state := _said(["status", id])) == "running":
        if killed and Path("running").exists():
            killed, id = False, _said(["submit", str(script)])
            hold.unlink()
        if time.monotonic() > end:
            print("it is never found to be over")
            return 1
        time.sleep(0.05)
    print(state)
    if Path("twice").exists():
        print("two jobs of one run")
    return int(state != "success" or not Path("out.txt").exists() or Path("twice").exists())


def _said(arguments):
    """The line that a command prints, as Snakemake's plugin reads it."""
    read, write = os.pipe()
    kept = os.dup(1)
    os.dup2(write, 1)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    try:
        code = pbs(arguments)
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(write)
    sys.stdout = sys.stderr
    with open(read) as pipe:  # noqa: PTH123
        words = pipe.read().split()
    print(f"{arguments[0]}: {' '.join(words)} ({code})")
    return words[0] if words else ""


def _end_all(folder):
    """Processes that the stand-in has left, which are ended."""
    mark, end = f"PBS_STANDIN={folder / 'pbs'}".encode(), time.monotonic() + 30
    while True:
        left = []
        for process in psutil.process_iter():
            try:
                environ = Path(f"/proc/{process.pid}/environ").read_bytes()
            except OSError:
                continue
            if mark in environ.split(b"\0") and process.pid != os.getpid():
                left.append(process)
        if not left or time.monotonic() > end:
            for process in left:
                os.kill(process.pid, signal.SIGKILL)
            return left
        time.sleep(0.1)
