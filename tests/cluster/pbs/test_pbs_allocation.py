"""A job from inside: when it ends, its nodes, its wish to go on."""

import json
import sys
import time
from pathlib import Path

import pytest
from pbs_server import wait_for

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
# Looks at what the nodes are started with.
LOOK = """
import json
from pathlib import Path
[folder] = Path(".snakemake/pbs/nodes").iterdir()
Path("private.json").write_text(json.dumps(
    [[folder.stat().st_mode & 0o777], (folder / "start.sh").read_text()]))
"""
# What a launcher does on the first node.
SPREAD = """
import os, signal, subprocess, sys
from millrace.errors import ConfigError
from millrace.layout import Layout
from millrace.schedulers.pbs import PbsAllocation
os.environ["CARRIED"] = 'two "words"\\nand $HOME'
command = [sys.executable, "-c", sys.argv[1]]
command = PbsAllocation().on_each_node(command, Layout(int(sys.argv[2]), 1), 2)
# As the log of a rule: the process has it, the job does not.
with open("train.log", "w") as log:
    process = subprocess.Popen(command, stdout=log, stderr=log)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: process.send_signal(number))
    sys.exit(process.wait())
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


def start(queue, nodes, code):
    resources = {"nodes": nodes, "ncpus": 2, "runtime": 10}
    command = [sys.executable, "-c", SPREAD, code, str(nodes)]
    return queue.submit(command, resources, "spread", "out.log")


def run(pbs, queue, nodes, code=TELL):
    id = start(queue, nodes, code)
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
    run(pbs, queue, 2, LOOK)
    modes, script = json.loads((workdir / "private.json").read_text())
    assert modes == [0o700], "tokens in the environment can be read by others"
    assert "export PBS_JOBID" in script
    assert "export PBS_NODENUM" not in script, "every node would be the first"
    assert list((workdir / ".snakemake" / "pbs" / "nodes").iterdir()) == [], "left behind"


def test_output_and_exit_code_of_all_nodes_reach_the_log(pbs, workdir, queue):
    say = "import os, sys; n = int(os.environ['PBS_NODENUM']); print(f'node {n}'); sys.exit(3 * n)"
    job = pbs.wait(start(queue, 3, say))
    lines = (workdir / "train.log").read_text().splitlines()
    assert {"node 0", "node 1", "node 2"} <= set(lines)
    assert job["Exit_status"] == 6


def test_lost_node_does_not_keep_the_others(pbs, workdir, queue):
    """Its command has ended, but nobody tells pbsdsh."""
    pbs.set(lost_nodes=[1])
    assert pbs.wait(start(queue, 2, "print('ready')"), timeout=300)["Exit_status"] == 0
    assert (workdir / "train.log").read_text() == "ready\n" * 2


def test_node_that_does_not_end_is_given_up_after_a_while(pbs, workdir, queue):
    say = "import os, time; time.sleep(600 * int(os.environ['PBS_NODENUM']))"
    command = """
import sys
from pathlib import Path
from millrace.schedulers.pbs import spread
spread.GRACE_S = 1
sys.exit(spread.main(Path("nodes"), sys.argv[1:]))
"""
    resources = {"nodes": 2, "ncpus": 2, "runtime": 10}
    python = [sys.executable, "-c"]
    id = queue.submit([*python, command, *python, say], resources, "spread", "out.log")
    job = pbs.wait(id)
    said = (pbs.root / "jobs" / "1.OU").read_text()
    assert job["Exit_status"] == 1, said
    assert "node 1 of the job has told no exit code: it was lost" in said


def test_signal_reaches_all_nodes_and_their_end_is_waited_for(pbs, workdir, queue):
    """pbsdsh itself passes it on and ends at once."""
    wait = """
import os, signal, time
from pathlib import Path
def save(number, frame):
    time.sleep(1.5)
    print("saved", flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, save)
Path(f"ready{os.environ['PBS_NODENUM']}").touch()
time.sleep(600)
"""
    pbs.set(kill_delay_s=60)
    id = start(queue, 2, wait)
    wait_for(lambda: len(list(workdir.glob("ready*"))) == 2, "no node is ready")
    queue.cancel([id])
    pbs.wait(id)
    assert (workdir / "train.log").read_text().splitlines().count("saved") == 2


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
