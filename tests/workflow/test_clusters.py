"""The workflow on the profiles of clusters: facts arrive, and nothing is submitted that would fail."""

import os
import shlex
import sys

import pytest
from project import REPOSITORY, Project

QUICK = ("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1")
SIX = ["n1_gpu1", "n1_gpu2", "n2_gpu1", "n2_gpu2", "n1_gpu4", "n4_gpu1"]


class ClusterProject(Project):
    """A new project, run with the profile of a cluster."""

    profile = "profiles/gilbreth"
    account: str | None = None
    path_first = ""

    def command(self, *arguments: str) -> list[str]:
        local = super().command(*arguments)
        return [self.profile if word == "profiles/local" else word for word in local]

    def environment(self) -> dict[str, str]:
        own = super().environment()
        own = {key: value for key, value in own.items() if not key.startswith("MILLRACE_")}
        own["PATH"] = f"{self.path_first}{os.pathsep}{own['PATH']}"
        return own | ({"MILLRACE_ACCOUNT": self.account} if self.account else {})

    def resources(self, rule: str, *arguments: str) -> dict[str, str]:
        """Resources of the first job of a rule in a dry run."""
        lines = self.run("-n", *arguments).stdout.splitlines()
        first = lines.index(f"rule {rule}:")
        (line,) = [one for one in lines[first : first + 12] if one.strip().startswith("resources:")]
        return dict(
            pair.split("=", 1) for pair in line.split(": ", 1)[1].split(", ") if "=" in pair
        )

    def refused(self, *arguments: str) -> str:
        done = self.run(*arguments, check=False)
        assert done.returncode != 0
        return done.stdout + done.stderr


@pytest.fixture
def cluster(tmp_path) -> ClusterProject:
    return ClusterProject(tmp_path / "project")


@pytest.mark.parametrize("name", ["gilbreth", "levante"])
def test_all_six_layouts_are_planned_on_slurm(cluster, name):
    cluster.profile = f"profiles/{name}"
    cluster.config["run"]["layouts"] = SIX
    planned = cluster.planned()
    assert planned["train_segment"] == 12
    assert planned["summarise_skill"] == 1


def test_facts_survive_the_users_configuration(cluster):
    cluster.config["run"]["layouts"] = ["n1_gpu4"]
    by_file = cluster.resources("train_segment")  # the project always gives --configfile
    by_value = cluster.resources("train_segment", "--config", "run={layouts: [n2_gpu2]}")
    assert (by_file["gres"], by_file["constraint"]) == ("gpu:4", "nvlink")
    assert (by_value["gres"], by_value["nodes"], by_value["mpi"]) == ("gpu:2", "2", "srun")
    assert by_file["site"] == str(cluster.path("profiles/gilbreth"))


def test_an_option_of_the_user_wins_over_the_facts(cluster):
    given = cluster.resources("train_segment", "--set-resources", "train_segment:runtime=99")
    assert given["runtime"] == "99"
    assert given["slurm_partition"] == "a100-80gb"


def test_this_machine_asks_for_nothing(cluster):
    cluster.profile = "profiles/local"
    assert set(cluster.resources("train_segment")) <= {"tmpdir"}


def test_several_nodes_of_katana_are_refused_when_planned(cluster):
    cluster.profile = "profiles/katana"
    cluster.config["run"]["layouts"] = ["n1_gpu1", "n4_gpu1"]
    message = cluster.refused("-n")
    assert "layout n4_gpu1 does not fit on katana" in message
    assert "runs jobs of one node only: the nearest layout that fits is n1_gpu4" in message
    cluster.config["run"]["layouts"] = ["n1_gpu4"]
    assert cluster.resources("train_segment")["ngpus"] == "4"


def test_a_cluster_is_one_folder(cluster):
    """A new profile needs no change of code."""
    new = cluster.path("profiles/ours")
    cluster.path("profiles/levante").rename(new)
    for name in ("config.yaml", "cluster.yaml"):
        text = (new / name).read_text()
        (new / name).write_text(text.replace("'levante'", "'ours'").replace("gpu\n", "fast\n"))
    cluster.profile = "profiles/ours"
    assert cluster.resources("train_segment")["slurm_partition"] == "fast"


