"""The checks inside a job: for real on two ranks, and judged on what ranks could write."""

import copy
import json
import os

import pytest

from millrace.doctor import inside
from millrace.doctor import worker as preflight
from millrace.doctor.checks import Result
from millrace.doctor.inside import FailedError, check_layout, judge, judge_together, prepare, run
from millrace.doctor.worker import look, look_at_others
from millrace.layout import Layout
from millrace.training.distributed import Ranks

N2_GPU2 = Layout(2, 2)
INFINIBAND = (
    "k0:1:1 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [RO]; OOB ib0:10.0.0.1<0>\n"
    "k0:1:1 [0] NCCL INFO Using network IB\n"
)
SOCKET = (
    "k0:1:1 [0] NCCL INFO NET/Socket : Using [0]eth0:10.0.0.1<0>\n"
    "k0:1:1 [0] NCCL INFO Using network Socket\n"
)


@pytest.fixture
def facts():
    """Four ranks on two sound nodes."""
    return {
        rank: {
            "host": f"k{rank // 2}", "node": f"k{rank // 2}", "python": "/shared/bin/python",
            "torch": "2.13.0+cu130", "sees_folder": True, "cpus": 16, "memory_bytes": 512 * 2**30,
            "interfaces": ["eth0", "ib0", "lo"], "environment": {"NCCL_SOCKET_IFNAME": "ib0"},
            "gpus": 2, "cuda": "13.0", "gpu_problem": None, "gpu_model": "NVIDIA A100-SXM4-80GB",
            "gpu_bytes": 85_100_000_000, "gpu_uuid": f"GPU-{rank}", "waited_s": 1.5,
            "missing_ranks": [], "unknown_hosts": [],
        }
        for rank in range(4)
    }  # fmt: skip


@pytest.fixture
def together():
    rows = [
        {"megabytes": n, "seconds": 0.001, "gb_per_s": 10.0, "correct": True} for n in (1, 16, 64)
    ]
    return {"backend": "nccl", "clock_skew_s": 0.01, "winners": 1, "all_reduce": rows}


def by_name(checks):
    return {check.name: check for check in checks}


def test_sound_nodes(facts, together, cluster):
    checks = judge(N2_GPU2, facts, cluster.node_types[0])
    checks += judge_together(N2_GPU2, together, [INFINIBAND], infiniband=True)
    assert {check.result for check in checks} == {Result.OK}
    said = by_name(checks)
    assert said["GPUs"].detail.startswith("4 x NVIDIA A100-SXM4-80GB, 85 GB, CUDA 13.0")
    assert said["network"].detail == ("NCCL uses IB: [0]mlx5_0:1/IB [RO]; OOB ib0:10.0.0.1<0>")
    assert said["network interface"].detail == "NCCL_SOCKET_IFNAME=ib0"


@pytest.mark.parametrize(
    ("rank", "change", "name", "detail"),
    [
        (3, None, "ranks", "1 of 4 left no file here: 3"),
        (2, {"torch": "2.9.0"}, "ranks", "different Pythons"),
        (2, {"node": "k0"}, "nodes", "3 on k0, 1 on k1, expected 2 on each of 2"),
        (1, {"gpus": 1}, "GPUs", "needs 2 per node, but k0 shows 1"),
        (1, {"gpu_problem": "CUDA error: out of memory"}, "GPUs", "k0: CUDA error: out of memory"),
        (1, {"gpu_uuid": "GPU-0"}, "GPUs", "4 ranks share 3 GPUs"),
        (1, {"gpu_model": "Tesla V100"}, "GPUs", "says A100-80, found Tesla V100"),
        (1, {"gpu_bytes": 42_000_000_000}, "GPUs", "says 80 GB each, found 42 GB"),
        (2, {"sees_folder": False}, "shared folder", "k1 did not see a file"),
        (0, {"missing_ranks": [2]}, "shared folder", "k0 did not see the files of other nodes"),
        (0, {"unknown_hosts": ["k1"]}, "host names", "k1 cannot be resolved"),
        (3, {"interfaces": ["eth0"]}, "network interface", "NCCL_SOCKET_IFNAME=ib0, but k1"),
    ],
)
def test_one_rank_that_is_not_sound(facts, cluster, rank, change, name, detail):
    if change is None:
        del facts[rank]
    else:
        facts[rank] |= change
    checks = judge(N2_GPU2, facts, cluster.node_types[0])
    failed = [check for check in checks if check.result is Result.FAILED]
    assert [check.name for check in failed] == [name]
    assert detail in failed[0].detail
    assert failed[0].remedy


def test_wrong_number_of_nodes_and_few_cpus(facts, cluster):
    few = copy.deepcopy(facts)
    for one in few.values():
        one["cpus"] = 1
    check = by_name(judge(N2_GPU2, few, cluster.node_types[0]))["nodes"]
    assert (check.result, "fewer CPUs than ranks on k0, k1" in check.detail) == (
        Result.WARNING,
        True,
    )
    for one in facts.values():
        one["node"] = "k0"
    check = by_name(judge(N2_GPU2, facts, cluster.node_types[0]))["nodes"]
    assert (check.result, "are 4 on k0, expected 2" in check.detail) == (Result.FAILED, True)


