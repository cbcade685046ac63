"""What becomes of the errors of a rank, and of torchrun's when a rank fails."""

import errno
import json
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import SignalException

from millrace.launch import torchrun
from millrace.launch.worker import work_on


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Raise an error on the only rank: (exit code, what the launcher will print)."""
    path = tmp_path / "request.json"
    path.write_text("{}")
    monkeypatch.setattr(sys, "argv", ["train", str(path)])

    def run(error):
        def fail(*_):
            raise error

        code = work_on(lambda: SimpleNamespace(plugins=[]), fail)
        told = path.with_suffix(".error")
        return code, json.loads(told.read_text()) if told.exists() else None

    return run


def test_what_the_system_refuses_is_told_by_the_launcher(work):
    code, (sentence, told) = work(IsADirectoryError(21, "Is a directory", "metrics.jsonl"))
    assert code == told == 65
    assert sentence.startswith("metrics.jsonl: the system refuses it (Is a directory)")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[../third_party/gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:1"),
        dist.DistNetworkError("failed to recv, got 0 bytes"),
        ConnectionResetError(104, "Connection reset by peer"),
    ],
)
def test_a_rank_that_has_lost_the_others_says_so_and_is_started_again(work, error, capsys):
    assert work(error) == (1, None)
    assert capsys.readouterr().err.startswith("rank 0 has lost the others: ")


def test_what_nccl_says_is_told_in_full(work, capsys):
    error = dist.DistBackendError(
        "NCCL error in: x.cpp:1, invalid usage\nLast error:\nDuplicate GPU"
    )
    assert work(error) == (1, None)
    said = capsys.readouterr().err
    assert said.startswith("rank 0 cannot reach the others: ")
    assert "Duplicate GPU" in said


def test_ranks_start_again_when_a_file_server_was_away(work, capsys):
    assert work(OSError(errno.ESTALE, "Stale file handle", "state.pt")) == (1, None)
    assert "state.pt: the system refuses it (Stale file handle)" in capsys.readouterr().err


@pytest.fixture
def signals():
    """Signals that torchrun handles; afterwards their handlers are as before."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("has_gpu", [False, True])
def test_ranks_are_forked_only_without_gpus(tmp_path, monkeypatch, has_gpu):
    given = []
    request = tmp_path / "request.json"
    request.write_text("{}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torchrun, "torchrun", given.extend)
    monkeypatch.setattr(
        sys, "argv", ["torchrun", "--nnodes=1", "millrace.launch.train", str(request)]
    )
    assert torchrun.main() == 0
    assert ("--start-method=fork" in given) is not has_gpu
    assert ("millrace.launch.rank" in given) is has_gpu


def test_any_other_error_keeps_its_traceback(work):
    with pytest.raises(KeyError):
        work(KeyError("key"))


def test_a_signal_while_torchrun_ends_prints_no_traceback(tmp_path, monkeypatch, capsys, signals):
    """Its handlers raise errors, one of which came out of the end of Python itself."""
    request = tmp_path / "request.json"
    request.write_text("{}")

    def raising(number, _):
        raise SignalException("ended", signal.Signals(number))

    def ended(_):
        for number in signals:
            signal.signal(number, raising)

    monkeypatch.setattr(torchrun, "torchrun", ended)
    monkeypatch.setattr(sys, "argv", ["torchrun", "millrace.launch.train", str(request)])
    assert torchrun.main() == 0
    assert {signal.getsignal(number) for number in signals} == {signal.SIG_DFL}
    assert capsys.readouterr().err == ""
