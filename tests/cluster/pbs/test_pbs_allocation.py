"""A job from inside: when it ends, its nodes, its wish to go on."""

import json
import sys
import time
from pathlib import Path

import pytest

from millrace.errors import ConfigError
from millrace.layout import Layout
from millrace.schedulers.pbs import PbsAllocation, PbsQueue

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
def queue():
    return PbsQueue(pauses_s=(0.1,))


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
    assert PbsAllocation(queue=queue).end() == pytest.approx(started + 600, abs=1.5)


def test_end_is_what_was_asked_for_when_pbs_is_silent(pbs, queue):
    pbs.set(qstat_fails=99)
    asked = {"MILLRACE_PBS_STARTED": "1000", "MILLRACE_PBS_WALLTIME_S": "600"}
    assert PbsAllocation({"PBS_JOBID": "1.pbs", **asked}, queue).end() == 1600
    assert PbsAllocation({"PBS_JOBID": "1.pbs"}, queue).end() is None
    assert PbsAllocation({}, queue).end() is None


def test_mark_of_a_job_that_asks_to_go_on(workdir, queue):
    environment = {
        "PBS_JOBID": "7.pbs",
        "MILLRACE_PBS_RECORDS": str(workdir / "records"),
        "MILLRACE_PBS_STARTED": str(time.time() - 30),
    }
    assert PbsAllocation(environment, queue).requeue()
    mark = json.loads((workdir / "records" / "again" / "7.pbs").read_text())
    assert mark["after_s"] == pytest.approx(30, abs=5)


def test_only_snakemake_submits_again(workdir, queue):
    assert not PbsAllocation({"PBS_JOBID": "7.pbs"}, queue).requeue()
    assert not PbsAllocation({"MILLRACE_PBS_RECORDS": "records"}, queue).requeue()


def test_layout_with_more_nodes_than_the_job(workdir):
    (workdir / "nodes").write_text("k001\n")
    environment = {"PBS_JOBID": "7.pbs", "PBS_NODEFILE": str(workdir / "nodes")}
    with pytest.raises(
        ConfigError, match=r"layout n2_gpu1: needs 2 nodes, and PBS job 7.pbs has 1"
    ):
        PbsAllocation(environment).on_each_node(["a"], Layout(2, 1), 8)


def test_one_node_needs_no_pbsdsh():
    assert PbsAllocation({}).on_each_node(["a", "b"], Layout(1, 4), 8) == ["a", "b"]
