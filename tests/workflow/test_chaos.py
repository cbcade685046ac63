"""A share of `make chaos`, and that it finds faults where there are some."""

import os
import shutil
import subprocess
import sys

import pytest
from project import REPOSITORY

RUN = REPOSITORY / "tests/chaos/run.py"


def chaos(project, library=REPOSITORY / "workflow", **numbers):
    """Exit code and output of the driver."""
    command = [sys.executable, str(RUN), "--project", str(project.root)]
    for kind, number in numbers.items():
        command += [f"--{kind.replace('_', '-')}", str(number)]
    environment = os.environ | {"PYTHONPATH": str(library)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_few_faults(finished):
    code, said = chaos(finished, damages=20, full_disks=3, clocks=1)
    assert code == 0, said
    assert "24 cases" in said


@pytest.mark.parametrize(
    "numbers",
    [
        # With the few above a tenth.
        pytest.param({"damages": 80, "full_disks": 7}, marks=pytest.mark.slow),
        pytest.param({"kills": 27, "heads": 3}, marks=pytest.mark.nightly),
        pytest.param({"clocks": 5, "lies": 5}, marks=pytest.mark.nightly),
    ],
)
def test_a_tenth_of_the_faults(finished, numbers):
    code, said = chaos(finished, **numbers)
    assert code == 0, said


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("file", "line", "fault", "numbers", "found"),
    [
        (
            "training/receipt.py",
            'if size == vouches["size"] and checksum(checkpoint) == vouches["crc32"]:',
            'if size == vouches["size"]:',
            {"damages": 200},
            "UNEQUAL WEIGHTS",
        ),
        (
            "processes.py",
            "ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)",
            "ctypes.CDLL(None, use_errno=True)",
            {"kills": 8},
            "ORPHANS",
        ),
        ("errors.py", "errno.ENOSPC, ", "", {"full_disks": 9}, "exit code 65"),
    ],
)
def test_a_fault_of_the_library_is_found(finished, tmp_path, file, line, fault, numbers, found):
    library = shutil.copytree(REPOSITORY / "workflow", tmp_path / "workflow")
    text = (library / "millrace" / file).read_text()
    assert text.count(line) == 1
    (library / "millrace" / file).write_text(text.replace(line, fault))
    code, said = chaos(finished, library, **numbers)
    assert code == 1
    assert found in said
