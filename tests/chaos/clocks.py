"""Clocks that are set by hours and days, between the segments of a training and within them."""

import os
import time
from pathlib import Path

from cases import OTHER, RESTORED, TRACEBACK, UNEQUAL, Outcome, Single, chance
from damages import BUG
from projects import ACTIONS, EPOCHS, TRAINED, copy_to, training, weights
from warm import TRACE, forked

KIND = "clocks"
MORE = (EPOCHS + 2, EPOCHS + 4)
SHOWN = ("runs list", "runs show", "runs watch", "runs efficiency", "runs verify")


class Clocks(Single):
    """Cases on copies of a finished project below a folder."""

    def __init__(self, finished, base: Path, folder: Path) -> None:
        self._base, self._folder = base, folder
        self._truth = ""

    def run(self, seed, number) -> Outcome:
        random = chance(seed, KIND, number)
        if not self._truth:
            project = copy_to(self._base, self._folder)
            for epoch in MORE:
                done = forked(training(epoch), project, self._folder / "said")
                assert done.code == 0, done.said
            self._truth = self._weights(project)
        project = copy_to(self._base, self._folder)
        jumps = [random.choice([-1, 1]) * random.choice([60, 5000, 86400, 3e7]) for _ in range(4)]
        work = [(training(epoch), jumps[2 * i : 2 * i + 2]) for i, epoch in enumerate(MORE)]
        name = random.choice(SHOWN)
        work.append((ACTIONS[name].work, jumps[1:3]))
        what = f"ahead by {', '.join(f'{one:.0f} s' for one in jumps)}; {name}"
        for one, (first, later) in work:
            said = self._folder / "said"
            said.unlink(missing_ok=True)
            done = forked(_with_clock(one, first, later, random.uniform(0, 0.5)), project, said)
            if TRACE in done.said or BUG in done.said:
                return Outcome(KIND, number, what, TRACEBACK, done.last)
            if done.code != 0:
                return Outcome(KIND, number, what, OTHER, f"exit code {done.code}: {done.last}")
            for path in project.rglob("*"):
                if path.is_file() and random.random() < 0.3:
                    then = time.time() + random.choice(jumps)
                    os.utime(path, (then, then))
        if self._weights(project) != self._truth:
            return Outcome(KIND, number, what, UNEQUAL, done.last)
        return Outcome(KIND, number, what, RESTORED)

    @staticmethod
    def _weights(project):
        return weights(project / f"{TRAINED}/epoch_{MORE[-1]}.ckpt")


def _with_clock(work, first, later, after):
    def patched():
        true, begun = time.time, time.monotonic()
        time.time = lambda: true() + (first if time.monotonic() - begun < after else later)
        return work()

    return patched
