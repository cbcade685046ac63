"""Trainings that take long and little of the processors, however fast the machine is."""

import contextlib
import signal
import threading

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


def _send(processes, number):
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
