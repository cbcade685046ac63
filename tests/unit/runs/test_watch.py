"""Where runs stand, told from stores of real tiny trainings and from a scheduler that may not answer."""

import base64
import json
import os
import threading
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from millrace.errors import ExitCode
from millrace.runs import queue_status as runs_jobs
from millrace.runs.command import main
from millrace.runs.inventory import find_runs
from millrace.runs.queue_status import Jobs, find_queue, submitted_jobs
from millrace.runs.watch import Watcher
from millrace.schedulers import Job, State
from millrace.training.deadline import Deadline
from millrace.training.request import Request
from millrace.training.segment import run_segment
from millrace.training.usage import SESSIONS, TARGET, read_sessions, read_target


class Scheduler:
    """Knows what it is told."""

    def __init__(self, *jobs, error=None):
        self.known, self.error, self.asked = {job.id: job for job in jobs}, error, []

    def jobs(self, ids):
        self.asked.append(sorted(ids))
        if self.error:
            raise self.error
        return {job: self.known.get(job, Job(job, State.GONE)) for job in ids}


@pytest.fixture
def train(samples, definition, alone, tmp_path, monkeypatch):
    """(epochs, final) -> Run, trained on in the same store."""
    monkeypatch.setattr(Deadline, "listen", lambda self: None)
    monkeypatch.chdir(tmp_path)

    def segment(epochs, final=6, **changes):
        output = tmp_path / f"results/train/head/n1_gpu1/seed0/epoch_{epochs}.ckpt"
        request = Request(
            experiment="head",
            layout="n1_gpu1",
            seed=0,
            target_epoch=epochs,
            definition={**definition, "train": {**definition["train"], **changes}},
            files={role: str(path) for role, path in samples.items()},
            runs="runs/head/n1_gpu1/seed0",
            checkpoint=str(output),
            receipt=str(output.with_suffix(".json")),
            final_epoch=final,
        )
        run_segment(request, alone)
        (run,) = find_runs(Path("runs"))
        return run

    return segment


def look(queue=None, now=None):
    watcher = Watcher(Path("runs"), Path("results"), queue, patience_s=60.0)
    return watcher.look(now or time.time())


def own(run, job="", pid=None, host=None):
    """Make a lock as an owner writes it."""
    process = psutil.Process()
    record = {
        "host": host or os.uname().nodename, "pid": pid or process.pid, "job": job, "token": 9,
        "nonce": "x", "started": process.create_time() - psutil.boot_time(),
    }  # fmt: skip
    (run.path / "owner.json").write_text(json.dumps(record))


def submit(output, job):
    """Note a submitted job as Snakemake does."""
    code = base64.urlsafe_b64encode(output.encode()).decode()
    pieces = [code[i : i + 254] for i in range(0, len(code), 254)]
    path = Path(".snakemake/incomplete").joinpath(*[f"@{p}" for p in pieces[:-1]], pieces[-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"external_jobid": job}))


NEXT = "results/train/head/n1_gpu1/seed0/epoch_6.ckpt"


def test_a_store_knows_its_target_and_where_time_went(train):
    run = train(2)
    assert read_target(run.path) == (2, 6)
    (session,) = read_sessions(run.path)
    assert (session["session"], session["step"], session["end_step"]) == (1, 0, run.newest.step)
    assert all(session["seconds"][phase] > 0 for phase in ("training", "validating", "saving"))
    trained = sum(record["seconds"] for record in run.history)
    # Seconds of epochs are within; what else the phase holds depends on the machine.
    assert session["seconds"]["training"] > trained - 0.01
    train(4)
    numbers = [(s["session"], s["step"], s["end_step"]) for s in read_sessions(run.path)]
    assert len({s["begun"] for s in read_sessions(run.path)}) == 1, "one process in this test"
    assert numbers == [(2, run.newest.step, 2 * run.newest.step)]
    # A kill leaves half a line, and old stores have none of these files.
    with (run.path / SESSIONS).open("a") as file:
        file.write('{"begun": 1, "sec')
    assert len(read_sessions(run.path)) == 1
    (run.path / SESSIONS).unlink()
    (run.path / TARGET).unlink()
    assert (read_sessions(run.path), read_target(run.path)) == ([], (None, None))
    (one,) = look()
    assert (one.state, one.epoch, one.final) == ("idle", 4, None)


def test_idle_running_stalled_killed_done(train):
    run = train(2)
    (one,) = look()
    assert (one.state, one.epoch, one.milestone, one.final) == ("idle", 2, 2, 6)
    assert one.left_s(6) is None
    own(run)
    (one,) = look()
    assert one.state == "running"
    assert one.node == os.uname().nodename
    assert 0 < one.epoch_s < 60
    assert one.left_s(6) == pytest.approx(4 * one.epoch_s - min(one.since_s, one.epoch_s))
    (one,) = look(now=time.time() + 3600)
    assert (one.state, one.reason[:12]) == ("stalled", "no epoch for")
    own(run, pid=2**22)
    (one,) = look()
    assert (one.state, "was killed" in one.reason) == ("failed", True)
    (run.path / "owner.json").unlink()
    train(6)
    (one,) = look()
    assert (one.state, one.epoch) == ("done", 6)