def test_a_mistake_in_the_facts_is_one_sentence(cluster):
    facts = cluster.path("profiles/gilbreth/cluster.yaml")
    facts.write_text(facts.read_text().replace("scheduler: slurm", "scheduler: slrm"))
    assert (
        "gilbreth/cluster.yaml: scheduler: expected one of slurm, pbs, got 'slrm'"
        in cluster.refused("-n")
    )


@pytest.mark.slow
def test_replaced_default_resources_are_noticed_before_anything_is_submitted(cluster, tmp_path):
    submitted = fake_slurm(cluster, tmp_path)
    cluster.account = "lab"
    message = cluster.refused("--default-resources", "mem_mb=4000", "--retries", "0", *QUICK)
    assert "no cluster is known" in message
    assert "add site=<name of the cluster>" in message
    assert not submitted.exists()
    both = ("--default-resources", "mem_mb=4000", "site=gilbreth")
    assert cluster.resources("train_segment", *both)["slurm_partition"] == "a100-80gb"


@pytest.mark.slow
def test_a_missing_account_is_refused_only_when_jobs_would_be_submitted(cluster, tmp_path):
    submitted = fake_slurm(cluster, tmp_path)
    assert cluster.planned()["train_segment"] == 2
    message = cluster.refused("--retries", "0", *QUICK)
    assert "gilbreth: jobs need an account: set it with `export MILLRACE_ACCOUNT=<name>`" in message
    assert not submitted.exists()


def test_the_request_of_a_job_is_the_golden_one(cluster, tmp_path):
    """Real Snakemake with its real plugin, in front of an `sbatch` that notes what it is asked."""
    submitted = fake_slurm(cluster, tmp_path)
    cluster.account = "lab"
    cluster.refused("--retries", "0", "--slurm-init-seconds-before-status-checks", "1")
    asked = shlex.split(submitted.read_text().splitlines()[0])
    asked = asked[
        asked.index("-A") : next(i for i, w in enumerate(asked) if w.startswith("--wrap"))
    ]
    del asked[asked.index("-D") : asked.index("-D") + 2]  # the folder of the project
    golden = (REPOSITORY / "tests/golden/requests/gilbreth.txt").read_text().split("\n")
    expected = shlex.split(golden[golden.index("simulate_raw") + 1])[1:]
    assert asked == expected[expected.index("-A") :]


@pytest.mark.parametrize(
    ("said", "times"),
    [
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=5.batch.", [1, 2, 3]),
        ("slurmstepd: error: *** JOB 5 CANCELLED DUE TO NODE FAILURE ***", [1, 1, 1]),
    ],
)
def test_only_lack_of_memory_asks_for_more_of_it(cluster, tmp_path, said, times):
    submitted = fake_slurm(cluster, tmp_path, said)
    cluster.account = "lab"
    cluster.refused(
        *("--retries", "2", "--slurm-init-seconds-before-status-checks", "1"),
        *("--", "results/data/small/raw"),
    )
    lines = [shlex.split(line) for line in submitted.read_text().splitlines()]
    asked = [int(words[words.index("--mem") + 1]) for words in lines]
    assert asked == [asked[0] * n for n in times]


def fake_slurm(cluster: ClusterProject, tmp_path, said=""):
    """Commands of SLURM that know nothing, and an `sbatch` that notes its arguments and fails.

    What is ``said`` is the output of the jobs.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    note = tmp_path / "submitted"
    script = f"#!{sys.executable}\nimport sys, shlex\n"
    (folder / "sbatch").write_text(
        f"{script}with open({str(note)!r}, 'a') as file:\n"
        "    print(shlex.join(sys.argv[1:]), file=file)\n"
        f"number = len(open({str(note)!r}).readlines())\n"
        "log = sys.argv[sys.argv.index('--output') + 1].replace('%j', str(number))\n"
        f"open(log, 'w').write({said!r})\n"
        "sys.exit(1)\n"
    )
    for name in ("sacctmgr", "sshare", "squeue", "scontrol", "sinfo", "sacct"):
        (folder / name).write_text("#!/bin/sh\n")
    for path in folder.iterdir():
        path.chmod(0o755)
    cluster.path_first = str(folder)
    return note


def test_a_folder_whose_name_slurm_cannot_take_is_refused_when_planned(tmp_path):
    said = ClusterProject(tmp_path / "100%").refused("-n")
    assert "100%: SLURM replaces what follows a % in the paths of its logs" in said
