"""The record of one measured run, which `millrace.scaling.measure` makes and the analysis reads.

One JSON file for each experiment, layout, mode and repeat. Units: seconds, bytes, joules and samples,
without prefixes. Every array of times is [R][S]: for each rank, in the order of ranks, one number for each
optimiser step after the warm-up. The device is synchronised at both ends of each part of a step.

Shape suffixes: R ranks, S steps.
"""

import dataclasses
import math
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from millrace.config import nearest, parse
from millrace.errors import DataError, UserError
from millrace.layout import Layout
from millrace.scaling.quantity import LABELS, MEASURED, MODELLED, Floats
from millrace.sealed import read_sealed, write_sealed

SCHEMA = "millrace.scaling_run/1"
MODES, DEVICE_KINDS, LINKS = ("strong", "weak"), ("cpu", "gpu"), ("intra", "inter")
TIMED_PARTS = ("forward", "backward", "communication", "data", "optimiser")
"""Parts of a step that are measured; what remains of a step is called *other*."""
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
# The clocks of the parts are read one after the other: their sum may exceed the total by this share.
_CLOCK_TOLERANCE = 0.02


@dataclass(frozen=True, config=_STRICT)
class Device:
    """The device that a rank computes on; a CPU process that stands in for a GPU is a ``cpu``."""

    kind: str
    """``cpu`` or ``gpu``."""
    name: str
    memory_bytes: int | None = None
    peak_flops: float | None = None
    """Peak of one device in the precision of the run, floating-point operations/s."""
    peak_bytes_per_s: float | None = None
    """Peak memory bandwidth of one device, bytes/s."""

    def __post_init__(self) -> None:
        _one_of("device.kind", self.kind, DEVICE_KINDS)
        if not self.name.strip():
            raise DataError("device.name: expected the name of the device, got nothing")
        for name in ("peak_flops", "peak_bytes_per_s"):
            _positive(f"device.{name}", getattr(self, name))


@dataclass(frozen=True, config=_STRICT)
class Host:
    """A node of the run. The name may be a pseudonym; equal names mean the same node."""

    name: str
    processor: str
    cores: int
    memory_bytes: int


@dataclass(frozen=True, config=_STRICT)
class AllReduceTiming:
    """Duration of one all-reduce, measured on the nodes of the run outside training."""

    bytes: int
    """Size of the message on every rank."""
    seconds: float
    """Duration on the slowest rank, median over repetitions."""
    ranks: int
    link: str
    """``intra``: all ranks are on one node; ``inter``: they are on several."""

    def __post_init__(self) -> None:
        _one_of("bandwidth.link", self.link, LINKS)
        _positive("bandwidth.seconds", self.seconds)
        if self.bytes < 1 or self.ranks < 2:
            raise DataError(
                f"bandwidth: expected messages of 1 or more bytes between 2 or more ranks, got "
                f"{self.bytes} bytes and {self.ranks} ranks"
            )


@dataclass(frozen=True, config=_STRICT)
class Times:
    """Seconds of every rank and step, [R][S] each.

    The parts do not overlap, and their sum is at most ``total``. Raises `DataError` otherwise.
    """

    total: tuple[tuple[float, ...], ...]
    """From the end of the previous step to the end of this one, waiting for data included."""
    forward: tuple[tuple[float, ...], ...]
    backward: tuple[tuple[float, ...], ...]
    """Backward pass without exposed communication."""
    communication: tuple[tuple[float, ...], ...]
    """Exposed communication, during which the rank computes nothing; includes waiting for slower ranks."""
    data: tuple[tuple[float, ...], ...]
    """Waiting for the next batch, including its copy to the device."""
    optimiser: tuple[tuple[float, ...], ...]
    """Gradient clipping and the update of the weights."""

    def __post_init__(self) -> None:
        shape = (len(self.total), len(self.total[0]) if self.total else 0)
        if 0 in shape:
            raise DataError("times.total: expected a list of seconds for each rank, got none")
        for name in ("total", *TIMED_PARTS):
            rows = getattr(self, name)
            if len(rows) != shape[0] or any(len(row) != shape[1] for row in rows):
                raise DataError(
                    f"times.{name}: expected {shape[0]} ranks with {shape[1]} steps each, as in times.total"
                )
            shortest = np.min(rows)
            if shortest < 0 or (name == "total" and shortest == 0):
                more = "more than 0 seconds" if name == "total" else "0 seconds or more"
                raise DataError(f"times.{name}: expected {more}, got {shortest}")
        total_RS = self.array("total")
        excess_RS = sum(self.array(name) for name in TIMED_PARTS) - total_RS * (
            1 + _CLOCK_TOLERANCE
        )
        if excess_RS.max() > 1e-6:
            rank, step = np.unravel_index(np.argmax(excess_RS), shape)
            raise DataError(
                f"times: the parts of step {step} of rank {rank} take longer than its total of "
                f"{total_RS[rank, step]:.3g} s, although parts may not overlap"
            )

    def array(self, name: str) -> Floats:
        """Return the times of a part or the total, [R, S]."""
        return np.array(getattr(self, name), dtype=np.float64)


