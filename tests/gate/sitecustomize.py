"""Holds a process where it imports a module: on PYTHONPATH of what `pausing.Gate` starts only."""

import os
import sys
import time
from importlib.abc import MetaPathFinder
from pathlib import Path


class _Gate(MetaPathFinder):
    """Waits once until the gate is open, and finds nothing itself."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == os.environ["MILLRACE_TEST_GATE_AT"]:
            sys.meta_path.remove(self)
            gate = Path(os.environ["MILLRACE_TEST_GATE"])
            (gate / "reached").touch()
            while not (gate / "open").exists():
                time.sleep(0.02)


# Later words may be the command of a child.
if any(os.environ["MILLRACE_TEST_GATE_OF"] in word for word in sys.orig_argv[:4]):
    sys.meta_path.insert(0, _Gate())
