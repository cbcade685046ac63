"""PBS judged by the JSON of OpenPBS 23.06, and each check failing once."""

import json

import pytest

from millrace.doctor.checks import Result
from millrace.doctor.pbs import (
    check_account,
    check_answer,
    check_history,
    check_nodes,
    check_pbs,
    check_queue,
    check_request,
    read_nodes,
)
from millrace.layout import Layout

SERVER = """Server             Max   Tot   Que   Run   Hld   Wat   Trn   Ext Status
---------------- ----- ----- ----- ----- ----- ----- ----- ----- -----------
kman                 0    31    11    20     0     0     0     0 Active
"""
QUEUE = {"queue_type": "Execution", "enabled": "True", "started": "True"}
QUEUE |= {"resources_max": {"walltime": "12:00:00"}}
NODE = {"gpu_model": "H200", "mem": "1584954264kb", "ncpus": 32, "ngpus": 4}


def nodes(**changes):
    described = {"state": "free", "resources_available": {**NODE, **changes}}
    return json.dumps({"nodes": {"k121": described, "k122": described}})


@pytest.fixture
def pbs(commands):
    commands.says("qsub")
    commands.says("qdel")
    commands.says("qstat", SERVER)
    commands.says("pbsnodes", nodes())
    return commands


def failed(check, detail, remedy):
    assert check.result is Result.FAILED, check
    assert detail in check.detail
    assert remedy in check.remedy


def test_commands_and_server(pbs, pbs_cluster):
    assert check_answer().detail == "kman 0 31 11 20 0 0 0 0 Active"
    pbs.says("qstat", err="Connection refused\nqstat: cannot connect to server kman\n", code=111)
    failed(check_answer(), "cannot connect to server", "try again")
    (pbs.folder / "qsub").unlink()
    first, second = check_pbs(pbs_cluster, [])
    failed(first, "not on PATH: qsub", "/opt/pbs/bin")
    assert second.result is Result.FAILED


def test_account(pbs_cluster):
    assert check_account(pbs_cluster).result is Result.NOT_APPLICABLE
    asking = pbs_cluster.replaced(account_required=True)
    failed(check_account(asking), "none is named", "MILLRACE_ACCOUNT")
    assert check_account(asking.replaced(account="x")).result is Result.SKIPPED


def test_queues(pbs, pbs_cluster):
    pbs.says("qstat", json.dumps({"Queue": {"gpuq": QUEUE}}))
    good = check_queue(pbs_cluster, "gpuq")
    assert (good.result, good.detail) == (Result.OK, "enabled and started, walltime limit 12:00:00")
    assert pbs.calls("qstat")[-1] == "-Q -f -F json gpuq"
    pbs.says("qstat", json.dumps({"Queue": {"gpuq": {**QUEUE, "started": "False"}}}))
    failed(check_queue(pbs_cluster, "gpuq"), "it is not started", "Wait")
    pbs.says("qstat", err="qstat: Unknown queue gpuq\n", code=170)
    failed(check_queue(pbs_cluster, "gpuq"), "Unknown queue", "qstat -Q")


def test_nodes_with_less_than_the_facts_say(pbs, pbs_cluster):
    (kind,) = pbs_cluster.node_types

    def judge(text):
        pbs.says("pbsnodes", text)
        return check_nodes(pbs_cluster, kind, read_nodes())

    assert judge(nodes()).result is Result.OK
    failed(judge(nodes(ngpus=2)), "says 4 GPUs", "cluster.yaml")
    failed(judge(nodes(ncpus=16)), "best node has 4 GPUs, 16 cores", "cluster.yaml")
    failed(judge(nodes(mem="64gb")), "65536 MB (k12", "cluster.yaml")
    failed(
        judge(nodes(gpu_model="L40S")), "no node has gpu_model=H200; there are L40S", "gpu_model"
    )
    away = judge(nodes().replace('"free"', '"down,offline"'))
    assert away.result is Result.WARNING
    assert judge("pbsnodes: not allowed").result is Result.SKIPPED


def vnodes(*models, **changes):
    """What pbsnodes tells of a host whose vnodes have these GPUs: with -v, and added up without."""
    shown = {}
    for n, model in enumerate(models):
        has = {**NODE, "gpu_model": model, "host": "k1", **changes}
        shown[f"k1[{n}]"] = {"state": "free", "Mom": "k1", "resources_available": has}
    total = {**NODE, **{key: len(models) * NODE[key] for key in ("ncpus", "ngpus")}}
    summed = {"state": "free", "resources_available": {**total, "gpu_model": "<various>"}}
    return {"v": json.dumps({"nodes": shown}), "a": json.dumps({"nodes": {"k1": summed}})}


def test_vnodes_are_not_added_up(pbs, pbs_cluster):
    (kind,) = pbs_cluster.node_types
    pbs.answers("pbsnodes", **vnodes("H200", "H200", "L40S"))
    check = check_nodes(pbs_cluster, kind, read_nodes())
    assert (check.result, check.detail[:9]) == (Result.OK, "2 node(s)")


def test_host_may_be_divided_into_vnodes(pbs, pbs_cluster):
    """Such as its sockets: a job takes several of them."""
    (kind,) = pbs_cluster.node_types
    one = kind.model_copy(update={"count": 1})
    pbs.answers("pbsnodes", **vnodes("H200", "H200", ngpus=2, ncpus=16))
    check = check_nodes(pbs_cluster, one, read_nodes())
    assert (check.result, check.detail[:9]) == (Result.OK, "1 node(s)")
    pbs.answers("pbsnodes", **vnodes("H200", "L40S", ngpus=2, ncpus=16))
    failed(check_nodes(pbs_cluster, one, read_nodes()), "best node has 2 GPUs", "cluster.yaml")


@pytest.mark.parametrize(
    ("said", "result"),
    [
        ("    job_history_enable = True\n    job_history_duration = 336:00:00\n", Result.OK),
        ("    job_history_enable = False\n", Result.WARNING),
        ("", Result.WARNING),
    ],
)
def test_history_of_jobs(pbs, said, result):
    pbs.says("qstat", f"Server: k1\n    server_state = Active\n{said}")
    check = check_history()
    assert check.result is result
    assert result is Result.OK or "qmgr" in check.remedy
    assert pbs.calls("qstat") == ["-B -f"]


def test_requests(pbs_cluster):
    good = check_request(pbs_cluster, Layout(1, 2))
    assert good.result is Result.OK
    assert "select=1:ncpus=16:mem=94208mb:ngpus=2:gpu_model=H200" in good.detail
    failed(check_request(pbs_cluster, Layout(1, 8)), "n1_gpu8", "another layout")
