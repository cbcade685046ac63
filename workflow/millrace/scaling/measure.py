"""Measuring a layout: the real training step on real samples, rank by rank, and the wires between them."""

import copy
import ctypes
import itertools
import os
import platform
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from millrace.config import from_mapping
from millrace.layout import Layout
from millrace.provenance import provenance
from millrace.scaling.records import SCHEMA, Device, Host, ScalingRun, Times, Transfer
from millrace.scaling.request import MeasureRequest
from millrace.training.batches import GlobalBatch
from millrace.training.config import ExecutionConfig
from millrace.training.distributed import Ranks
from millrace.training.engine import Trainer
from millrace.training.parallel.config import ParallelConfig
from millrace.training.phases import PHASES, PhaseClock
from millrace.training.segment import build_trainer

# Sizes of the all-reduce, from where latency counts to where only bandwidth does.
MESSAGE_BYTES = tuple(4**n * 1024 for n in range(1, 9))
_ROUNDS = 7
# Warm-up ends when the medians of two windows of steps agree, at the latest after so many windows.
_WINDOW, _SETTLED, _MOST_WINDOWS = 5, 0.05, 12


def measure(request: MeasureRequest, ranks: Ranks) -> ScalingRun | None:
    """Measure on all ranks; the record is given on the first."""
    clock = PhaseClock(ranks.device)
    trainer = _trainer(request, ranks, clock)
    flops = _flops_per_sample(trainer, next(trainer.batches(0)))
    beginning = None if trainer.divided else copy.deepcopy(trainer.state())
    warm_up = _warm_up(trainer, _batches(trainer), ranks)
    # The steps that count are the first of a training, on all layouts the same.
    if beginning is None:
        trainer = _trainer(request, ranks, clock)
    else:
        trainer.load(beginning)
    _reset_peak(ranks)
    energy = _energy_meter(ranks)
    clock.end_step()
    losses = []
    for batch in itertools.islice(_batches(trainer), request.steps):
        losses.append(_step(trainer, batch, ranks))
        clock.end_step()
    mine = clock.steps()
    joules = energy()
    gathered = ranks.gather((mine, [float(loss) for loss in losses], _peak(ranks), joules, _host()))
    transfers = _transfers(ranks, Layout.parse(request.layout))
    if not ranks.is_first:
        return None
    times, parts, peaks, energies, hosts = map(list, zip(*gathered, strict=True))
    config = trainer.config
    measured = [one for one in energies if one is not None]
    return ScalingRun(
        schema=SCHEMA,
        experiment=request.experiment,
        layout=request.layout,
        mode=request.mode,
        repeat=request.repeat,
        device=_device(ranks),
        backend=dist.get_backend() if ranks.world_size > 1 else "none",
        hosts=_hosts(hosts, Layout.parse(request.layout)),
        global_batch=config.global_batch,
        samples_per_epoch=int(trainer.dataset.groups("train").sum()),
        gradient_bytes=_gradient_bytes(trainer),
        warm_up_steps=warm_up,
        times=_times(times),
        precision=config.precision,
        micro_batch=trainer.execution.micro_batch,
        parameters=trainer.parameters,
        flops_per_sample=flops,
        losses=tuple(float(sum(step)) for step in zip(*parts, strict=True)),
        peak_memory_bytes=tuple(peaks) if all(peaks) else (),
        energy_joules=sum(measured) if len(measured) == len(energies) else None,
        bandwidth=tuple(transfers),
        software={
            "torch": str(torch.__version__),
            **({"cuda": torch.version.cuda} if torch.version.cuda else {}),
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            "kernel": platform.release(),
        },
        provenance=provenance(),
    )


def _trainer(request: MeasureRequest, ranks: Ranks, clock: PhaseClock) -> Trainer:
    train = dict(request.definition["train"])
    if request.mode == "weak":
        train["global_batch"] *= ranks.world_size
    definition = {**request.definition, "train": train}
    execution: ExecutionConfig = from_mapping(ExecutionConfig, request.execution, "train")
    parallel: ParallelConfig = from_mapping(ParallelConfig, request.parallel, "parallel")
    return build_trainer(definition, request.files, 0, ranks, execution, parallel, clock.mark)[0]


def _batches(trainer: Trainer) -> Iterator[GlobalBatch]:
    """Batches of all epochs."""
    return itertools.chain.from_iterable(map(trainer.batches, itertools.count()))


def _step(trainer: Trainer, batch: GlobalBatch, ranks: Ranks) -> torch.Tensor:
    trainer.module.train()
    loss = trainer.train_step(batch)
    trainer.step += 1
    return loss


