"""SLURM judged by what its commands really print (22.05), and each check failing once."""

import getpass

import pytest

from millrace.doctor import checks as doctor_checks
from millrace.doctor.checks import Result
from millrace.doctor.slurm import (
    check_account,
    check_answer,
    check_nodes,
    check_partition,
    check_request,
    check_slurm,
    gpus_of,
    hours,
    read_nodes,
)
from millrace.layout import Layout

UP = "Slurmctld(primary) at vm is UP\n"
PARTITION = "a100-80gb|up|14-00:00:00|2|nvlink,K\n"
NODES = (
    "k000|a100-80gb*|64|512000|gpu:a100:2(S:0-1)|nvlink,K|idle\n"
    "k001|a100-80gb*|64|512000|gpu:a100:2(S:0-1)|nvlink,K|mix\n"
    "c000|compute|128|256000|(null)|(null)|idle\n"
)
WOULD_START = (
    "sbatch: Job 4 to start at 2026-11-21T11:48:54 using 16 processors on nodes k[000-001] in "
    "partition a100-80gb\n"
)
N2_GPU2 = Layout(2, 2)


@pytest.fixture
def slurm(commands):
    """A SLURM where all is well."""
    for name in ("squeue", "scancel", "srun"):
        commands.says(name)
    commands.says("scontrol", UP)
    commands.says("sacctmgr", "proj||normal,standby\nroot||normal\n")
    commands.says("sinfo", PARTITION)
    commands.says("sbatch", err=WOULD_START)
    return commands


def failed(check, detail, remedy):
    assert check.result is Result.FAILED, check
    assert detail in check.detail
    assert remedy in check.remedy
    assert check.remedy.endswith(".")


def test_missing_commands(slurm, cluster):
    assert check_slurm(cluster, [])[0].result is Result.OK
    (slurm.folder / "srun").unlink()
    failed(check_slurm(cluster, [])[0], "not on PATH: srun", "login node")


def test_a_controller_that_does_not_answer(slurm, cluster):
    assert check_answer().result is Result.OK
    slurm.says("scontrol", "Slurmctld(primary) at vm is DOWN\n", code=1)
    failed(check_answer(), "is DOWN", "try again")
    checks = check_slurm(cluster, [N2_GPU2])
    assert [check.name for check in checks] == ["SLURM commands", "SLURM answers"]


def test_a_command_that_hangs_is_given_up(slurm, monkeypatch):
    monkeypatch.setattr(doctor_checks, "COMMAND_TIMEOUT_S", 0.2)
    (slurm.folder / "scontrol").write_text("#!/bin/sh\nexec /bin/sleep 20\n")
    failed(check_answer(), "no answer within", "try again")


def test_accounts(slurm, make_cluster):
    known = check_account(make_cluster())
    assert (known.result, known.detail) == (Result.OK, "proj, QOS normal, standby")
    assert f"user={getpass.getuser()}" in slurm.calls("sacctmgr")[0].split()
    failed(check_account(make_cluster(account="")), "none is named", "MILLRACE_ACCOUNT")
    failed(check_account(make_cluster(account="other")), "'other', but proj, root", "one of these")
    wanting = check_account(make_cluster(account="root", qos="standby"))
    assert wanting.result is Result.WARNING
    assert "QOS standby not granted" in wanting.detail


def test_without_accounting_the_account_is_not_judged(slurm, cluster):
    slurm.says("sacctmgr", err="sacctmgr: error: accounting_storage/none\n", code=1)
    check = check_account(cluster)
    assert check.result is Result.SKIPPED
    assert "accounting_storage/none" in check.detail


def test_partitions(slurm, cluster):
    kinds = list(cluster.node_types)
    good = check_partition(cluster, "a100-80gb", kinds)
    assert (good.result, good.detail) == (Result.OK, "up, 2 node(s), limit 14-00:00:00")
    slurm.says("sinfo", "")
    failed(check_partition(cluster, "a100-80gb", kinds), "no such partition", "sinfo -s")
    slurm.says("sinfo", PARTITION.replace("|up|", "|down|"))
    failed(check_partition(cluster, "a100-80gb", kinds), "it is down", "Wait")
    slurm.says("sinfo", PARTITION.replace("nvlink,", ""))
    failed(check_partition(cluster, "a100-80gb", kinds), "feature nvlink", "`constraint`")
    slurm.says("sinfo", PARTITION.replace("14-00", "12"))
    failed(check_partition(cluster, "a100-80gb", kinds), "limit is 12 h", "`max_hours`")