@dataclass(frozen=True, config=_STRICT)
class Labels:
    """Origins of the numbers of a run, each one of `millrace.scaling.quantity.LABELS`."""

    times: str = MEASURED
    bandwidth: str = MEASURED
    losses: str = MEASURED
    peak_memory: str = MEASURED
    energy: str = MEASURED
    flops: str = MODELLED
    """Operations are counted from the model's layers, not by the hardware."""

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            _one_of(f"labels.{name}", value, LABELS)


@dataclass(frozen=True, config=_STRICT)
class ScalingRun:
    """One run of a scaling study."""

    schema: str
    """`SCHEMA`."""
    experiment: str
    layout: str
    mode: str
    """``strong``: every layout has the same global batch; ``weak``: the same batch per rank."""
    repeat: int
    """Number of the run among those of the same experiment, layout and mode, from 0."""
    device: Device
    backend: str
    """Backend of the process group: nccl or gloo; none for a single rank."""
    hosts: tuple[Host, ...]
    """The nodes of the layout, in the order of ranks."""
    global_batch: int
    """Samples of an optimiser step over all ranks."""
    samples_per_epoch: int
    gradient_bytes: int
    """Size of the gradients that ranks exchange in a step, after compression."""
    warm_up_steps: int
    """Number of steps before the first recorded one."""
    times: Times
    precision: str = "float32"
    micro_batch: int | None = None
    """Samples that a rank processes at once; None: all of its share of the batch."""
    parameters: int | None = None
    flops_per_sample: float | None = None
    """Floating-point operations of forward and backward for one sample."""
    traffic_per_sample: float | None = None
    """Bytes moved to and from device memory for one sample, for the roofline."""
    losses: tuple[float, ...] = ()
    """Training loss of each recorded step, mean over the global batch, [S]; empty: not recorded."""
    peak_memory_bytes: tuple[int, ...] = ()
    """Peak memory of each rank on its device, [R]; empty: not recorded."""
    energy_joules: float | None = None
    """Energy of all devices over the recorded steps."""
    queue_seconds: float | None = None
    """Time that the job waited for its allocation."""
    bandwidth: tuple[AllReduceTiming, ...] = ()
    software: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    """Return value of `millrace.provenance.provenance`: ``git_revision``, ``git_dirty``, ``time_utc``."""
    labels: Labels = field(default_factory=Labels)

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise DataError(
                f"schema: expected {SCHEMA!r}, got {self.schema!r}: measure the run again"
            )
        _one_of("mode", self.mode, MODES)
        layout = self.parsed_layout
        ranks, steps = len(self.times.total), len(self.times.total[0])
        for key, what, expected, got in (
            ("times", "ranks", layout.world_size, ranks),
            ("hosts", "nodes", layout.nodes, len(self.hosts)),
        ):
            if got != expected:
                raise DataError(
                    f"{key}: expected {expected} {what}, as layout {self.layout} has, got {got}"
                )
        zero = dict.fromkeys(("repeat", "gradient_bytes", "warm_up_steps"), 0)
        for name, least in {"global_batch": 1, "samples_per_epoch": 1, **zero}.items():
            if getattr(self, name) < least:
                raise DataError(f"{name}: expected {least} or more, got {getattr(self, name)}")
        for name, expected in (("losses", steps), ("peak_memory_bytes", ranks)):
            if (got := len(getattr(self, name))) not in (0, expected):
                raise DataError(f"{name}: expected {expected} values or none, got {got}")
        for name in ("flops_per_sample", "traffic_per_sample", "energy_joules"):
            _positive(name, getattr(self, name))

    @property
    def parsed_layout(self) -> Layout:
        """The numbers of nodes and GPUs that `layout` names."""
        return Layout.parse(self.layout)

    @property
    def median_step(self) -> float:
        """Median step time, s; a step is as long as its slowest rank."""
        return float(np.median(self.times.array("total").max(axis=0)))

    @property
    def commit(self) -> str:
        """Git revision of the measured code, with ``+`` for local changes; empty: not known."""
        revision = str(self.provenance.get("git_revision") or "")[:12]
        return revision + ("+" if revision and self.provenance.get("git_dirty") else "")


def read(path: Path) -> ScalingRun:
    """Read the record of a run.

    Raises `DataError` if the file is missing or damaged, a key is unknown or missing, or values contradict
    each other.
    """
    values = read_sealed(path, "the JSON file of a scaling run", *["measure it again"] * 2)
    try:
        return parse(ScalingRun, values, "run")
    except UserError as error:
        raise DataError(f"{path}: {error}") from error


def write(run: ScalingRun, path: Path) -> None:
    """Write the record of a run atomically; raises `millrace.files.OutputError` if there is no space."""
    write_sealed(path, dataclasses.asdict(run))


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise DataError(f"{key}: {value!r} is not known, {nearest(value, known)}")


def _positive(key: str, value: float | None) -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise DataError(f"{key}: expected a positive number, got {value}")