def test_no_gpu_matters_only_where_the_facts_promise_one(facts, cluster):
    for one in facts.values():
        one["gpus"] = 0
    promised = by_name(judge(N2_GPU2, facts, cluster.node_types[0]))["GPUs"]
    assert promised.result is Result.FAILED
    assert "CUDA build" in promised.remedy
    assert by_name(judge(N2_GPU2, facts, None))["GPUs"].result is Result.NOT_APPLICABLE


@pytest.mark.parametrize(
    ("wanted", "there", "found"),
    [
        ("ib0", ["ib0"], True),
        ("ib", ["eth0", "ib1"], True),
        ("=ib", ["ib1"], False),
        ("eno,eth", ["eth3"], True),
        ("^docker", ["docker0"], True),
        ("ib0", ["eth0"], False),
    ],
)
def test_interfaces_as_nccl_reads_them(wanted, there, found):
    assert inside.is_present(wanted, there) is found


def test_what_ranks_find_together(together):
    def judged(logs=(INFINIBAND,), infiniband=True, **changes):
        return by_name(judge_together(N2_GPU2, {**together, **changes}, logs, infiniband))

    assert "16 MB 10.00 GB/s" in judged()["all-reduce"].detail
    rows = copy.deepcopy(together["all_reduce"])
    rows[1]["correct"] = False
    wrong = judged(all_reduce=rows)["all-reduce"]
    assert (wrong.result, "wrong for 16 MB" in wrong.detail) == (Result.FAILED, True)
    slow = judged(logs=[SOCKET])["network"]
    assert (slow.result, "Socket" in slow.detail) == (Result.WARNING, True)
    assert judged(logs=[SOCKET], infiniband=False)["network"].result is Result.OK
    assert judged(backend="gloo")["network"].result is Result.NOT_APPLICABLE
    assert judged(clock_skew_s=2.0)["clocks"].result is Result.WARNING
    assert judged(clock_skew_s=20.0)["clocks"].result is Result.FAILED
    assert judged(winners=2)["exclusive mkdir"].result is Result.FAILED
    alone = judge_together(Layout(1, 1), together, [], False)
    assert [check.result for check in alone] == [Result.NOT_APPLICABLE]


def test_a_sum_that_is_wrong_is_noticed(monkeypatch, alone):
    pair = Ranks(0, 2, alone.device)
    monkeypatch.setattr(preflight.dist, "barrier", lambda: None)
    monkeypatch.setattr(Ranks, "maximum", lambda self, *values: list(values))

    def add_the_other(values, lost=0):
        values += values + 1  # of rank 1
        values[:lost] -= 1

    monkeypatch.setattr(preflight.dist, "all_reduce", add_the_other)
    right = preflight.all_reduce(pair, 1)
    assert right["correct"]
    assert right["gb_per_s"] == pytest.approx(2**20 / right["seconds"] / 1e9)
    monkeypatch.setattr(preflight.dist, "all_reduce", lambda v: add_the_other(v, lost=1))
    assert not preflight.all_reduce(pair, 1)["correct"]


def test_a_rank_says_what_it_does_not_see(tmp_path, monkeypatch):
    folder = prepare(tmp_path)
    request = inside.Request(**json.loads((folder / inside.REQUEST).read_text()))
    assert look(folder, request)["sees_folder"]
    assert not look(tmp_path, request)["sees_folder"]
    monkeypatch.setattr(preflight, "resolves", lambda host: host != "k1")
    for rank in (0, 1):
        (folder / f"rank_{rank}.json").write_text(json.dumps({"host": f"k{rank}"}))
    seen = look_at_others(folder, world_size=3, patience_s=0.3)
    assert (seen["missing_ranks"], seen["unknown_hosts"]) == ([2], ["k1"])
    assert seen["waited_s"] >= 0.3


@pytest.mark.slow
def test_two_ranks_for_real(tmp_path):
    """gloo over torchrun: every check has something to say, and the report can be read back."""
    output = tmp_path / "results/n1_gpu2.json"
    check_layout(Layout(1, 2), None, output, cpus=2)
    (checks,) = json.loads(output.read_text())["sections"].values()
    said = {check["name"]: check for check in checks}
    assert said["ranks"]["detail"].startswith("2 started ")
    assert said["all-reduce"]["result"] == "ok"
    assert "gloo, sums are right" in said["all-reduce"]["detail"]
    assert said["exclusive mkdir"]["result"] == "ok"
    assert [path.name for path in output.parent.iterdir()] == ["n1_gpu2.json"]


def test_a_failed_layout_is_one_sentence_and_no_file(tmp_path, monkeypatch, facts, cluster):
    facts[2]["sees_folder"] = False

    def workers(module, request, *arguments):
        assert module == "millrace.doctor.worker"
        for rank, one in facts.items():
            (request.parent / f"rank_{rank}.json").write_text(json.dumps(one))
        return 1

    monkeypatch.setattr(inside, "run_workers", workers)
    output = tmp_path / "results/n2_gpu2.json"
    with pytest.raises(FailedError, match=r"^layout n2_gpu2: shared folder: k1 .*; 1 more above\."):
        check_layout(N2_GPU2, cluster, output, cpus=2)
    assert os.listdir(output.parent) == []  # noqa: PTH208
    folder = prepare(tmp_path)
    assert "exit code 1" in run(folder, N2_GPU2, cluster, 2)[-1].detail
