"""Chains of trainings whose processes are killed at any instant; the same command continues each.

A chain is a few kills after each other on one run, and ends with a start that nothing disturbs. Processes
are found by a mark in their environment, so that those which lost their parents are found, too.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import asdict
from functools import partial
from pathlib import Path

import psutil
from cases import ORPHAN, OTHER, RESTORED, TRACEBACK, UNEQUAL, Outcome, chance
from damages import BUG
from projects import request, weights
from warm import PATIENCE_S, TRACE

from millrace.processes import dying_with_this

KIND = "kills"
EPOCHS = 16
ORPHANED_S = 30.0
MARK = "CHAOS_RUN"
SEGMENT = Path(__file__).with_name("segment.py")
CLOCK = Path(__file__).parent / "clock"
VICTIMS = ("launcher", "agent", "torchrun", "rank", "all")
MODULES = {"agent": "millrace.launch.agent", "torchrun": "millrace.launch.torchrun"}
SIGNALS = (*[signal.SIGKILL] * 6, signal.SIGTERM, signal.SIGINT)
LAYOUTS = ("n1_gpu1", "n1_gpu2")


# --- processes -----------------------------------------------------------------------------------


def marked(mark: str) -> list[psutil.Process]:
    """All processes of a start, wherever they are now."""
    found, word = [], f"{MARK}={mark}".encode()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError, psutil.Error):
            if word in environ.read_bytes().split(b"\0"):
                process = psutil.Process(int(environ.parent.name))
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
    return found


def role(process, launcher: int) -> str:
    """What a process of a training is."""
    if process.pid == launcher:
        return "launcher"
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        for name, module in MODULES.items():
            if module in words[:4]:
                return (
                    "rank" if process.parent().cmdline() == words else name
                )  # forked from torchrun
    return ""


def left_over(mark: str) -> list[str]:
    """Processes of a start that are there longer than orphans may be; they are ended."""
    end = time.monotonic() + ORPHANED_S
    while (alive := marked(mark)) and time.monotonic() < end:
        time.sleep(0.05)
    told = []
    for process in alive:
        with contextlib.suppress(psutil.Error):
            told.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
            process.kill()
    return told


# --- one chain -----------------------------------------------------------------------------------


class Started:
    """A start of the same command, and what it says."""

    def __init__(self, command, folder: Path, clock: str = "") -> None:
        self.mark, self.said = uuid.uuid4().hex, folder / "said"
        environment = os.environ | {MARK: self.mark, "OMP_NUM_THREADS": "1"}
        if clock:
            path = os.pathsep.join(filter(None, [str(CLOCK), os.environ.get("PYTHONPATH", "")]))
            environment |= {"CHAOS_CLOCK": clock, "PYTHONPATH": path}
        with self.said.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=dying_with_this(),
            )

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def wait(self, seconds=PATIENCE_S) -> int | None:
        """Exit code; None: it does not end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None

    def find(self, victim: str, random) -> list[psutil.Process]:
        """The processes to kill, if they are there."""
        alive = marked(self.mark)
        if victim == "all":
            return alive
        found = [one for one in alive if role(one, self.process.pid) == victim]
        return [random.choice(found)] if found else []

    def meet(self, find, wait: float, young: bool) -> tuple[list[psutil.Process], float]:
        """Wait some seconds, if ``young`` from the start of the victims on; the victims, and the time."""
        begun = time.monotonic()
        while young and not self.is_over() and not find():
            time.sleep(0.02)
        end = (time.monotonic() if young else begun) + wait
        while not self.is_over() and time.monotonic() < end:
            time.sleep(0.005)
        while not (victims := find()) and not self.is_over():
            time.sleep(0.02)
        return victims, time.monotonic() - begun

    def text(self) -> str:
        return self.said.read_text(errors="replace")


