"""Trainings that take long and little of the processors, however fast the machine is, and their ranks."""

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import psutil


@contextlib.contextmanager
def slowed(epochs, trainers, seconds=0.4):
    """Stop processes for some seconds after each epoch: enough of a training is left to be disturbed.

    ``epochs`` gives the number of epochs done, ``trainers`` the processes.
    """
    over = threading.Event()

    def work():
        done = 0
        while not over.wait(0.05):
            if epochs() == done:
                continue
            done = epochs()
            stopped = trainers()
            _send(stopped, signal.SIGSTOP)
            over.wait(seconds)
            _send(stopped, signal.SIGCONT)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Gate:
    """Holds Python processes where they import a module, until it is opened.

    Those whose program or script has ``of`` in its name, at the module ``at``; ``folder`` is a new one.
    """

    def __init__(self, folder, of, at):
        self._folder = folder
        folder.mkdir()
        path = [str(Path(__file__).parent / "gate"), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            "MILLRACE_TEST_GATE": str(folder),
            "MILLRACE_TEST_GATE_OF": of,
            "MILLRACE_TEST_GATE_AT": at,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
        }

    def wait(self, limit=240.0):
        end = time.monotonic() + limit
        while not (self._folder / "reached").exists():
            assert time.monotonic() < end, "nothing came to the gate"
            time.sleep(0.02)

    def open(self):
        (self._folder / "open").touch()


def wait_between_questions(head, words, seconds=2.0, limit=240.0):
    """Wait until Snakemake has asked its scheduler for states, and not for some seconds since.

    While it asks, and until it has read the answers, executor plug-ins have forgotten their jobs: one that
    is interrupted then cancels none. ``words`` name the commands that ask; it must not ask every few
    seconds.
    """
    end, last, looks = time.monotonic() + limit, None, Counter()
    while last is None or time.monotonic() - last < seconds:
        assert time.monotonic() < end, f"never asked, or always: {words}"
        for child in _young(looks):
            with contextlib.suppress(psutil.Error):
                command = " ".join(child.cmdline())
                if any(word in command for word in words) and head.pid in map(
                    _pid, child.parents()
                ):
                    last = time.monotonic()
        time.sleep(0.005)


def _young(looks, most=5):
    """Processes that were looked at a few times only: a question takes less time than a look at all."""
    for pid in psutil.pids():
        if looks[pid] < most:
            looks[pid] += 1
            with contextlib.suppress(psutil.Error):
                yield psutil.Process(pid)


def _pid(process):
    return process.pid


def is_rank(process):
    """Whether a process is a rank: forked from torchrun, it has a name of its own but the same command."""
    with contextlib.suppress(psutil.Error):
        return process.name().startswith("rank ")
    return False


def _send(processes, number):
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
