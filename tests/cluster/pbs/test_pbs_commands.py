"""The three commands of Snakemake's plugin, as it calls them."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pbs_server import wait_for

from millrace.errors import UserError
from millrace.schedulers.memory import count_shortages
from millrace.schedulers.pbs import queue, records
from millrace.schedulers.pbs.allocation import PbsAllocation
from millrace.schedulers.pbs.records import Records

CANCEL = Path(__file__).parents[3] / "profiles" / "katana" / "pbs-cancel"
ASK_AGAIN = (
    f'{sys.executable} -c "from millrace.schedulers.pbs import PbsAllocation as A; '
    'assert A().requeue()" && false'
)


def call(*arguments, check=True):
    command = [sys.executable, "-m", "millrace.schedulers.pbs", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def status(id):
    said = call("status", id).stdout
    assert said in ("running\n", "success\n", "failed\n")
    return said.strip()


@pytest.fixture
def quick(workdir, monkeypatch):
    monkeypatch.setattr(queue, "PAUSES_S", (0.1,))
    monkeypatch.setattr(queue, "SUBMISSION_PAUSES_S", (0.1,))
    return Records()


def test_life_of_a_job(pbs, jobscript, workdir):
    script = jobscript("echo hello && touch out.txt")
    pbs.set(hold=True)
    said = call("submit", script).stdout
    assert said == "1.pbs\n", "the plugin takes the first line for the id"
    shutil.rmtree(script.parent)  # Snakemake tidies up when it ends
    assert status("1.pbs") == "running"
    pbs.set(hold=False)
    pbs.wait("1.pbs")
    assert status("1.pbs") == "success"
    assert (workdir / "out.txt").exists()
    assert (workdir / "logs/pbs/train_segment/1.pbs.OU").read_text() == "hello\n"


def test_options_for_qsub(pbs, jobscript):
    pbs.set(hold=True)
    resources = {"nodes": 2, "ncpus": 8, "ngpus": 4, "gpu_model": "V100", "runtime": 90}
    call("submit", "-m", "ae", "-q", "gpu", jobscript("true", resources=resources))
    job = pbs.job("1.pbs")
    assert job["resources"]["select"] == "2:ncpus=8:ngpus=4:gpu_model=V100"
    assert job["resources"]["walltime"] == "01:30:00"
    assert (job["options"]["-m"], job["options"]["-q"]) == ("ae", "gpu")
    assert job["name"] == "train_segment"


def test_threads_are_asked_for_where_the_profile_says_nothing(pbs, jobscript):
    pbs.set(hold=True)
    call("submit", jobscript("true", threads=3, resources={}))
    assert pbs.job("1.pbs")["resources"]["select"] == "1:ncpus=3"


def test_failed_job(pbs, jobscript):
    call("submit", jobscript("false"))
    pbs.wait("1.pbs")
    done = call("status", "1.pbs")
    assert (done.stdout, done.stderr) == ("failed\n", "millrace: PBS job 1.pbs: exit code 1\n")


def test_deleted_job_failed_although_pbs_reports_0(pbs, jobscript):
    call("submit", jobscript("sleep 60"))
    pbs.wait("1.pbs", "R")
    subprocess.run(["qdel", "1.pbs"], check=True)
    assert pbs.wait("1.pbs")["Exit_status"] == 0
    assert status("1.pbs") == "failed"


def test_job_killed_at_its_walltime_failed(pbs, jobscript):
    pbs.set(walltime_scale=0.002, kill_delay_s=0.5)
    call("submit", jobscript("sleep 60"))
    assert pbs.wait("1.pbs")["Exit_status"] == -29
    done = call("status", "1.pbs")
    assert done.stdout == "failed\n"
    assert "killed at the end of its walltime" in done.stderr


def test_lost_job_failed(pbs, jobscript):
    call("submit", jobscript("sleep 60"))
    pbs.wait("1.pbs", "R")
    pbs.lose("1.pbs")
    assert status("1.pbs") == "failed"


def test_success_is_known_where_pbs_keeps_no_history(pbs, jobscript):
    pbs.set(history=False)
    call("submit", jobscript("true"))
    call("submit", jobscript("false", output="other.txt"))
    pbs.wait("1.pbs")
    pbs.wait("2.pbs")
    assert (status("1.pbs"), status("2.pbs")) == ("success", "failed")


@pytest.mark.parametrize(("command", "state"), [("true", "success"), ("false", "failed")])
def test_end_that_pbs_does_not_tell_is_that_of_the_jobs_shell(
    pbs, jobscript, quick, tmp_path, monkeypatch, command, state
):
    quick.submit(jobscript(command))
    pbs.wait("1.pbs")
    (tmp_path / "qstat").write_text("#!/bin/bash\nprintf 'Job Id: 1.pbs\n    job_state = F\n'\n")
    (tmp_path / "qstat").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert quick.status("1.pbs") == state


def test_running_job_is_not_taken_for_gone_where_pbs_keeps_no_history(pbs, jobscript, quick):
    """Such jobs were submitted again and again, for one run."""
    pbs.set(history=False)
    assert quick.submit(jobscript("sleep 60")) == "1.pbs"
    pbs.wait("1.pbs", "R")
    assert quick.status("1.pbs") == "running"
    assert quick.submit(jobscript("sleep 60")) == "1.pbs"
    assert list(pbs.jobs()) == ["1.pbs"]


def test_path_of_the_project_may_hold_anything(pbs, jobscript, workdir, tmp_path, monkeypatch):
    """Snakemake's own script changes into the directory; here it is about ours around it."""
    project = tmp_path / "100% my: runs (é) $HOME" / 'it\'s `x` "here"'
    project.mkdir(parents=True)
    script = jobscript("true")
    mine = tmp_path / "100%"  # the first word, to which `>` wrote
    mine.write_text("mine")
    monkeypatch.chdir(project)
    good = Records()
    assert good.submit(script) == "1.pbs"
    assert good.submit(jobscript("false", output="other.txt")) == "2.pbs"
    pbs.wait("1.pbs")
    pbs.wait("2.pbs")
    pbs.set(history=False)
    assert (good.status("1.pbs"), good.status("2.pbs")) == ("success", "failed")
    assert (project / "logs/pbs/train_segment/1.pbs.OU").read_text() == ""
    command = [sys.executable, "-c", "print(__import__('os').getcwd())"]
    log = project / "runs" / "race.log"
    log.parent.mkdir()
    pbs.wait(good.queue.submit(command, {"runtime": 10}, "race", str(log)))
    assert log.read_text() == f"{project}\n"
    assert mine.read_text() == "mine"