def _warm_up(trainer: Trainer, batches: Iterator[GlobalBatch], ranks: Ranks) -> int:
    """Train until steps take equally long; gives how many that were."""
    before = float("inf")
    for window in range(1, _MOST_WINDOWS + 1):
        seconds = []
        for batch in itertools.islice(batches, _WINDOW):
            started = time.perf_counter()
            _step(trainer, batch, ranks)
            _wait(ranks)
            seconds.append(time.perf_counter() - started)
        # The slowest rank decides, on all ranks: they must do the same number of steps.
        [now] = ranks.maximum(statistics.median(seconds))
        if abs(now - before) < _SETTLED * now:
            return window * _WINDOW
        before = now
    return _MOST_WINDOWS * _WINDOW


def _flops_per_sample(trainer: Trainer, batch: GlobalBatch) -> float | None:
    """Floating-point operations of forward and backward that torch can count: products of matrices."""
    if trainer.divided is not None:
        return None
    group, index = batch.parts[0]
    samples = trainer.dataset.batch("train", group, index[:1])
    counter = FlopCounterMode(display=False)
    random = torch.get_rng_state()
    with counter:
        trainer.spec.loss(trainer.module, samples, trainer.config.loss).sum().backward()
    torch.set_rng_state(random)
    trainer.module.zero_grad(set_to_none=True)
    return float(counter.get_total_flops()) or None


def _times(ranks: list[list[dict[str, float]]]) -> Times:
    return Times(
        **{
            name: tuple(tuple(step[name] for step in steps) for steps in ranks)
            for name in ("total", *PHASES)
        }
    )


def _gradient_bytes(trainer: Trainer) -> int:
    size = 2 if trainer.config.gradient_compression != "none" else None
    trained = [p for p in trainer.module.parameters() if p.requires_grad]
    reals = [p.numel() * (2 if p.is_complex() else 1) for p in trained]
    if size is not None:
        return size * sum(reals)
    return sum(p.numel() * p.element_size() for p in trained)


def _transfers(ranks: Ranks, layout: Layout) -> list[Transfer]:
    """Time all-reduces of many sizes between all ranks."""
    if ranks.world_size == 1:
        return []
    link = "inter" if layout.nodes > 1 else "intra"
    found = []
    for size in MESSAGE_BYTES:
        values = torch.ones(size // 4, device=ranks.device)
        seconds = []
        for _ in range(2 + _ROUNDS):
            dist.barrier()
            _wait(ranks)
            started = time.perf_counter()
            dist.all_reduce(values)
            _wait(ranks)
            seconds.append(time.perf_counter() - started)
        # Of each round the slowest rank; of the rounds the median.
        rounds = ranks.maximum(*seconds[2:])
        found.append(Transfer(size, statistics.median(rounds), ranks.world_size, link))
    return found


def _device(ranks: Ranks) -> Device:
    if ranks.device.type == "cuda":
        properties = torch.cuda.get_device_properties(ranks.device)
        return Device("gpu", properties.name, properties.total_memory)
    return Device("cpu", _processor())


def _host() -> Mapping[str, Any]:
    # What the scheduler calls this node; on one machine several may be emulated.
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    return {
        "name": name,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
    }


def _hosts(of_ranks: list[Mapping[str, Any]], layout: Layout) -> tuple[Host, ...]:
    return tuple(Host(**one) for one in of_ranks[:: layout.gpus_per_node])


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123  a device of the kernel
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def _wait(ranks: Ranks) -> None:
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)


def _reset_peak(ranks: Ranks) -> None:
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ranks.device)


def _peak(ranks: Ranks) -> int:
    if ranks.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(ranks.device))
    return int(psutil.Process().memory_info().rss)


def _energy_meter(ranks: Ranks) -> Callable[[], float | None]:
    """Begin to count the energy of this rank's GPU; what is returned tells it (J), None: not known."""
    if ranks.device.type != "cuda":
        return lambda: None
    # The library of the driver: no package is needed for one number.
    total, handle = ctypes.c_ulonglong(), ctypes.c_void_p()
    name = f"GPU-{torch.cuda.get_device_properties(ranks.device).uuid}".encode()

    def joules() -> float:
        if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(total)):
            raise OSError("the GPU does not count its energy")
        return total.value / 1e3

    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)):
            return lambda: None
        begin = joules()
    except (OSError, AttributeError):
        return lambda: None
    return lambda: joules() - begin
