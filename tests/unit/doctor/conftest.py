"""Commands of a scheduler that say what a test wants, and a small cluster."""

import shlex

import pytest
import yaml

from millrace.cluster import Cluster

SLURM = {
    "name": "lab",
    "scheduler": "slurm",
    "account_required": True,
    "account": "proj",
    "qos": "normal",
    "qos_hours": {"normal": 336, "standby": 4},
    "node_types": [
        {
            "name": "K", "count": 2, "cores": 64, "memory_gb": 500, "gpus": 2, "gpu_model": "A100-80",
            "gpu_memory_gb": 80, "partition": "a100-80gb", "constraint": "nvlink", "max_hours": 24,
        }
    ],
    "jobs": {"cpu": {"gpus": 1}, "gpu": {"cores": 8, "memory_gb": 100, "hours": 12}},
}  # fmt: skip
PBS = {
    "name": "coast",
    "scheduler": "pbs",
    "node_types": [
        {
            "name": "H200", "count": 2, "cores": 32, "memory_gb": 184, "gpus": 4,
            "gpu_model": "H200", "gpu_memory_gb": 141, "partition": "gpuq", "max_hours": 12,
        },
    ],
    "jobs": {"gpu": {"cores": 8, "memory_gb": 46, "hours": 12}},
}  # fmt: skip


class Commands:
    """Stand-ins on PATH, and what they were called with."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()

    def says(self, name, out="", err="", code=0):
        script = ["#!/bin/sh", f'echo "$@" >> {self.folder}/{name}.calls']
        script += [f"printf '%s' {shlex.quote(out)}", f"printf '%s' {shlex.quote(err)} >&2"]
        self._write(name, [*script, f"exit {code}"])

    def answers(self, name, **by_option):
        """Say what belongs to the first option that is among the arguments."""
        cases = [f"*' -{key}'*) printf '%s' {shlex.quote(out)};;" for key, out in by_option.items()]
        said = [f'echo "$@" >> {self.folder}/{name}.calls', 'case " $*" in', *cases, "esac"]
        self._write(name, ["#!/bin/sh", *said])

    def _write(self, name, lines):
        path = self.folder / name
        path.write_text("\n".join([*lines, ""]))
        path.chmod(0o755)

    def calls(self, name):
        return (self.folder / f"{name}.calls").read_text().splitlines()


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """No command is there but those that the test makes."""
    made = Commands(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(made.folder))
    return made


@pytest.fixture
def make_cluster(tmp_path, monkeypatch):
    """(facts, **changes of the facts) -> Cluster."""
    monkeypatch.delenv("MILLRACE_ACCOUNT", raising=False)
    monkeypatch.delenv("MILLRACE_QOS", raising=False)

    def make(facts=SLURM, **changes):
        folder = tmp_path / facts["name"]
        folder.mkdir(exist_ok=True)
        (folder / "cluster.yaml").write_text(yaml.safe_dump({**facts, **changes}))
        return Cluster.read(folder)

    return make


@pytest.fixture
def cluster(make_cluster):
    return make_cluster()


@pytest.fixture
def pbs_cluster(make_cluster):
    return make_cluster(PBS)
