"""The disk is full from some operation on, while something is run; then the same is run with room.

Right is the documented exit code with a sentence and nothing half-written, and then an output equal to that
of a disk with room. Without a C compiler it is the size of a file that is limited, see `full_disk.c`.
"""

import ctypes
import os
import resource
import signal
from pathlib import Path

import projects
from cases import OTHER, REFUSED, RESTORED, SILENT, TRACEBACK, UNEQUAL, Outcome, Single, chance
from damages import BUG
from projects import ACTIONS, copy_for
from warm import HUNG, TRACE, forked

from millrace.errors import ExitCode

KIND = "full-disks"
WRITING = (
    *("continue", "continue without a store", "restore", "evaluate", "predict", "summarise"),
    *("analyse scaling", "build graph", "runs backup"),
)
LEFT = ("tmp_*", "*.partial", ".launch_*")


class FullDisks(Single):
    """Cases on copies of a finished project below a folder."""

    def __init__(self, finished, base: Path, folder: Path) -> None:
        self._base, self._folder = base, folder
        self._truth: dict[str, tuple[str, int]] = {}
        name = os.environ.get("CHAOS_LIBRARY")
        self._library = ctypes.CDLL(name) if name else None

    def run(self, seed, number) -> Outcome:
        random = chance(seed, KIND, number)
        name = WRITING[number % len(WRITING)]
        action = ACTIONS[name]
        if name not in self._truth:
            self._truth[name] = self._undisturbed(action)
        made, most = self._truth[name]
        after = random.randrange(most)
        project = copy_for(action, self._base, self._folder)
        before = _content(project)
        done = self._work(action, project, after)
        what = f"{name}; full after {after} of {most}"
        result, why = _judged(done, project, before)
        if why:
            return Outcome(KIND, number, what, result, why)
        again = self._work(action, project)
        if again.code != 0:
            return Outcome(KIND, number, what, OTHER, f"does not continue: {again.last}")
        if action.made(project) != made:
            wrong = UNEQUAL if "continue" in name else SILENT
            return Outcome(KIND, number, what, wrong, again.last)
        if left := [str(path) for one in LEFT for path in project.rglob(one)]:
            return Outcome(KIND, number, what, OTHER, f"left behind: {left}")
        return Outcome(KIND, number, what, result)

    def _undisturbed(self, action):
        """What is made, and how many operations it takes, or the size of the largest file."""
        project = copy_for(action, self._base, self._folder)
        told = self._folder / "operations"

        def work():
            code = self._filled(action.work, -1)()
            told.write_text(str(self._library.chaos_seen() if self._library else 0))
            return code

        done = forked(work, project, self._folder / "said")
        assert done.code == 0, done.said
        sizes = [path.stat().st_size for path in project.rglob("*") if path.is_file()]
        return action.made(project), int(told.read_text()) or max(sizes)

    def _filled(self, work, after):
        def fill():
            if self._library:
                self._library.chaos_fill(os.fsencode(Path.cwd()), ctypes.c_long(after))
            elif after >= 0:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (after, resource.RLIM_INFINITY))

        def limited():
            projects.begin = fill
            return work()

        return limited

    def _work(self, action, project, after=None):
        said = self._folder / "said"
        said.unlink(missing_ok=True)
        work = action.work if after is None else self._filled(action.work, after)
        return forked(work, project, said)


def _judged(done, project, before):
    """The result, and why it is a failure; empty: it is none."""
    if done.code is HUNG:
        return OTHER, "it hangs"
    if TRACE in done.said or BUG in done.said:
        return TRACEBACK, done.last
    gone = [str(path) for path in before if not (project / path).exists()]
    if gone and done.code != 0:
        return OTHER, f"gone: {gone}"
    if done.code == 0:
        return RESTORED, ""
    if done.code != ExitCode.NO_SPACE or "error: " not in done.said:
        return OTHER, f"exit code {done.code}: {done.last}"
    return REFUSED, ""


def _content(project):
    """Files that must be there afterwards, too."""
    found = [path.relative_to(project) for path in project.rglob("*") if path.is_file()]
    return [path for path in found if "step_" not in str(path)]
