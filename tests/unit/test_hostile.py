"""Files and configurations that are meant to do harm: refused in a sentence, or read rightly.

Nothing of them is run, nothing is written beside the results, and time and memory stay bounded.
"""

import os
import re
import shutil

import pytest
from hostile_files import CASES, GOOD
from hostile_worker import read

MEMORY = 500 << 20
"""Bytes beyond those of the warm process."""
LONGEST = 1000  # characters of what is said


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Directory of good raw files by reader, made when they are asked for."""
    base = tmp_path_factory.mktemp("good")

    def made(reader):
        if not (base / reader).exists():
            (base / reader).mkdir()
            GOOD[reader](base / reader)
        return base / reader

    return made


def tree(base, results):
    """What is in a directory, the results aside: kinds, sizes and times."""
    found = {}
    for path in [base, *base.rglob("*")]:
        if results not in (path, *path.parents):
            status = path.lstat()
            found[path] = status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns
    return found


@pytest.mark.parametrize("name", CASES)
def test_hostile_files_do_no_harm(name, good, tmp_path):
    case = CASES[name]
    project, canary = tmp_path / "above" / "project", tmp_path / "above" / "project" / "canary"
    shutil.copytree(good(case.reader), project / "raw")
    for folder in (project / "results", tmp_path / "home", tmp_path / "tmp"):
        folder.mkdir()
    case.change(project / "raw", canary)
    before = tree(tmp_path, project / "results")
    environment = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
    environment |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    code, said, peak = read(case.reader, project, environment)
    last = said.strip().splitlines()[-1:]
    if case.told is None:
        assert code == 0, said
    else:
        assert code in (2, 65), f"{code}: {said[-4000:]}"
        assert re.match("error: ", last[0])
        assert re.search(case.told, last[0]), last[0]
        assert len(last[0]) < LONGEST
    assert "Traceback" not in said, said
    assert peak < MEMORY, f"{peak / 1e6:.0f} MB: {last}"
    assert not canary.exists()
    assert tree(tmp_path, project / "results") == before, "something was written beside the results"
