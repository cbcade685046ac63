"""PBS for tests: stand-ins of its commands on PATH, which execute jobs on this machine."""

import json
import os
from pathlib import Path

import pytest
from pbs_server import BIN, Pbs


@pytest.fixture
def pbs(tmp_path, monkeypatch):
    """An empty PBS; the test fails if a job leaves a process behind."""
    root = tmp_path / "pbs"
    root.mkdir()
    monkeypatch.setenv("PBS_STANDIN", str(root))
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith(("MILLRACE_", "PBS_JOB"))]:
        monkeypatch.delenv(name)
    server = Pbs(root)
    yield server
    left = server.stop()
    assert not left, f"processes were left behind: {left}"


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """An empty working directory."""
    path = tmp_path / "work"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def jobscript(workdir):
    """Writes a job script as Snakemake does, in a directory that may go."""

    def write(command: str, output: str = "out.txt", **properties) -> Path:
        properties = {
            "type": "single",
            "rule": "train_segment",
            "local": False,
            "input": [],
            "output": [output],
            "wildcards": {"seed": "0"},
            "params": {},
            "log": ["logs/train.log"],
            "threads": 1,
            "resources": {"mem_mb": 100, "runtime": 10, "ncpus": 1},
            "jobid": 3,
            **properties,
        }
        path = workdir / ".snakemake" / "tmp.abc" / "snakejob.train_segment.3.sh"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"#!/bin/sh\n# properties = {json.dumps(properties)}\n"
            f"cd {workdir} && {command} && exit 0 || exit 1\n"
        )
        return path

    return write