def test_nodes_with_less_than_the_facts_say(slurm, make_cluster):
    def judge(listed, **changes):
        slurm.says("sinfo", listed)
        facts = make_cluster()
        return check_nodes(facts, facts.node_types[0].replaced(**changes), read_nodes())

    good = judge(NODES)
    assert (good.result, good.detail.split(",")[-1]) == (Result.OK, " 2 of them usable now")
    failed(judge(NODES, gpus=4), "says 4 GPUs", "cluster.yaml")
    failed(judge(NODES, cores=128), "best node has 2 GPUs, 64 cores, 512000 MB", "cluster.yaml")
    failed(judge(NODES, memory_gb=1024), "512000 MB (k00", "cluster.yaml")
    failed(judge(NODES, partition="compute"), "no node of partition compute", "sinfo -N -l")
    few = judge(NODES, count=52)
    assert few.result is Result.WARNING
    assert "2 node(s)" in few.detail
    assert "says 52" in few.detail
    away = judge(NODES.replace("|idle", "|drain").replace("|mix", "|down*"))
    assert away.result is Result.WARNING
    assert "none of them usable" in away.detail
    slurm.says("sinfo", err="sinfo: error: no controller\n", code=1)
    assert check_nodes(make_cluster(), make_cluster().node_types[0], read_nodes()).result is (
        Result.SKIPPED
    )


def test_the_request_of_a_layout_is_the_real_one(slurm, cluster):
    check = check_request(cluster, N2_GPU2)
    assert check.result is Result.OK
    assert "2026-11-21 11:48:54" in check.detail
    asked = slurm.calls("sbatch")[0]
    assert asked.startswith("--test-only --job-name=millrace-doctor")
    for option in (
        "--account=proj", "--partition=a100-80gb", "--constraint=nvlink", "--qos=normal",
        "--time=720", "--mem=204800", "--nodes=2", "--ntasks=2", "--cpus-per-task=16",
        "--gres=gpu:2",
    ):  # fmt: skip
        assert option in asked.split()


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("Invalid account or account/partition combination specified", "MILLRACE_ACCOUNT"),
        ("Invalid qos specification", "`qos`"),
        ("Invalid partition name specified", "`partition`"),
        ("Requested node configuration is not available", "GPUs, cores, memory and constraint"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "`max_hours`"),
        ("Something new", "cluster.yaml"),
    ],
)
def test_refused_requests(slurm, cluster, said, remedy):
    slurm.says("sbatch", err=f"allocation failure: {said}\n", code=1)
    failed(check_request(cluster, N2_GPU2), said, remedy)


def test_layouts_that_fit_nowhere_and_jobs_that_would_wait_for_ever(slurm, cluster):
    failed(check_request(cluster, Layout(1, 8)), "n1_gpu8", "another layout")
    slurm.says("sinfo", "2:00:00\n")
    failed(check_request(cluster, N2_GPU2), "the partition's limit is 2 h", "`max_hours`")


def test_all_checks_in_order(slurm, cluster):
    slurm.says("sinfo", PARTITION)
    names = [check.name for check in check_slurm(cluster, [N2_GPU2, None])]
    assert names == [
        "SLURM commands", "SLURM answers", "account", "partition a100-80gb", "node type K",
        "request of n2_gpu2", "request of CPU rules",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("(null)", 0), ("gpu:2", 2), ("gpu:a100:4", 4), ("gpu:a100:2(S:0-1),nvme:1", 2),
        ("gpu:a100:1,gpu:v100:3(S:0)", 4), ("gpu", 1),
    ],
)  # fmt: skip
def test_gpus_of_a_node(gres, count):
    assert gpus_of(gres) == count


@pytest.mark.parametrize(
    ("limit", "value"),
    [("14-00:00:00", 336), ("12:00:00", 12), ("30:00", 0.5), ("infinite", float("inf"))],
)
def test_limits(limit, value):
    assert hours(limit) == value
