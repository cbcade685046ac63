"""Parent and child processes: common death, signals that are passed on, and the library of both."""

import atexit
import ctypes
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals by which a user or a scheduler asks a process to stop."""
SHARED_SAMPLES = "MILLRACE_SHARED_SAMPLES"
"""Environment variable of ranks that are not alone on their node: a folder for what they have in common."""
_PR_SET_PDEATHSIG = 1
_LOOK_EVERY_S = 1.0
# M_MMAP_MAX: no block apart from the heap; M_TRIM_THRESHOLD: the heap never shrinks; M_TOP_PAD.
_KEEPING = {-4: 0, -1: -1, -2: 64 << 20}
_HEAD = "MILLRACE_HEAD"


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent ends, for whatever reason.

    Otherwise a worker whose torchrun agent was killed would continue to train, unseen, and hold its GPU. Of
    a parent that has ended before this call the kernel tells nothing: ``parent`` is the process that should
    be the parent, and if another one is, this process ends at once.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def dying_with_this() -> Callable[[], None]:
    """Function for the ``preexec_fn`` of a child: it dies when this process does, see `die_with_parent`."""
    return partial(die_with_parent, os.getpid())


def keep_freed_memory() -> None:
    """Have the C library keep what tensors free for the next ones, as far as it is glibc.

    By default it returns blocks of some MB to the system at once, and each new one is filled page by page
    when it is written first: up to two fifths of the time of a step on a CPU. The process holds its largest
    size, which for tensors of more than 32 MB is a tenth more than otherwise.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _KEEPING.items():
            mallopt(parameter, value)


@contextmanager
def importing() -> Iterator[None]:
    """Import without searching for cycles of references, which takes a fifth of the time of imports.

    Later searches leave out all that exists when the context ends, and forked processes share it.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def end_quickly() -> None:
    """Have this process end without a search for cycles of references among all it has imported.

    With torch that takes 0.7 s, as long as to import it; the system takes the memory back anyway.
    """
    atexit.register(gc.freeze)


def lead_jobs() -> None:
    """Have the jobs that this process starts end with it, see `stop_without_head`."""
    os.environ[_HEAD] = _identity(os.getpid()) or ""


def stop_without_head() -> None:
    """Ask this process to stop, by SIGTERM, when the Snakemake that has started it is gone.

    A Snakemake that is killed leaves the jobs of this machine behind, which nobody waits for any more: they
    would train on, and be in the way of the same command. It may be dead before its job has come to this
    call; so it is known by the environment, see `lead_jobs`, not as the parent of this process. Jobs of a
    scheduler go on: there, the process that the scheduler starts is a Snakemake that leads, too.
    """
    head = os.environ.get(_HEAD)
    # In a container with process ids of its own, nothing can be said about those of the machine.
    if not head or head.split()[0] != _namespace():
        return

    def watch() -> None:
        while _identity(int(head.split()[1])) == head:
            time.sleep(_LOOK_EVERY_S)
        print("Snakemake was killed: this job stops", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def set_name(name: str) -> None:
    """Name this process in the lists of `top` and `ps`, with at most 15 letters."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name)


def _identity(pid: int) -> str | None:
    """Namespace, id and start of a process, which no other one has; None: it does not run."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()  # a name may hold anything
    return None if state in "ZX" else f"{_namespace()} {pid} {fields[18]}"


def _namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def library_environment() -> dict[str, str]:
    """Variables with which another Python process imports this library, wherever it stands."""
    library = str(Path(__file__).parents[1])
    others = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{library}{os.pathsep}{others}" if others else library}


@contextmanager
def forwarding_signals(send: Callable[[int], None]) -> Iterator[None]:
    """Pass `STOP_SIGNALS` on to ``send`` while the context is open, instead of being ended by them.

    SIGINT is passed on as SIGTERM, which means the same: a Python that is still importing would answer it
    with a traceback.
    """

    def forward(number: int, frame: FrameType | None) -> None:
        send(signal.SIGTERM if number == signal.SIGINT else number)

    before = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
