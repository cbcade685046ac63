"""Samples are copied to a GPU beside what it computes, and no memory is used again too early."""

import contextlib

import numpy as np
import pytest
import torch

from millrace.data import device as of_device
from millrace.data.device import PINNED_BYTES, to_device

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        (np.arange(6.0)[::2], np.float32, torch.tensor([0.0, 2.0, 4.0])),
        (np.arange(3), None, torch.arange(3)),
        (torch.arange(3), None, torch.arange(3)),
    ],
)
def test_on_the_cpu_values_are_what_they_are(values, dtype, expected):
    made = to_device(values, CPU, dtype)
    assert made.dtype == expected.dtype
    assert torch.equal(made, expected)


def test_on_the_cpu_nothing_is_copied_that_need_not_be():
    array, tensor = np.zeros(3, dtype=np.float32), torch.zeros(3)
    assert to_device(tensor, CPU) is tensor
    array[1] = 7
    assert to_device(array, CPU, np.float32).data_ptr() == array.ctypes.data


class Machine:
    """Stands in for `torch.cuda`: notes what is asked of it, and in which stream."""

    def __init__(self):
        self.said, self.now = [], "compute"

    def current_stream(self, device):
        assert device == GPU
        return FakeStream(self, self.now)

    def Stream(self, device):
        self.said.append("new stream")
        return FakeStream(self, "copies")

    @contextlib.contextmanager
    def stream(self, stream):
        self.now, before = stream.name, self.now
        yield
        self.now = before


class FakeStream:
    def __init__(self, machine, name):
        self.machine, self.name = machine, name

    def wait_stream(self, other):
        self.machine.said.append(f"{self.name} waits for {other.name}")


class FakeTensor:
    """Of the host until it is copied."""

    def __init__(self, machine, place=CPU, nbytes=12, is_pinned=False):
        self.machine, self.device, self.nbytes, self.is_pinned = machine, place, nbytes, is_pinned

    def pin_memory(self):
        return FakeTensor(self.machine, is_pinned=True)

    def to(self, device, non_blocking=False):
        kind = "pinned" if self.is_pinned else "plain"
        way = "at once" if non_blocking else "and waited for"
        self.machine.said.append(f"{kind} copied in {self.machine.now} {way}")
        return FakeTensor(self.machine, device)

    def record_stream(self, stream):
        assert self.device == GPU
        self.machine.said.append(f"kept for {stream.name}")


@pytest.fixture
def machine(monkeypatch):
    made = Machine()
    monkeypatch.setattr(torch, "cuda", made)
    of_device.stream_of_copies.cache_clear()
    yield made
    of_device.stream_of_copies.cache_clear()


def test_copies_run_in_their_own_stream_and_are_kept_for_the_one_that_computes(machine):
    copied = [
        "pinned copied in copies at once",
        "compute waits for copies",
        "kept for compute",
    ]
    for _ in range(2):
        assert to_device(FakeTensor(machine), GPU).device == GPU
    assert machine.said == ["new stream", *copied, *copied]
    assert machine.now == "compute"


def test_large_series_and_what_is_there_are_not_pinned(machine):
    to_device(FakeTensor(machine, nbytes=PINNED_BYTES + 1), GPU)
    to_device(FakeTensor(machine, GPU), GPU)
    assert machine.said == ["plain copied in compute and waited for"] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
def test_a_copy_does_not_wait_for_what_the_gpu_computes():
    device = torch.device("cuda", torch.cuda.current_device())
    kept = [np.full(1 << 20, number, dtype=np.float32) for number in range(8)]
    to_device(kept[0], device).sum().item()  # pinned memory, stream and kernels are there
    torch.cuda.synchronize()
    torch.cuda._sleep(1 << 33)  # some seconds
    busy = torch.cuda.Event()
    busy.record()
    sums = []
    for values in kept:  # each is freed while the GPU has not yet read it
        sums.append(to_device(values, device).sum())
    assert not busy.query(), "the host waited"
    assert [one.item() / (1 << 20) for one in sums] == list(range(8))
