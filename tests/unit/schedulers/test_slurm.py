"""SLURM's answers, as its commands print them, and what is made of them."""

import os
from datetime import datetime

import pytest

from millrace.layout import Layout
from millrace.schedulers import SchedulerError, State, allocation, queue
from millrace.schedulers import slurm as module
from millrace.schedulers.slurm import SlurmAllocation, SlurmQueue

JOBS = r"""
12|RUNNING|train|g[001-002]|None|2026-11-21T10:00:00|2026-11-21T14:00:00
13|PENDING|train||Resources|2026-11-21T12:00:00|N/A
14|CANCELLED|a|b "c" %j|g003|None|2026-11-21T09:00:00|2026-11-21T09:10:00
15|COMPLETED|||g003|None|2026-11-21T09:00:00|2026-11-21T09:10:00
16|NODE_FAIL|12|RUNNING|g003|None|2026-11-21T09:00:00|2026-11-21T09:10:00
17|COMPLETING|train|g003|None|2026-11-21T09:00:00|2026-11-21T09:10:00
""".strip()
# Answers in the format that it is asked for; the name may hold the separator.
SQUEUE = r"""
while [ $# -gt 1 ]; do case "$1" in -o) format=$2;; esac; shift; done
while read -r line; do
    id=${line%%|*}; line=${line#*|}
    state=${line%%|*}; line=${line#*|}
    end=${line##*|}; line=${line%|*}
    start=${line##*|}; line=${line%|*}
    reason=${line##*|}; line=${line%|*}
    nodes=${line##*|}; name=${line%|*}
    said=${format//%i/$id}; said=${said//%T/$state}; said=${said//%N/$nodes}
    said=${said//%S/$start}; said=${said//%e/$end}; said=${said//%r/$reason}
    echo "${said//%j/$name}"
done <<'END'
JOBS
END
""".replace("JOBS", JOBS)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Put commands on the PATH: (name, script of bash)."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(module, "PAUSE_S", 0.01)

    def make(name, script):
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    return make


def test_states_whatever_the_names_of_jobs(commands) -> None:
    commands("squeue", SQUEUE)
    commands("scontrol", 'printf "g001\\ng002\\n"')
    commands("sacct", 'printf "CANCELLED by 1000|None assigned|Unknown|Unknown\\n"')
    jobs = SlurmQueue().jobs(["12", "13", "14", "15", "16", "17", "7"])
    assert [job.state for job in jobs.values()] == [
        *(State.RUNNING, State.PENDING, State.FAILED, State.DONE, State.FAILED, State.RUNNING),
        State.FAILED,
    ]
    assert jobs["12"].nodes == ("g001", "g002")
    assert jobs["12"].end == datetime(2026, 11, 21, 14).timestamp()
    assert jobs["13"].reason == "Resources"
    assert jobs["13"].end is None
    assert jobs["7"].nodes == ()