class Kills:
    """Chains on copies of the samples of a finished project below a folder."""

    def __init__(self, finished, base: Path, folder: Path) -> None:
        self._base, self._folder = base, folder
        self._truth: dict[str, str] = {}
        self._lasts = 0.0

    def chain(self, seed, first, last):
        """Outcomes of the kills from ``first`` to before ``last``, which are on one run."""
        random = chance(seed, KIND, f"chain from {first}")
        layout = random.choice(LAYOUTS)
        if layout not in self._truth:
            self._truth[layout] = self._undisturbed(layout)
        folder = self._fresh(layout)
        for number in range(first, last):
            outcome = self._kill(seed, number, folder, layout)
            if self._is_done(folder, layout) or number == last - 1:
                outcome = self._finished(outcome, folder, layout)
                folder = self._fresh(layout)
            yield outcome

    def _kill(self, seed, number, folder, layout):
        random = chance(seed, KIND, number)
        victim, which = random.choice(VICTIMS), random.choice(SIGNALS)
        young, share = random.random() < 0.6, random.random()
        if which is signal.SIGINT:  # Ctrl-C reaches what a terminal has started, and has begun
            victim, young = "launcher", False
        ahead, later = random.choice([-86400, 0, 3600]), random.choice([-7200, 864000])
        clock = f"{ahead},{random.uniform(0, 3)},{later}" if random.random() < 0.3 else ""
        while True:
            if self._is_done(folder, layout):  # it was over before
                folder = self._fresh(layout)
            started = Started(self._command(folder), folder, clock)
            wait = share if young else share * self._lasts
            victims, at = started.meet(partial(started.find, victim, random), wait, young)
            for process in victims:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(which)
            code = started.wait()
            left = left_over(started.mark)
            if victims or code != 0:
                break
            share, self._lasts = 0.7 * share, at
        if code != 0:  # Snakemake removes what a job has made that does not end well
            for path in self._outputs(folder, layout):
                path.unlink(missing_ok=True)
        when = f"{wait:.2f} s after its start" if young else f"after {at:.2f} s"
        what = f"{layout}: {which.name} to {victim} {when}; exit code {code}"
        result, why = RESTORED, ""
        if left:
            result, why = ORPHAN, "; ".join(left)
        elif TRACE in started.text() or BUG in started.text():
            result, why = TRACEBACK, started.text()
        elif code is None or not victims:
            result, why = OTHER, f"it does not end, or not well: {started.text()[-600:]}"
        if clock:
            self._age(folder, random)
        return Outcome(KIND, number, what, result, why)

    def _finished(self, outcome, folder, layout):
        """The last kill of a run, after the start that ends it."""
        if outcome.failed:
            return outcome
        started = Started(self._command(folder), folder)
        code, left = started.wait(), left_over(started.mark)
        checkpoint = folder / f"results/train/tiny/{layout}/seed1/epoch_{EPOCHS}.ckpt"
        why, result = "", OTHER
        if left:
            result, why = ORPHAN, "; ".join(left)
        elif code != 0:
            why = f"it does not continue, exit code {code}: {started.text()[-1500:]}"
        elif weights(checkpoint) != self._truth[layout]:
            result, why = UNEQUAL, started.text()[-600:]
        elif files := _leftovers(folder):
            why = f"left behind: {files}"
        if why:
            return Outcome(KIND, outcome.number, outcome.what, result, why)
        return outcome

    def _undisturbed(self, layout):
        folder = self._fresh(layout)
        begun = time.monotonic()
        started = Started(self._command(folder), folder)
        assert started.wait() == 0, started.text()
        self._lasts = max(self._lasts, time.monotonic() - begun)
        return weights(folder / f"results/train/tiny/{layout}/seed1/epoch_{EPOCHS}.ckpt")

    def _fresh(self, layout):
        folder = self._folder / "chain"
        shutil.rmtree(folder, ignore_errors=True)
        data = folder / "results/data/small"
        data.mkdir(parents=True)
        for path in (self._base / "results/data/small").glob("*.h5"):
            os.link(path, data / path.name)
        segment = request(self._base, EPOCHS, layout, seed=1, every=EPOCHS)
        (folder / "segments.json").write_text(json.dumps([asdict(segment)]))
        return folder

    def _outputs(self, folder, layout):
        stem = folder / f"results/train/tiny/{layout}/seed1/epoch_{EPOCHS}"
        return stem.with_suffix(".ckpt"), stem.with_suffix(".json")

    def _is_done(self, folder, layout):
        return all(path.is_file() for path in self._outputs(folder, layout))

    @staticmethod
    def _command(folder):
        return [sys.executable, str(SEGMENT), str(folder / "segments.json")]

    @staticmethod
    def _age(folder, random):
        """Files whose times are those of another clock."""
        for path in folder.rglob("*"):
            if path.is_file() and random.random() < 0.3:
                then = time.time() + random.choice([-1, 1]) * random.uniform(0, 1e6)
                with contextlib.suppress(OSError):
                    os.utime(path, (then, then))


def _leftovers(folder):
    patterns = (".launch_*", "tmp_*", ".*.partial", "owner.json", ".owner.json.[0-9a-f]*")
    return [path.name for one in patterns for path in folder.glob(f"**/{one}")]
