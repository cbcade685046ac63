"""Kills in the true workflow on this machine: Snakemake, its jobs, launchers and ranks."""

import contextlib
import shutil
import time
from functools import partial
from pathlib import Path

import psutil
from cases import ORPHAN, OTHER, RESTORED, TRACEBACK, UNEQUAL, Outcome, chance
from damages import BUG
from forked_snakemake import snakemake
from kills import Started, left_over, role
from project import Project
from projects import weights
from warm import TRACE

KIND = "heads"
EPOCHS = 30
VICTIMS = ("head", "head", "script", "agent", "torchrun", "rank")
RUN = "tiny/n1_gpu1/seed5"


class Heads:
    """Chains on copies of a finished project below a folder."""

    def __init__(self, finished: Project, base: Path, folder: Path) -> None:
        self._finished, self._folder = finished, folder
        self._truth, self._lasts = "", 0.0

    def chain(self, seed, first, last):
        """Outcomes of the kills from ``first`` to before ``last``, which are on one run."""
        if not self._truth:
            project = self._fresh()
            begun = time.monotonic()
            project.run("--", self._target)
            self._lasts = time.monotonic() - begun
            self._truth = weights(project.path(self._target))
        project = self._fresh()
        for number in range(first, last):
            outcome = self._kill(seed, number, project)
            if project.path(self._target).exists() or number == last - 1:
                outcome = self._finish(outcome, project)
                project = self._fresh()
            yield outcome

    _target = f"results/train/{RUN}/epoch_{EPOCHS}.ckpt"

    def _kill(self, seed, number, project):
        random = chance(seed, KIND, number)
        victim, share, young = random.choice(VICTIMS), random.random(), random.random() < 0.4
        while True:
            if project.path(self._target).exists():  # it was over before
                project = self._fresh()
            started = Started(project.command("--", self._target), project.root)
            wait = share if young else share * self._lasts
            victims, at = started.meet(partial(self._find, started, victim, random), wait, young)
            for process in victims:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            code = started.wait()
            left = left_over(started.mark)
            if victims or code != 0:
                break
            share, self._lasts = 0.7 * share, at
        when = f"{wait:.2f} s after its start" if young else f"after {at:.2f} s"
        what = f"SIGKILL to {victim} {when}; exit code {code}"
        said = started.text() + self._logs(project)
        result, why = RESTORED, ""
        if left:
            result, why = ORPHAN, "; ".join(left)
        elif TRACE in said or BUG in said:
            result, why = TRACEBACK, said[-3000:]
        elif code is None or not victims:
            result, why = OTHER, f"it does not end, or not well: {said[-1500:]}"
        if victim == "head" and victims:
            snakemake(project.command("--unlock")[3:], project.root, project.environment())
        return Outcome(KIND, number, what, result, why)

    def _find(self, started, victim, random):
        head = started.process.pid
        roles = {
            "head": lambda one: one.pid == head,
            "script": lambda one: any("train_segment.py" in word for word in one.cmdline()[:3]),
        }
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in [psutil.Process(head), *psutil.Process(head).children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    if roles[victim](one) if victim in roles else role(one, 0) == victim:
                        found.append(one)
        return [random.choice(found)] if found else []

    def _finish(self, outcome, project):
        if outcome.failed:
            return outcome
        done = project.run("--", self._target, check=False)
        if done.returncode:
            said = (done.stdout + done.stderr)[-1500:]
            why = f"it does not continue, exit code {done.returncode}: {said}"
            return Outcome(KIND, outcome.number, outcome.what, OTHER, why)
        if weights(project.path(self._target)) != self._truth:
            return Outcome(KIND, outcome.number, outcome.what, UNEQUAL, self._logs(project))
        if left := [*project.root.glob("runs/**/tmp_*"), *project.root.glob("runs/**/.launch_*")]:
            return Outcome(KIND, outcome.number, outcome.what, OTHER, f"left behind: {left}")
        return outcome

    def _fresh(self):
        shutil.rmtree(self._folder / "chain", ignore_errors=True)
        project = self._finished.copy(self._folder / "chain")
        train = {"epochs": EPOCHS, "milestone_every": EPOCHS}
        project.config["experiments"]["tiny"]["train"] |= train
        project.config["run"]["seeds"] = [5]
        return project

    @staticmethod
    def _logs(project):
        logs = project.root.glob(f"logs/train_segment/{RUN}/*.log")
        return "".join(path.read_text(errors="replace") for path in logs)
