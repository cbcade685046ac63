"""Counts the processes that load torch: on PYTHONPATH only while `make test-times` runs."""

import os
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path


class _Counter(MetaPathFinder):
    """Notes the first import of torch in a process, and finds nothing itself."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torch":
            sys.meta_path.remove(self)
            with Path(os.environ["MILLRACE_TEST_STARTS"]).open("a") as file:
                test = os.environ.get("PYTEST_CURRENT_TEST", "before the tests")
                file.write(f"{test}\t{_program(sys.orig_argv[1:])}\n")


def _program(words):
    """The module or file that Python runs, in short: scripts of Snakemake have a name of their own each."""
    plain = [word for word in words if not word.startswith("-") or word in ("-m", "-c")]
    name = plain[1] if plain[:1] in (["-m"], ["-c"]) else plain[0]
    return (
        Path(name.partition(";")[0]).name.split(".", 1)[-1] if ".snakemake" in name else name[-60:]
    )


if "MILLRACE_TEST_STARTS" in os.environ:
    sys.meta_path.insert(0, _Counter())