def test_forgotten_job_is_gone(commands) -> None:
    commands("squeue", "true")
    commands("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert SlurmQueue().jobs(["7"])["7"].state is State.GONE


def test_controller_that_does_not_answer_is_asked_again_then_unknown(commands, tmp_path) -> None:
    commands(
        "squeue",
        f"echo x >> {tmp_path}/asked\n"
        "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1",
    )
    job = SlurmQueue().jobs(["7"])["7"]
    assert job.state is State.UNKNOWN
    assert "Unable to contact" in job.reason
    assert len((tmp_path / "asked").read_text().split()) == 4


def test_refusal_is_said_with_the_request(commands) -> None:
    commands("sbatch", "echo 'sbatch: error: Invalid account' >&2; exit 1")
    resources = {"slurm_partition": "a100", "nodes": 1, "gres": "gpu:2", "cpus_per_task": 4}
    with pytest.raises(SchedulerError, match=r"--partition=a100 .*--gres=gpu:2.*Invalid account"):
        SlurmQueue().submit(["true"], resources, "race", "race.log")


def test_submission_gives_the_id(commands, tmp_path) -> None:
    commands("sbatch", f'printf "%s\\n" "$@" > {tmp_path}/given; echo "42;cluster"')
    assert SlurmQueue().submit(["echo", "a b"], {"nodes": 1}, "race", "race.log") == "42"
    given = (tmp_path / "given").read_text().splitlines()
    assert given[-1] == "--wrap=exec echo 'a b'"
    assert "--export=ALL" in given
    assert "--output=race.log" in given


def test_output_is_named_without_the_path_of_the_project(commands, tmp_path, monkeypatch) -> None:
    """SLURM would replace what begins with a percent sign."""
    project = tmp_path / "100%job (é)" / "it's"
    project.mkdir(parents=True)
    monkeypatch.chdir(project)
    commands("sbatch", f'printf "%s\\n" "$@" > {tmp_path}/given; echo 42')
    SlurmQueue().submit(["echo", "a b"], {"nodes": 1}, "race", str(project / "runs" / "race.log"))
    given = (tmp_path / "given").read_text().splitlines()
    assert "--output=runs/race.log" in given
    assert str(project) in given, "the directory of the job"


def test_step_of_a_job_with_and_without_gpus(commands) -> None:
    commands("scontrol", "echo '   TresPerNode=gres:gpu:2'")
    step = SlurmAllocation("9").on_each_node(["agent", "x"], Layout(3, 2), 8)
    assert step[0] == "srun"
    assert step[-2:] == ["agent", "x"]
    wanted = {"--overlap", "--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "--gres=gpu:2"}
    assert wanted <= set(step)
    commands("scontrol", "echo '   NumNodes=1'")
    assert not any("gres" in w for w in SlurmAllocation("9").on_each_node(["x"], Layout(1, 2), 8))


def test_end_of_the_job(commands) -> None:
    commands("squeue", "echo 2026-11-21T14:00:00")
    assert SlurmAllocation("9").end() == datetime(2026, 11, 21, 14).timestamp()
    commands("squeue", "echo N/A")
    assert SlurmAllocation("9").end() is None


def test_job_that_cannot_be_requeued_is_told_so(commands, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    disabled = "echo >> asked; echo 'Requested operation is presently disabled' >&2; exit 1"
    commands("scontrol", disabled)
    assert SlurmAllocation("9").requeue() is False
    assert (tmp_path / "asked").read_text() == "\n", "asked in vain again"


@pytest.mark.parametrize(
    ("variables", "there", "answer", "scheduler", "job"),
    [
        ({"SLURM_JOB_ID": "5"}, "squeue", "echo RUNNING", "slurm", "5"),
        ({"SLURM_JOB_ID": "5"}, "squeue", "echo Socket timed out >&2; exit 1", "slurm", "5"),
        ({"PBS_JOBID": "6.server"}, "qstat", "", "pbs", "6.server"),
        ({"SLURM_JOB_ID": "5", "PBS_JOBID": "5.qsub"}, "squeue", "echo COMPLETING", "slurm", "5"),
        ({}, "squeue", "", "", ""),
        # Left over in a shell or a container.
        ({"SLURM_JOB_ID": "5"}, "squeue", "", "", ""),
        ({"SLURM_JOB_ID": "5"}, "squeue", "echo TIMEOUT", "", ""),
        ({"SLURM_JOB_ID": "5"}, "squeue", "echo Invalid job id specified >&2; exit 1", "", ""),
        ({"SLURM_JOB_ID": "5"}, "nothing", "", "", ""),
        ({"PBS_JOBID": "6.server"}, "nothing", "", "", ""),
    ],
)
def test_allocation_from_the_environment(
    commands, monkeypatch, variables, there, answer, scheduler, job
) -> None:
    commands(there, answer)
    monkeypatch.setattr("millrace.schedulers.slurm.PAUSE_S", 0.0)
    monkeypatch.setattr(
        "millrace.schedulers.shutil.which", lambda name: name if name == there else None
    )
    for name in ("SLURM_JOB_ID", "PBS_JOBID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    here = allocation()
    assert (here.scheduler, here.job) == (scheduler, job)


def test_unknown_scheduler() -> None:
    with pytest.raises(Exception, match="expected one of slurm, pbs"):
        queue("lsf")
