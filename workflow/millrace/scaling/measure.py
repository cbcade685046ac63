"""Measurement of a layout: the training step on real samples on every rank, and the links between them."""

import copy
import ctypes
import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from millrace.layout import Layout
from millrace.provenance import provenance
from millrace.scaling.records import SCHEMA, AllReduceTiming, Device, Host, ScalingRun, Times
from millrace.scaling.request import MeasureRequest
from millrace.training.batches import GlobalBatch, rank_shares
from millrace.training.config import ExecutionConfig
from millrace.training.distributed import Ranks, node_name
from millrace.training.engine import Trainer
from millrace.training.parallel.config import ParallelConfig
from millrace.training.phases import PHASES, PhaseClock
from millrace.training.segment import build_trainer

# Message sizes of the all-reduce, from where latency dominates to where only bandwidth matters.
MESSAGE_BYTES = tuple(4**n * 1024 for n in range(1, 9))
_ROUNDS = 7
# Warm-up ends when the medians of two windows of steps agree, at the latest after so many windows.
_WINDOW, _TOLERANCE, _MAX_WINDOWS = 5, 0.05, 12


def measure(request: MeasureRequest, ranks: Ranks) -> ScalingRun | None:
    """Measure on all ranks, and return the record on the first one."""
    clock = PhaseClock(ranks.device)
    trainer = _trainer(request, ranks, clock)
    flops = _flops_per_sample(trainer, next(trainer.batches(0)))
    initial = None if trainer.divided else copy.deepcopy(trainer.state())
    warm_up = _warm_up(trainer, ranks)
    # The recorded steps are the first ones of the training, on all layouts the same.
    if initial is None:
        trainer = _trainer(request, ranks, clock)
    else:
        trainer.load(initial)
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ranks.device)
    energy = _energy_meter(ranks)
    clock.end_step()
    losses = []
    for batch in itertools.islice(_batches(trainer), request.steps):
        losses.append(_step(trainer, batch))
        clock.end_step()
    steps, joules = clock.steps(), energy()
    gathered = ranks.gather((steps, list(map(float, losses)), _peak(ranks), joules, _host()))
    layout = Layout.parse(request.layout)
    bandwidth = time_all_reduces(ranks, "inter" if layout.nodes > 1 else "intra")
    if not ranks.is_first:
        return None
    times, parts, peaks, energies, hosts = map(list, zip(*gathered, strict=True))
    config = trainer.config
    return ScalingRun(
        schema=SCHEMA,
        experiment=request.experiment,
        layout=request.layout,
        mode=request.mode,
        repeat=request.repeat,
        device=_device(ranks),
        backend=dist.get_backend() if ranks.world_size > 1 else "none",
        hosts=tuple(hosts[:: layout.gpus_per_node]),
        global_batch=config.global_batch,
        samples_per_epoch=int(trainer.dataset.groups("train").sum()),
        gradient_bytes=_gradient_bytes(trainer),
        warm_up_steps=warm_up,
        times=Times(
            **{
                name: tuple(tuple(step[name] for step in steps) for steps in times)
                for name in ("total", *PHASES)
            }
        ),
        precision=config.precision,
        micro_batch=trainer.execution.micro_batch,
        parameters=trainer.parameters,
        flops_per_sample=flops,
        losses=tuple(float(sum(step)) for step in zip(*parts, strict=True)),
        peak_memory_bytes=tuple(peaks) if all(peaks) else (),
        energy_joules=None if None in energies else sum(energies),
        bandwidth=bandwidth,
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
    execution: ExecutionConfig = ExecutionConfig.parse(request.execution, "train")
    parallel: ParallelConfig = ParallelConfig.parse(request.parallel, "parallel")
    return build_trainer(definition, request.files, 0, ranks, execution, parallel, clock.mark)[0]


def _batches(trainer: Trainer) -> Iterator[GlobalBatch]:
    """Iterate over the batches of all epochs."""
    return itertools.chain.from_iterable(map(trainer.batches, itertools.count()))


def _step(trainer: Trainer, batch: GlobalBatch) -> torch.Tensor:
    trainer.module.train()
    loss = trainer.train_step(batch)
    trainer.step += 1
    return loss


def _warm_up(trainer: Trainer, ranks: Ranks) -> int:
    """Train until all steps take equally long, and return their number."""
    batches = _batches(trainer)
    before = float("inf")
    for window in range(1, _MAX_WINDOWS + 1):
        seconds = []
        for batch in itertools.islice(batches, _WINDOW):
            started = time.perf_counter()
            _step(trainer, batch)
            ranks.synchronise()
            seconds.append(time.perf_counter() - started)
        # The slowest rank decides for all ranks, because they must do the same number of steps.
        [now] = ranks.maximum(statistics.median(seconds))
        if abs(now - before) < _TOLERANCE * now:
            return window * _WINDOW
        before = now
    return _MAX_WINDOWS * _WINDOW


def _flops_per_sample(trainer: Trainer, batch: GlobalBatch) -> float | None:
    """Floating-point operations of forward and backward, as far as torch counts them: matrix products."""
    if trainer.divided is not None:
        return None
    group, index = batch.parts[0]
    [share] = rank_shares(GlobalBatch(((group, index[:1]),)), 0, 1)
    samples = trainer.passes.samples("train", share, 0)
    counter = FlopCounterMode(display=False)
    random = torch.get_rng_state()
    with counter:
        trainer.spec.loss(trainer.module, samples, trainer.config.loss).sum().backward()
    torch.set_rng_state(random)
    trainer.clear_gradients()
    return float(counter.get_total_flops()) or None


def _gradient_bytes(trainer: Trainer) -> int:
    trained = [p for p in trainer.module.parameters() if p.requires_grad]
    if trainer.config.gradient_compression == "none":
        return sum(p.numel() * p.element_size() for p in trained)
    return 2 * sum(p.numel() * (2 if p.is_complex() else 1) for p in trained)


def time_all_reduces(ranks: Ranks, link: str) -> tuple[AllReduceTiming, ...]:
    """Time all-reduces of many message sizes between all ranks."""
    if ranks.world_size == 1:
        return ()
    timings = []
    for size in MESSAGE_BYTES:
        values = torch.ones(size // 4, device=ranks.device)
        seconds = [ranks.time_all_reduce(values) for _ in range(2 + _ROUNDS)]
        # The slowest rank of each round, and the median over rounds.
        slowest = ranks.maximum(*seconds[2:])
        timings.append(AllReduceTiming(size, statistics.median(slowest), ranks.world_size, link))
    return tuple(timings)


def _device(ranks: Ranks) -> Device:
    if ranks.device.type == "cuda":
        properties = torch.cuda.get_device_properties(ranks.device)
        return Device("gpu", properties.name, properties.total_memory)
    return Device("cpu", _processor())


def _host() -> Host:
    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().total
    return Host(node_name(), _processor(), cores, memory)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _peak(ranks: Ranks) -> int:
    if ranks.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(ranks.device))
    return int(psutil.Process().memory_info().rss)


def _energy_meter(ranks: Ranks) -> Callable[[], float | None]:
    """Start to measure the energy of this rank's GPU.

    Returns a function that gives the energy since the start, joules; None: not known.
    """
    if ranks.device.type != "cuda":
        return lambda: None
    # The driver's own library is called: one number is not worth a package.
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