def test_server_that_is_down_for_long_at_submission_costs_no_attempt(pbs, jobscript, quick, capsys):
    pbs.set(qsub_fails=3)  # more than one submission tries by itself
    assert quick.submit(jobscript("true")) == "1.pbs"
    assert "PBS does not answer: Connection refused" in capsys.readouterr().err
    assert len(list(quick.directory.glob("scripts/*"))) == 1


def shortages(**wildcards):
    return count_shortages("pbs", "train_segment", wildcards or {"seed": "0"}, since=0)


def test_job_killed_for_its_memory_is_noted(pbs, jobscript, quick, capsys):
    pbs.set(mem="95000kb")
    quick.submit(jobscript("kill -9 $$"))
    pbs.wait("1.pbs")
    assert quick.status("1.pbs") == "failed"
    assert "killed by signal 9; it needed more memory than it had" in capsys.readouterr().err
    assert (shortages(), shortages(seed="1")) == (1, 0)
    assert count_shortages("pbs", "train_segment", {"seed": "0"}, since=time.time() + 9) == 0


@pytest.mark.parametrize(
    ("said", "lacked"),
    [
        ("=>> PBS: job killed: mem 200000kb exceeded limit 102400kb", 1),
        ("Cgroup mem limit exceeded", 1),
        ("MemoryError", 1),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=5.batch", 1),
        ("torch.OutOfMemoryError: CUDA out of memory", 0),
        ("ncclSystemError: node lost", 0),
        ("=>> PBS: job killed: walltime 60 exceeded limit 50", 0),
    ],
)
def test_output_of_a_job_tells_whether_it_lacked_memory(pbs, jobscript, quick, said, lacked):
    quick.submit(jobscript(f"echo '{said}'; false"))
    pbs.wait("1.pbs")
    assert quick.status("1.pbs") == "failed"
    assert shortages() == lacked


def test_silent_server_does_not_lose_a_job(pbs, jobscript):
    call("submit", jobscript("true"))
    pbs.wait("1.pbs")
    pbs.set(qstat_fails=3)
    assert status("1.pbs") == "running"
    assert status("1.pbs") == "success"


