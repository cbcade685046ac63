"""qsub, qstat and qdel as they answer, and what is read out of them."""

import json
import os
import subprocess
import time

import pytest

from millrace.schedulers.base import SchedulerError, State
from millrace.schedulers.pbs import PbsQueue
from millrace.schedulers.pbs import queue as module
from millrace.schedulers.pbs.queue import DELETED, BusyError, SubmissionError, read_job, seconds

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
        "Job_Name": "train",
        "stime": "Wed Jul 14 08:50:12 2021",
        "Resource_List.walltime": "12:30:00",
        "exec_host": "k001/0*8+k002/0*8+k002/1*8",
    }
    job = read_job("1.pbs", fields)
    assert (job.state, job.name, job.nodes) == (State.RUNNING, "train", ("k001", "k002"))
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


def test_badly_quoted_answer_is_read_as_text(pbs, workdir, queue):
    name = "a" * 90  # wrapped
    variables = 'BASH_FUNC_module%%=() { eval "$1"; }'
    command = ["qsub", "-N", name, "-v", variables, "-l", "walltime=00:10:00"]
    captured = {"capture_output": True, "text": True, "check": True}
    id = subprocess.run(command, input="true", **captured).stdout.strip()
    pbs.wait(id)
    answer = subprocess.run(["qstat", "-x", "-f", "-F", "json", id], **captured)
    with pytest.raises(ValueError, match="delimiter"):
        json.loads(answer.stdout)
    job = queue.jobs([id])[id]
    assert (job.state, job.name) == (State.DONE, name)


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
    pbs.set(qsub_fails=3)
    with pytest.raises(BusyError, match="PBS does not answer: Connection refused"):
        submit(queue, "true")


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