def test_an_early_stop_is_done(train):
    early = {"early_stopping": {"patience": 1}, "learning_rate": 0.05}
    train(60, final=90, **early)
    (one,) = look()
    assert one.epoch < 60
    assert (one.state, one.reason) == ("done", "stopped early")


def test_jobs_that_wait_run_and_fail(train):
    run = train(2)
    submit(NEXT, "71")
    submit("results/train/salt/n2_gpu2/seed1/epoch_6.ckpt", "72")
    submit("results/train/salt/n2_gpu2/seed1/epoch_6.json", "72")
    submit("results/data/site/series.h5", "73")
    end = time.time() + 500
    queue = Scheduler(
        Job("71", State.PENDING, reason="QOSMaxJobs"),
        Job("72", State.RUNNING, nodes=("k0", "k1"), end=end),
    )
    first, second = look(queue)
    assert queue.asked == [["71", "72"]]
    assert (first.state, first.job, first.reason) == ("pending", "71", "QOSMaxJobs")
    assert (second.name, second.state, second.node) == ("salt/n2_gpu2/seed1", "running", "k0, k1")
    assert second.end == end
    own(run, job="71", pid=2**22)
    queue = Scheduler(Job("71", State.FAILED, reason="TIMEOUT"))
    assert (look(queue)[0].state, look(queue)[0].reason) == ("failed", "TIMEOUT")


def test_names_that_are_cut_are_read_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    long = "x" * 240
    submit(f"results/train/{long}/n1_gpu1/seed0/epoch_6.ckpt", "5")
    (Path(".snakemake/incomplete") / "half").write_text("{")
    assert submitted_jobs(Path(".snakemake")) == {f"{long}/n1_gpu1/seed0": "5"}
    assert submitted_jobs(Path("nothing")) == {}


@pytest.mark.parametrize("error", [OSError("no route"), KeyError("Jobs"), ValueError("not JSON")])
def test_a_scheduler_in_trouble_does_not_hide_the_stores(train, error):
    train(2)
    submit(NEXT, "71")
    watcher = Watcher(Path("runs"), Path("results"), Scheduler(error=error), patience_s=60.0)
    (one,) = watcher.look(time.time())
    assert (one.epoch, one.job) == (2, "71")
    console = Console(width=200, record=True)
    console.print(watcher.render(time.time()))
    assert "the scheduler does not answer" in console.export_text()


def test_a_slow_scheduler_is_not_waited_for_and_not_asked_often(monkeypatch):
    answers = threading.Event()

    class Slow(Scheduler):
        def jobs(self, ids):
            assert answers.wait(300)
            return super().jobs(ids)

    queue = Slow(Job("1", State.RUNNING))
    jobs = Jobs(queue)
    jobs.ask(["1"], patience_s=0.05)
    assert (jobs.get("1"), jobs.problem) == (None, "no answer yet")
    answers.set()
    jobs.ask(["1"], patience_s=60.0)
    assert (jobs.get("1").state, jobs.problem) == (State.RUNNING, "")
    jobs.ask(["1", ""], patience_s=60.0)
    assert queue.asked == [["1"]]
    jobs.ask(["2"], patience_s=60.0)  # not known yet: asked at once
    assert queue.asked == [["1"], ["2"]]
    monkeypatch.setattr(runs_jobs, "ASK_EVERY_S", 0.0)
    jobs.ask(["1"], patience_s=60.0)
    assert queue.asked[-1] == ["1"]


def test_the_scheduler_is_that_of_the_profile_or_the_one_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_queue(None) is None
    (tmp_path / "squeue").write_text("#!/bin/sh\n")
    (tmp_path / "squeue").chmod(0o755)
    assert type(find_queue(None)).__name__ == "SlurmQueue"
    profiles = Path(__file__).parents[3] / "profiles"
    assert type(find_queue(profiles / "levante")).__name__ == "SlurmQueue"


def test_one_table_for_scripts(train, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    train(2)
    assert main(["watch", "--once"]) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["run", "state", "epoch"]
    assert lines[1].split()[1:5] == ["idle", "2", "of", "6"]
    assert lines[-1].endswith("1 idle")


def test_following_ends_with_ctrl_c(train, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    train(2)

    def interrupt(seconds):
        assert seconds == 3.0
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    assert main(["watch", "--interval", "3"]) == ExitCode.OK
    assert "head/n1_gpu1/seed0" in capsys.readouterr().out
