"""Snakemake, its plugin cluster-generic and the three commands, on jobs that only sleep."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pausing import wait_between_questions
from pbs_server import KATANA, PATIENCE, is_asking, wait_for
from project import Project

PROFILES = Path(__file__).parents[3] / "profiles"
SNAKEFILE = """
rule all:
    input: "one.txt", "two.txt"

rule make:
    output: "{name}.txt"
    resources: runtime=10
    shell: "%s; touch {output}"
"""


class Head:
    """Snakemake on the login node, with the options of the profile katana but no facts of it."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        options = yaml.safe_load((PROFILES / "katana" / "config.yaml").read_text())
        options |= yaml.safe_load((PROFILES / "default" / "config.yaml").read_text())
        options |= {
            "cluster-generic-cancel-cmd": str(PROFILES / "katana" / "pbs-cancel"),
            "default-resources": ["ncpus=1"],
            "seconds-between-status-checks": 1,
            "max-status-checks-per-second": 10,
            "latency-wait": 5,
            "retries": 1,
        }
        (workdir / "profile").mkdir()
        (workdir / "profile" / "config.yaml").write_text(yaml.safe_dump(options))

    def start(self, command: str, *targets: str, options=()) -> subprocess.Popen:
        (self.workdir / "Snakefile").write_text(SNAKEFILE % command)
        call = [sys.executable, "-m", "snakemake", "--workflow-profile", "profile", *options]
        return subprocess.Popen(
            [*call, "--", *targets],
            cwd=self.workdir,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str, *targets: str, options=(), fails=False) -> str:
        process = self.start(command, *targets, options=options)
        said, _ = process.communicate(timeout=PATIENCE)
        assert (process.returncode != 0) == fails, said
        return said


pytestmark = pytest.mark.slow


@pytest.fixture
def head(pbs, workdir):
    return Head(workdir)


def test_jobs_run_side_by_side_and_to_the_end(pbs, head, workdir):
    head.run("sleep 1")
    assert (workdir / "one.txt").exists()
    jobs = pbs.jobs().values()
    assert [job["Exit_status"] for job in jobs] == [0, 0]
    assert max(job["stime"] for job in jobs) < min(job["obittime"] for job in jobs)


def test_silent_qstat_loses_no_job(pbs, head, workdir):
    process = head.start("sleep 3", "one.txt")
    wait_for(pbs.jobs, "nothing was submitted")
    pbs.wait("1.pbs", "R")
    pbs.set(qstat_fails=6)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert list(pbs.jobs()) == ["1.pbs"], "submitted again"


def test_silent_qsub_fails_no_job(pbs, head):
    pbs.set(qsub_fails=1)
    head.run("true", "one.txt", options=["--retries", "0"])
    assert list(pbs.jobs()) == ["1.pbs"]


def test_vanished_job_is_tried_again(pbs, head, workdir):
    process = head.start("if [ -e seen ]; then true; else touch seen; sleep 60; fi", "one.txt")
    wait_for(lambda: (workdir / "seen").exists(), "the job did not start")
    pbs.lose("1.pbs")
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert "PBS does not know this job" in said
    assert list(pbs.jobs()) == ["2.pbs"]


def test_job_deleted_by_the_user_failed(pbs, head, workdir):
    process = head.start("touch seen; sleep 60", "one.txt", options=["--retries", "0"])
    wait_for(lambda: (workdir / "seen").exists(), "the job did not start")
    subprocess.run(["qdel", "1.pbs"], check=True)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "PBS job 1.pbs: deleted (qdel)" in said
    assert list(pbs.jobs()) == ["1.pbs"]


def test_refused_job_is_told_and_fails(pbs, head):
    pbs.set(qsub_refuses="Job violates queue and/or server resource limits")
    said = head.run("true", "one.txt", options=["--retries", "0"], fails=True)
    assert "error: PBS refused a job: qsub: Job violates queue" in said


def test_interrupt_deletes_the_jobs(pbs, head, workdir):
    process = head.start("sleep 600", "one.txt", options=["--seconds-between-status-checks", "12"])
    wait_between_questions(process, ["millrace.schedulers.pbs status"])
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert pbs.wait("1.pbs")["substate"] == 91


def test_head_killed_and_started_again_takes_the_job_over(pbs, head, workdir):
    command = "touch seen; while [ ! -e go ]; do sleep 0.1; done"
    process = head.start(command, "one.txt")
    wait_for(lambda: (workdir / "seen").exists(), "the job did not start")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    head.run(command, options=["--unlock"])
    process = head.start(command, "one.txt")
    wait_for(lambda: is_asking(process), "the job was not taken over")
    (workdir / "go").touch()
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert "PBS job 1.pbs already exists for the same files; continuing with it" in said
    assert list(pbs.jobs()) == ["1.pbs"]


@pytest.mark.parametrize(("error", "times"), [("MemoryError", 2), ("RuntimeError", 1)])
def test_only_lack_of_memory_asks_for_more_of_it(pbs, tmp_path, error, times):
    project = Project(tmp_path / "project", (*KATANA, "--retries", "1"))
    project.path("workflow/scripts/simulate_raw.py").write_text(f"raise {error}('here')\n")
    assert project.run("--", "results/data/small/raw", check=False).returncode
    asked = [
        int(job["resources"]["select"].partition("mem=")[2].partition("mb")[0])
        for job in pbs.jobs().values()
    ]
    assert asked == [asked[0], times * asked[0]]