def test_refused_job(pbs, jobscript):
    pbs.set(qsub_refuses="Job violates queue and/or server resource limits")
    done = call("submit", jobscript("true"), check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: PBS refused a job: qsub: Job violates queue")
    assert done.stderr.count("\n") == 1


def test_script_of_somebody_else(pbs, workdir):
    (workdir / "own.sh").write_text("true\n")
    with pytest.raises(UserError, match=r"own.sh: expected a job script of Snakemake"):
        Records().submit(workdir / "own.sh")


def test_same_job_is_not_submitted_twice(pbs, jobscript, quick):
    """Snakemake was killed and started again: it knows nothing of the job that runs."""
    first = quick.submit(jobscript("sleep 60"))
    again = quick.submit(jobscript("sleep 60", jobid=7, resources={"runtime": 99}))
    other = quick.submit(jobscript("sleep 60", output="other.txt"))
    assert (first, again, other) == ("1.pbs", "1.pbs", "2.pbs")
    assert set(pbs.jobs()) == {"1.pbs", "2.pbs"}


def test_ended_job_is_submitted_anew(pbs, jobscript, quick):
    quick.submit(jobscript("false"))
    pbs.wait("1.pbs")
    assert quick.submit(jobscript("true")) == "2.pbs"
    names = {path.name for path in quick.directory.glob("jobs/*")}
    assert names == {"2.pbs.json"}, "nobody needs the record of the old one"


def test_job_with_other_settings_is_replaced(pbs, jobscript, quick):
    """Its outputs would be taken for those of the new settings."""
    quick.submit(jobscript("sleep 60", params={"learning_rate": 0.1}))
    pbs.wait("1.pbs", "R")
    assert quick.submit(jobscript("sleep 60", params={"learning_rate": 0.2})) == "2.pbs"
    assert pbs.job("1.pbs")["substate"] == 91
    assert pbs.job("1.pbs")["state"] == "F", "both at once"


def test_cancelled_job_that_is_still_ending_is_not_taken_over(pbs, jobscript, quick):
    pbs.set(kill_delay_s=2)
    stubborn = "trap '' TERM; while :; do sleep 0.1; done; true"
    quick.submit(jobscript(stubborn))
    pbs.wait("1.pbs", "R")
    quick.cancel(["1.pbs"])
    pbs.wait("1.pbs", "E")
    assert quick.submit(jobscript(stubborn)) == "2.pbs"
    assert pbs.job("1.pbs")["state"] == "F", "both at once"


def test_job_that_asked_goes_on_under_another_id(pbs, jobscript, quick, workdir):
    command = f"echo again >> count && if [ $(wc -l < count) -lt 3 ]; then {ASK_AGAIN}; fi"
    assert quick.submit(jobscript(command)) == "1.pbs"
    for id in ("1.pbs", "2.pbs"):
        assert pbs.wait(id)["Exit_status"] == 1
        assert quick.status("1.pbs") == "running"
    pbs.wait("3.pbs")
    assert quick.status("1.pbs") == "success"
    assert (workdir / "count").read_text().count("again") == 3
    assert quick.submit(jobscript("true", params={"new": 1})) == "4.pbs"
    left = [p for p in quick.directory.rglob("*.*") if p.is_file() and p.name[0] in "123"]
    assert left == [], "of the old chain"


def test_running_link_of_a_chain_is_taken_over(pbs, jobscript, quick):
    command = f"if [ -e out.txt ]; then sleep 60; fi && touch out.txt && {ASK_AGAIN}"
    quick.submit(jobscript(command))
    pbs.wait("1.pbs")
    assert quick.status("1.pbs") == "running"
    assert quick.submit(jobscript(command)) == "1.pbs", "the id whose chain is known"
    assert set(pbs.jobs()) == {"1.pbs", "2.pbs"}


def asked(pbs, quick, id, after_s):
    """A job that has ended and requested to be started again."""
    pbs.wait(id)
    variables = {"PBS_JOBID": id, "MILLRACE_PBS_RECORDS": str(quick.directory)}
    variables["MILLRACE_PBS_STARTED"] = str(time.time() - after_s)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        PbsAllocation().requeue()


def test_chain_without_progress_ends(pbs, jobscript, quick, capsys):
    quick.submit(jobscript("false"))
    for n in range(1, records.MAX_SHORT_JOBS + 1):
        asked(pbs, quick, f"{n}.pbs", after_s=5)
        assert quick.status("1.pbs") == "running"
    asked(pbs, quick, f"{records.MAX_SHORT_JOBS + 1}.pbs", after_s=5)
    assert quick.status("1.pbs") == "failed"
    said = capsys.readouterr().err.splitlines()[-1]
    assert "less than 60 s after its start; give it more time than 00:10:00" in said
    assert len(pbs.jobs()) == records.MAX_SHORT_JOBS + 1


def test_chain_with_progress_has_no_limit(pbs, jobscript, quick, monkeypatch):
    monkeypatch.setattr(records, "MAX_SHORT_JOBS", 2)
    quick.submit(jobscript("false"))
    for n in range(1, 8):
        asked(pbs, quick, f"{n}.pbs", after_s=5 if n % 2 else 3600)
        assert quick.status("1.pbs") == "running"


def test_silent_server_does_not_break_a_chain(pbs, jobscript, quick):
    quick.submit(jobscript("false"))
    asked(pbs, quick, "1.pbs", after_s=100)
    pbs.set(qsub_fails=2)
    assert quick.status("1.pbs") == "running"
    assert set(pbs.jobs()) == {"1.pbs"}
    assert quick.status("1.pbs") == "running"
    assert set(pbs.jobs()) == {"1.pbs", "2.pbs"}


def test_refusal_ends_a_chain(pbs, jobscript, quick):
    quick.submit(jobscript("false"))
    asked(pbs, quick, "1.pbs", after_s=100)
    pbs.set(qsub_refuses="Unauthorized Request")
    assert quick.status("1.pbs") == "failed"


def test_deleted_job_does_not_go_on_even_if_it_asked(pbs, jobscript, quick):
    quick.submit(jobscript("sleep 60"))
    pbs.wait("1.pbs", "R")
    subprocess.run(["qdel", "1.pbs"], check=True)
    asked(pbs, quick, "1.pbs", after_s=100)
    assert quick.status("1.pbs") == "failed"
    assert set(pbs.jobs()) == {"1.pbs"}


def test_cancel_deletes_the_newest_job_of_a_chain(pbs, jobscript, workdir):
    """Through the command that the profile names, which has two seconds."""
    quick = Records()
    quick.submit(jobscript(f"if [ -e a ]; then sleep 60; fi && touch a && {ASK_AGAIN}"))
    other = quick.submit(jobscript("sleep 60", output="other.txt"))
    pbs.wait("1.pbs")
    assert quick.status("1.pbs") == "running"
    pbs.wait("3.pbs", "R")
    subprocess.run([CANCEL, "1.pbs", other, "99.pbs"], check=True, timeout=300)
    wait_for(lambda: pbs.job("3.pbs")["substate"] == 91, "not deleted")
    wait_for(lambda: pbs.job(other)["substate"] == 91, "not deleted")
    assert quick.status("1.pbs") == "failed"
    log = (workdir / ".snakemake/pbs/cancel.log").read_text()
    assert log == "", "jobs that have gone are no error"


def test_cancelled_chain_does_not_go_on(pbs, jobscript, quick):
    quick.submit(jobscript("false"))
    asked(pbs, quick, "1.pbs", after_s=100)
    quick.cancel(["1.pbs"])
    assert quick.status("1.pbs") == "failed"
    assert set(pbs.jobs()) == {"1.pbs"}


@pytest.mark.slow
def test_job_submitted_while_it_is_cancelled_is_deleted(pbs, jobscript, quick, monkeypatch):
    quick.submit(jobscript("if [ -e a ]; then sleep 60; fi && touch a && false"))
    asked(pbs, quick, "1.pbs", after_s=100)
    submit = quick.queue.submit_script

    def cancelled_meanwhile(arguments):
        id = submit(arguments)
        Records().cancel(["1.pbs"])
        return id

    monkeypatch.setattr(quick.queue, "submit_script", cancelled_meanwhile)
    assert quick.status("1.pbs") == "running"
    assert pbs.wait("2.pbs")["substate"] == 91


def test_job_script_keeps_secrets_and_finds_this_library(pbs, jobscript, quick, workdir):
    """qsub passes no environment; Snakemake writes what the workflow declares into the script."""
    script = jobscript(f"{sys.executable} -c 'import millrace' && env > seen.txt")
    quick.submit(script)
    job = pbs.wait("1.pbs")
    [copy] = (quick.directory / "scripts").iterdir()
    assert copy.stat().st_mode & 0o077 == 0
    assert job["Exit_status"] == 0
    seen = dict(line.split("=", 1) for line in (workdir / "seen.txt").read_text().splitlines())
    assert seen["MILLRACE_PBS_RECORDS"] == str(quick.directory)
    assert seen["MILLRACE_PBS_WALLTIME_S"] == "600"
    assert abs(float(seen["MILLRACE_PBS_STARTED"]) - job["stime"]) < 3


def test_group_of_jobs(pbs, jobscript, quick):
    """Snakemake tells neither rule nor wildcards of a group, and no long lists of files."""
    pbs.set(hold=True)
    group = {"type": "group", "groupid": "g1", "rule": None, "wildcards": None, "output": None}
    assert quick.submit(jobscript("true", **group)) == "1.pbs"
    assert quick.submit(jobscript("true", **group)) == "1.pbs"
    assert quick.submit(jobscript("true", **{**group, "groupid": "g2"})) == "2.pbs"
    assert pbs.job("1.pbs")["name"] == "g1"
    assert pbs.job("1.pbs")["state"] == "Q", "taken for the job of the other group"
    assert json.loads((quick.directory / "jobs/2.pbs.json").read_text())["ids"] == ["2.pbs"]
