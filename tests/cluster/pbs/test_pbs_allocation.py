"""A job from inside: when it ends, its nodes, its wish to go on."""

import json
import sys
import time
from pathlib import Path

import pytest

from millrace.errors import ConfigError
from millrace.layout import Layout
from millrace.schedulers.pbs import PbsAllocation, PbsQueue
from millrace.schedulers.pbs import queue as module

# Told by each node: where it is and what it knows.
TELL = """
import json, os
from pathlib import Path
from millrace.schedulers import allocation
Path(f"node{os.environ['PBS_NODENUM']}.json").write_text(json.dumps(
    [allocation().job, os.getcwd(), os.environ["CARRIED"], os.environ["PATH"]]))
"""
# What a launcher does on the first node.
SPREAD = """
import os, subprocess, sys
from millrace.errors import ConfigError
from millrace.layout import Layout
from millrace.schedulers.pbs import PbsAllocation
os.environ["CARRIED"] = 'two "words"\\nand $HOME'
command = [sys.executable, "-c", sys.argv[1]]
command = PbsAllocation().on_each_node(command, Layout(int(sys.argv[2]), 1), 2)
sys.exit(subprocess.run(command).returncode)
"""


@pytest.fixture
def queue(monkeypatch):
    monkeypatch.setattr(module, "PAUSES_S", (0.1,))
    return PbsQueue()


@pytest.fixture
def environment(monkeypatch):
    """(variables) -> the allocation of a process with them."""

    def make(**variables):
        for name in ("PBS_JOBID", "MILLRACE_PBS_RECORDS", "MILLRACE_PBS_STARTED"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return PbsAllocation()

    return make


def run(pbs, queue, nodes):
    resources = {"nodes": nodes, "ncpus": 2, "runtime": 10}
    command = [sys.executable, "-c", SPREAD, TELL, str(nodes)]
    id = queue.submit(command, resources, "spread", "out.log")
    job = pbs.wait(id)
    assert job["Exit_status"] == 0, (pbs.root / "jobs" / "1.OU").read_text()
    return id


@pytest.mark.parametrize("nodes", [1, 3])
def test_command_runs_once_on_each_node(pbs, workdir, queue, nodes):
    id = run(pbs, queue, nodes)
    told = [json.loads((workdir / f"node{node}.json").read_text()) for node in range(nodes)]
    assert len(list(workdir.glob("node*.json"))) == nodes
    for job, here, carried, path in told:
        assert (job, here) == (id, str(workdir))
        assert carried == 'two "words"\nand $HOME'
        assert str(Path(sys.executable).parent) in path.split(":"), "pbsdsh PATH"


def test_environment_of_several_nodes_is_private(pbs, workdir, queue):
    run(pbs, queue, 2)
    [script] = (workdir / ".snakemake" / "pbs" / "nodes").iterdir()
    assert script.stat().st_mode & 0o077 == 0, "tokens in the environment can be read by others"
    assert "declare -x PBS_JOBID" in script.read_text()
    assert "declare -x PBS_NODENUM" not in script.read_text(), "every node would be the first"


def test_end_is_what_pbs_says(pbs, workdir, queue, monkeypatch):
    id = queue.submit(["sleep", "60"], {"runtime": 10}, "a_job", "out.log")
    started = pbs.wait(id, "R")["stime"]
    monkeypatch.setenv("PBS_JOBID", id)
    assert PbsAllocation().end() == pytest.approx(started + 600, abs=1.5)


def test_end_is_what_was_requested_when_pbs_is_silent(pbs, queue, environment):
    pbs.set(qstat_fails=99)
    requested = {"MILLRACE_PBS_STARTED": "1000", "MILLRACE_PBS_WALLTIME_S": "600"}
    assert environment(PBS_JOBID="1.pbs", **requested).end() == 1600
    assert environment(PBS_JOBID="1.pbs").end() is None
    assert environment().end() is None


def test_file_of_a_job_that_requests_to_continue(workdir, environment):
    records = workdir / "records"
    started = str(time.time() - 30)
    here = {"MILLRACE_PBS_RECORDS": str(records), "MILLRACE_PBS_STARTED": started}
    assert environment(PBS_JOBID="7.pbs", **here).requeue()
    content = json.loads((records / "again" / "7.pbs").read_text())
    assert content["after_s"] == pytest.approx(30, abs=5)


def test_only_snakemake_submits_again(workdir, environment):
    assert not environment(PBS_JOBID="7.pbs").requeue()
    assert not environment(MILLRACE_PBS_RECORDS="records").requeue()


def test_layout_with_more_nodes_than_the_job(workdir, environment):
    (workdir / "nodes").write_text("k001\n")
    here = environment(PBS_JOBID="7.pbs", PBS_NODEFILE=str(workdir / "nodes"))
    message = r"layout n2_gpu1: needs 2 nodes, and PBS job 7.pbs has 1"
    with pytest.raises(ConfigError, match=message):
        here.on_each_node(["a"], Layout(2, 1), 8)


def test_one_node_needs_no_pbsdsh(environment):
    assert environment().on_each_node(["a", "b"], Layout(1, 4), 8) == ["a", "b"]
