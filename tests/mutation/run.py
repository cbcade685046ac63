"""Does the suite notice? One changed line at a time, each in a copy of the checkout.

`faults.yaml` lists the faults. Tests that import the changed file run first, then those that mirror it,
then the whole tier; the first that fails ends the search.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[2]
LIBRARY = Path("workflow/millrace")
TIERS = {"fast": ["-m", "not slow and not nightly"], "all": ["-m", "not nightly"]}


@dataclass(frozen=True)
class Fault:
    """A line of the library, without its indentation, and what it becomes."""

    name: str
    file: str
    line: str
    fault: str

    def text(self, root: Path) -> str:
        """The file with the fault.

        Raises
        ------
        ValueError
            The line is not there exactly once.
        """
        lines = (root / LIBRARY / self.file).read_text().splitlines()
        found = [number for number, line in enumerate(lines) if line.strip() == self.line]
        if len(found) != 1:
            raise ValueError(
                f"{self.name}: {self.file} has this line {len(found)} times: {self.line}"
            )
        [number] = found
        lines[number] = lines[number].replace(self.line, self.fault)
        return "\n".join(lines) + "\n"

    def nearest(self, root: Path) -> list[list[str]]:
        """Tests relative to ``root``: files that import the changed one, the directory that mirrors it."""
        module = ".".join((LIBRARY.name, *Path(self.file).with_suffix("").parts))
        names = {module, f"from {module.rpartition('.')[0]} import {Path(self.file).stem}"}
        files = (root / "tests").rglob("test_*.py")
        naming = [one for one in files if any(name in one.read_text() for name in names)]
        directory = Path("tests/unit") / Path(self.file).parent
        while not (root / directory).is_dir():
            directory = directory.parent
        found = [str(one.relative_to(root)) for one in sorted(naming)]
        return [found, [str(directory)]] if found else [[str(directory)]]


def faults() -> list[Fault]:
    """All of `faults.yaml`."""
    listed = yaml.safe_load((REPOSITORY / "tests/mutation/faults.yaml").read_text())
    return [Fault(name, **fault) for name, fault in listed.items()]


def search(fault: Fault, tier: str, workers: int, whole: bool) -> str:
    """The first test that fails with the fault; empty when none does.

    Without ``whole`` the tests near the changed file are the only ones.
    """
    with tempfile.TemporaryDirectory(prefix="millrace_fault_") as directory:
        root = Path(directory)
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, check=True, text=True)
        for name in filter(None, names.stdout.split("\0")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, root / name)
        text = fault.text(root)
        (root / LIBRARY / fault.file).write_text(text)
        for tests in fault.nearest(root):
            if failed := _first_failure(root, [*tests, *TIERS[tier]], 0):
                return failed
        return _first_failure(root, TIERS[tier], workers) if whole else ""


def _first_failure(root: Path, arguments: list[str], workers: int) -> str:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", str(workers)]
    # The copy, not the checkout that is installed.
    path = os.pathsep.join([str(root / "workflow"), os.environ.get("PYTHONPATH", "")])
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--dist", "loadgroup", "--no-loadscope-reorder", *arguments],
        cwd=root,
        env=os.environ | threads | {"PYTHONPATH": path.rstrip(os.pathsep)},
        capture_output=True,
        text=True,
    )
    if done.returncode in (0, 5):  # 5: the mirror has no test of this tier
        return ""
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if not failed:  # pytest itself did not work, which finds nothing
        raise RuntimeError(
            f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"
        )
    return failed[0].split(" - ")[0]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="faults of faults.yaml; all by default")
    parser.add_argument("--tier", choices=TIERS, default="fast", help="make test, or make test-all")
    parser.add_argument("--nearest", action="store_true", help="leave the whole tier out")
    parser.add_argument("--workers", type=int, default=(os.cpu_count() or 1) + 1)
    given = parser.parse_args()
    chosen = [fault for fault in faults() if not given.names or fault.name in given.names]
    found = 0
    for fault in chosen:
        begun = time.monotonic()
        by = search(fault, given.tier, given.workers, not given.nearest)
        found += bool(by)
        print(f"{time.monotonic() - begun:6.0f} s  {fault.name}: {by or 'NOT FOUND'}", flush=True)
    print(f"{found} of {len(chosen)} faults are found by the tier '{given.tier}'.")


if __name__ == "__main__":
    main()
