"""qsub, qstat and qdel as they answer, and what is read out of them."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from millrace.schedulers.base import SchedulerError, State
from millrace.schedulers.pbs import PbsQueue
from millrace.schedulers.pbs import queue as module
from millrace.schedulers.pbs.queue import (
    DELETED,
    BusyError,
    SubmissionError,
    read_answer,
    read_job,
    seconds,
)

RESOURCES = {"ncpus": 2, "mem_mb": 100, "runtime": 60}


@pytest.fixture
def queue(monkeypatch):
    monkeypatch.setattr(module, "PAUSES_S", (0.1, 0.1))
    monkeypatch.setattr(module, "SUBMISSION_PAUSES_S", (0.1, 0.1))
    return PbsQueue()


def submit(queue, command, **resources):
    return queue.submit(["bash", "-c", command], RESOURCES | resources, "a_job", "out.log")


@pytest.mark.parametrize("letter", ["Q", "H", "W", "T", "S", "U", "M"])
def test_waiting(letter):
    job = read_job("1.pbs", {"job_state": letter, "comment": "Not Running: no GPU free"})
    assert (job.state, job.reason) == (State.PENDING, "Not Running: no GPU free")


@pytest.mark.parametrize("letter", ["R", "E", "B"])
def test_running(letter):
    fields = {
        "job_state": letter,
        "stime": "Wed Jul 14 08:50:12 2021",
        "Resource_List.walltime": "12:30:00",
        "exec_host": "k001/0*8+k002/0*8+k002/1*8",
    }
    job = read_job("1.pbs", fields)
    assert (job.state, job.nodes) == (State.RUNNING, ("k001", "k002"))
    assert time.strftime("%H:%M:%S", time.localtime(job.start)) == "08:50:12"
    assert job.end - job.start == 12.5 * 3600


@pytest.mark.parametrize(
    ("fields", "state", "words"),
    [
        ({"Exit_status": "0", "substate": "92"}, State.DONE, ""),
        ({"Exit_status": "1", "substate": "93"}, State.FAILED, "exit code 1"),
        ({"Exit_status": "0", "substate": "91"}, State.FAILED, DELETED),
        ({"Exit_status": "-29", "substate": "93"}, State.FAILED, "walltime"),
        ({"Exit_status": "0", "substate": "93"}, State.FAILED, "exit code 0"),
        ({"Exit_status": "265", "substate": "93"}, State.FAILED, "signal 9"),
        ({"Exit_status": "-3", "substate": "93"}, State.FAILED, "Exit_status -3"),
        ({"substate": "91"}, State.FAILED, DELETED),
        ({"substate": "92"}, State.FAILED, "without an exit status"),
    ],
)
def test_ended(fields, state, words):
    job = read_job("1.pbs", {"job_state": "F", **fields})
    assert job.state is state
    assert words in job.reason


@pytest.mark.parametrize(
    ("text", "expected"), [("00:00:08", 8), ("100:00:00", 360_000), ("02:30", 150), ("45", 45)]
)
def test_durations(text, expected):
    assert seconds(text) == expected


def test_job_runs_here_with_this_path(pbs, workdir, queue, monkeypatch):
    monkeypatch.setenv("MILLRACE_ACCOUNT", 'it\'s "mine"')
    command = 'echo "$PWD|$PATH|$MILLRACE_ACCOUNT|$PBS_JOBID" > seen.txt'
    id = submit(queue, command)
    job = pbs.wait(id)
    assert job["Exit_status"] == 0, (pbs.root / "jobs" / "1.OU").read_text()
    here, path, account, job_id = (workdir / "seen.txt").read_text().strip().split("|")
    assert (here, account, job_id) == (str(workdir), 'it\'s "mine"', id)
    assert os.environ["PATH"].split(":")[0] in path.split(":"), "PATH was lost"
    assert job["resources"] == {"select": "1:ncpus=2:mem=100mb", "walltime": "01:00:00"}
    assert queue.jobs([id])[id].state is State.DONE


def test_states_of_several_jobs_at_once(pbs, workdir, queue):
    pbs.set(slots=1)
    running = submit(queue, "sleep 60")
    waiting = submit(queue, "true")
    pbs.wait(running, "R")
    jobs = queue.jobs([running, waiting, "99.pbs"])
    states = {id: job.state for id, job in jobs.items()}
    assert states == {running: State.RUNNING, waiting: State.PENDING, "99.pbs": State.GONE}
    assert jobs["99.pbs"].reason == "PBS does not know this job"
    assert jobs[running].end == pytest.approx(time.time() + 3600, abs=20)
    queue.cancel([running, waiting, "99.pbs"])
    pbs.wait(running)
    pbs.wait(waiting)
    jobs = queue.jobs([running, waiting])
    assert {job.reason for job in jobs.values()} == {DELETED}
    assert pbs.job(running)["Exit_status"] == 0, "the trap that makes a deleted job look well"
    queue.cancel([running])


def test_walltime_warns_then_kills(pbs, workdir, queue):
    pbs.set(walltime_scale=1 / 60, kill_delay_s=1)
    stubborn = "trap 'echo warned > warned.txt' TERM; while :; do sleep 0.1; done"
    id = submit(queue, stubborn, runtime=1)
    job = pbs.wait(id)
    assert (workdir / "warned.txt").exists()
    assert job["obittime"] - job["stime"] == pytest.approx(2, abs=1.5)
    assert "walltime" in queue.jobs([id])[id].reason


def test_short_ids_name_the_same_job(pbs, workdir, queue):
    id = submit(queue, "true")
    pbs.wait(id)
    assert queue.jobs([id.split(".")[0]])[id.split(".")[0]].state is State.DONE


def test_answer_is_read_as_text_because_its_json_is_badly_quoted(pbs, workdir, queue):
    name = "a" * 90  # wrapped
    variables = 'BASH_FUNC_module%%=() { eval "$1"; }'
    command = ["qsub", "-N", name, "-v", variables, "-l", "walltime=00:10:00"]
    captured = {"capture_output": True, "text": True, "check": True}
    id = subprocess.run(command, input="true", **captured).stdout.strip()
    pbs.wait(id)
    answer = subprocess.run(["qstat", "-x", "-f", "-F", "json", id], **captured)
    with pytest.raises(ValueError, match="delimiter"):
        json.loads(answer.stdout)
    assert queue.jobs([id])[id].state is State.DONE


def test_answer_of_a_real_server_is_read():
    """Three jobs as OpenPBS shows them; JSON would have held the first only."""
    fields = read_answer((Path(__file__).parent / "qstat.txt").read_text())
    jobs = {id: read_job(id, of_one) for id, of_one in fields.items()}
    assert {id: job.state for id, job in jobs.items()} == dict.fromkeys(
        ("0.k1", "1.k1", "2.k1"), State.DONE
    )
    assert jobs["2.k1"].end - jobs["2.k1"].start == 42
    assert jobs["2.k1"].nodes == ("k1",)


def test_running_job_is_known_where_pbs_keeps_no_history(pbs, workdir, queue):
    """Asked with -x, such a server shows no job at all, and its exit code is 0."""
    pbs.set(history=False, slots=1)
    running, waiting = submit(queue, "sleep 60"), submit(queue, "true")
    pbs.wait(running, "R")
    jobs = queue.jobs([running, waiting, "99.pbs"])
    states = [job.state for job in jobs.values()]
    assert states == [State.RUNNING, State.PENDING, State.GONE]


@pytest.mark.parametrize("said", ["", "Job Id: 1.pbs\n    job_state = R\n"])
def test_job_that_an_answer_leaves_out_is_unknown(tmp_path, monkeypatch, queue, said):
    (tmp_path / "qstat").write_text(f"#!/bin/bash\nprintf '{said}'\n")
    (tmp_path / "qstat").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    jobs = queue.jobs(["1.pbs", "2.pbs"])
    assert jobs["1.pbs"].state is (State.RUNNING if said else State.UNKNOWN)
    assert (jobs["2.pbs"].state, jobs["2.pbs"].reason) == (
        State.UNKNOWN,
        "qstat says nothing about this job",
    )


@pytest.mark.parametrize(
    ("fields", "lacked"),
    [
        ({"Exit_status": "265", "resources_used.mem": "47000mb"}, True),
        ({"Exit_status": "137", "resources_used.mem": "48000000kb"}, True),
        ({"Exit_status": "137", "resources_used.mem": "4gb"}, False),
        ({"Exit_status": "1", "resources_used.mem": "47gb"}, False),
        ({"Exit_status": "-29", "resources_used.mem": "47gb"}, False),
        ({"Exit_status": "1", "comment": "job killed: mem 9kb exceeded limit 8kb"}, True),
        ({"Exit_status": "0", "resources_used.mem": "47gb"}, False),
    ],
)
def test_only_some_failures_are_for_memory(fields, lacked):
    job = read_job("1.pbs", {"job_state": "F", "Resource_List.mem": "47104mb", **fields})
    assert job.lacked_memory is lacked


def test_silent_server_is_asked_again(pbs, workdir, queue):
    id = submit(queue, "sleep 60")
    pbs.wait(id, "R")
    pbs.set(qstat_fails=2)
    assert queue.jobs([id])[id].state is State.RUNNING
    pbs.set(qstat_fails=3)
    job = queue.jobs([id])[id]
    assert job.state is State.UNKNOWN
    assert "cannot connect to server" in job.reason


def test_submission_is_tried_again(pbs, workdir, queue):
    pbs.set(qsub_fails=2)
    assert submit(queue, "true") == "1.pbs"
    pbs.set(qsub_fails=99)
    with pytest.raises(BusyError, match="PBS does not answer: Connection refused"):
        submit(queue, "true")


def test_submission_waits_for_a_server_that_is_down_for_some_minutes():
    assert 600 < sum(module.SUBMISSION_PAUSES_S) < 1200


def test_refusal_is_one_sentence_with_the_command(pbs, workdir, queue):
    pbs.set(qsub_refuses="Unauthorized Request")
    with pytest.raises(SubmissionError) as caught:
        submit(queue, "true")
    message = str(caught.value)
    assert message.startswith(
        "PBS refused a job: qsub: Unauthorized Request; the command was: qsub"
    )
    assert "select=1:ncpus=2" in message
    assert "\n" not in message


def test_without_pbs_a_sentence_says_so(workdir, queue, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SchedulerError, match="qstat: command not found"):
        queue.jobs(["1.pbs"])
