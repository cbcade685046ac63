"""PBS for tests: stand-ins of its commands on PATH, which execute jobs on this machine."""

import json
from pathlib import Path

import pytest
from pbs_server import KATANA, running_pbs
from project import FOLDER, Project


@pytest.fixture
def pbs(tmp_path, monkeypatch):
    """An empty PBS for a test."""
    with running_pbs(tmp_path / "pbs", monkeypatch) as server:
        yield server


@pytest.fixture(scope="session")
def finished_on_pbs(tmp_path_factory) -> Project:
    """A project whose whole workflow ran as jobs of PBS, with the profile of Katana."""
    root = tmp_path_factory.mktemp("finished_on_pbs")
    project = Project(root / FOLDER, KATANA)
    with pytest.MonkeyPatch.context() as patch, running_pbs(root / "pbs", patch):
        project.run()
    return project


@pytest.fixture
def project(finished_on_pbs, tmp_path) -> Project:
    """A copy of it to train more."""
    return finished_on_pbs.copy(tmp_path / FOLDER)


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

    def write(command: str, output: str | None = "out.txt", **properties) -> Path:
        properties = {
            "type": "single",
            "rule": "train_segment",
            "local": False,
            "input": [],
            "output": output and [output],
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
