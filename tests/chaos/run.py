"""Faults of all kinds at random: each case can be repeated by its seed and number.

    python tests/chaos/run.py --seed 1 --kills 300 --damages 1000 --full-disks 100
    python tests/chaos/run.py --seed 1 --only damages:137

Prints what became of each case that failed, and one table; the exit code is 1 if any did.
"""

import argparse
import functools
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
for _folder in (HERE, HERE.parent, HERE.parent / "unit/scaling"):
    sys.path.insert(0, str(_folder))
os.environ.setdefault("OMP_NUM_THREADS", "1")


LIBRARY = "CHAOS_LIBRARY"
KINDS = {
    "damages": ("damages", "Damages", 1, "of a file or a step of a finished project"),
    "full-disks": ("full_disks", "FullDisks", 1, "full from some operation on"),
    "clocks": ("clocks", "Clocks", 1, "set between and within segments"),
    "lies": ("lies", "Lies", 1, "of the scheduler about a chain of jobs"),
    "kills": ("kills", "Kills", 8, "of a process of a training, at any instant"),
    "heads": ("heads", "Heads", 6, "of a process of the whole workflow on this machine"),
}
"""Module, class, length of a chain and explanation of each option."""


def main() -> int:
    """Run the command line."""
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="millrace_chaos_") as name:
        if LIBRARY in os.environ:
            del os.environ["LD_PRELOAD"]
            return _run(options, Path(name).resolve())
        environment = _with_full_disks(Path(name))
        return subprocess.run([sys.executable, *sys.orig_argv[1:]], env=environment).returncode


def _run(options, scratch):
    from cases import table

    begun, outcomes, chains = time.monotonic(), [], list(_chains(options))
    base = _Base(options.project, scratch)
    total = sum(last - first for _, first, last in chains)
    for kind, first, last in chains:
        for one in base.driver(kind).chain(options.seed, first, last):
            outcomes.append(one)
            if one.failed or options.verbose:
                repeat = f"--seed {options.seed} --only {kind}:{one.number}"
                print(f"{one.result.upper()}  {one.what}  [{repeat}]", flush=True)
                if one.why:
                    print("    " + one.why.replace("\n", "\n    "), flush=True)
            if len(outcomes) % 50 == 0:
                print(f"{time.monotonic() - begun:6.0f} s  {len(outcomes)} of {total}", flush=True)
    print(table(outcomes))
    failed = sum(one.failed for one in outcomes)
    print(f"{len(outcomes)} cases in {time.monotonic() - begun:.0f} s, {failed} failed")
    return int(failed > 0)


def _with_full_disks(folder):
    """Environment of a process that can fill the disk for its children, see `full_disk.c`."""
    library = ""
    if compiler := shutil.which("cc"):
        library = str(folder / "full_disk.so")
        source = str(HERE / "full_disk.c")
        build = [compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]
        subprocess.run(build, check=True)
    return os.environ | {LIBRARY: library, "LD_PRELOAD": library}


def _chains(options):
    """Kind, first number and the one after the last of what is run together."""
    if options.only:
        kind, _, number = options.only.partition(":")
        length = KINDS[kind][2]
        first = int(number) // length * length
        yield kind, first, int(number) + 1
        return
    for kind, (_, _, length, _) in KINDS.items():
        number = getattr(options, kind.replace("-", "_"))
        for first in range(0, number, length):
            yield kind, first, min(first + length, number)


class _Base:
    """What the cases start from, made when it is needed."""

    def __init__(self, project, scratch):
        self._project, self._scratch, self._drivers = project, scratch, {}

    def driver(self, kind):
        if kind not in self._drivers:
            module, name, _, _ = KINDS[kind]
            folder = self._scratch / module
            folder.mkdir()
            made = getattr(importlib.import_module(module), name)
            self._drivers[kind] = made(self.finished, self.base, folder)
        return self._drivers[kind]

    @functools.cached_property
    def finished(self):
        from projects import finish, finished_at

        begun = time.monotonic()
        if self._project:
            return finished_at(self._project.resolve())
        made = finish(self._scratch / "finished")
        print(f"{time.monotonic() - begun:6.0f} s  for a project to start from", flush=True)
        return made

    @functools.cached_property
    def base(self):
        from projects import prepare

        root = self._scratch / "base"
        root.mkdir()
        prepare(self.finished, root)
        return root


def _parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    for kind, (_, _, _, text) in KINDS.items():
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N", help=text)
    parser.add_argument("--only", metavar="KIND:NUMBER", help="this case of a kind (and its chain)")
    parser.add_argument(
        "--project", type=Path, help="a finished project of the tests to start from"
    )
    parser.add_argument("--verbose", action="store_true", help="print what became of each case")
    return parser


if __name__ == "__main__":
    sys.exit(main())
