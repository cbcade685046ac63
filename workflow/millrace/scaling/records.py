"""The record of one measured run: what the engine writes and the analysis reads.

One JSON file an experiment, layout, mode and repeat. Units: seconds, bytes, joules, samples; nothing is
scaled. Every array of times is [R][S]: one list a rank, in the order of ranks, of one number an optimiser
step, warm-up left out, with the device synchronised at the ends of each part.

Shape suffixes: R ranks, S steps.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.config import from_mapping, nearest
from millrace.errors import DataError, UserError
from millrace.files import write_json
from millrace.layout import Layout
from millrace.scaling.quantity import LABELS, MEASURED, MODELLED

Floats = NDArray[np.float64]

SCHEMA = "millrace.scaling_run/1"
MODES, KINDS, LINKS = ("strong", "weak"), ("cpu", "gpu"), ("intra", "inter")
PARTS = ("forward", "backward", "communication", "data", "optimiser")
# Clocks of parts are read one after the other: their sum may exceed the whole by this share.
_SLACK = 0.02


@dataclass(frozen=True)
class Device:
    """What a rank computes on. A CPU process that stands in for a GPU is a ``cpu``."""

    kind: str
    """``cpu`` or ``gpu``."""
    name: str
    memory_bytes: int | None = None
    peak_flops: float | None = None
    """Peak of one device in the precision of the run, floating-point operations per second."""
    peak_bytes_per_s: float | None = None
    """Peak memory bandwidth of one device."""

    def __post_init__(self) -> None:
        _one_of("device.kind", self.kind, KINDS)
        if not self.name.strip():
            raise DataError("device.name: expected the name of the device, got nothing")
        for name in ("peak_flops", "peak_bytes_per_s"):
            _positive(f"device.{name}", getattr(self, name))


@dataclass(frozen=True)
class Host:
    """A node of the run; ``name`` may be a stand-in, equal names mean the same node."""

    name: str
    processor: str
    cores: int
    memory_bytes: int


@dataclass(frozen=True)
class Transfer:
    """Time of one all-reduce, measured on the nodes of the run outside training."""

    bytes: int
    """Size of the message on every rank."""
    seconds: float
    """Of one all-reduce: the slowest rank, median over repetitions."""
    ranks: int
    link: str
    """``intra``: all ranks on one node; ``inter``: they span nodes."""

    def __post_init__(self) -> None:
        _one_of("bandwidth.link", self.link, LINKS)
        _positive("bandwidth.seconds", self.seconds)
        if self.bytes < 1 or self.ranks < 2:
            raise DataError(
                f"bandwidth: expected messages of 1 or more bytes between 2 or more ranks, got "
                f"{self.bytes} bytes and {self.ranks} ranks"
            )


@dataclass(frozen=True)
class Times:
    """Seconds of every rank and step, [R][S] each.

    The parts do not overlap, and their sum is at most ``total``; the rest is shown as *other*.
    """

    total: tuple[tuple[float, ...], ...]
    """From the end of the previous step to the end of this one, data wait included."""
    forward: tuple[tuple[float, ...], ...]
    backward: tuple[tuple[float, ...], ...]
    """Without the communication that is not hidden behind it."""
    communication: tuple[tuple[float, ...], ...]
    """Exposed: the rank computes nothing meanwhile; waiting for slower ranks is in here."""
    data: tuple[tuple[float, ...], ...]
    """Waiting for the next batch, its copy to the device included."""
    optimiser: tuple[tuple[float, ...], ...]
    """Clipping and the update of the weights."""

    def __post_init__(self) -> None:
        shape = (len(self.total), len(self.total[0]) if self.total else 0)
        if 0 in shape:
            raise DataError("times.total: expected one list of seconds a rank, got none")
        for name in ("total", *PARTS):
            rows = getattr(self, name)
            if len(rows) != shape[0] or any(len(row) != shape[1] for row in rows):
                raise DataError(
                    f"times.{name}: expected {shape[0]} ranks with {shape[1]} steps each, as in times.total"
                )
            values_RS = np.array(rows)
            if values_RS.min() < 0 or (name == "total" and values_RS.min() == 0):
                raise DataError(
                    f"times.{name}: expected seconds of 0 or more, got a negative time or none"
                )
        total_RS = self.array("total")
        excess_RS = sum(self.array(name) for name in PARTS) - total_RS * (1 + _SLACK)
        if excess_RS.max() > 1e-6:
            rank, step = np.unravel_index(np.argmax(excess_RS), shape)
            raise DataError(
                f"times: the parts of step {step} of rank {rank} take longer than its total of "
                f"{total_RS[rank, step]:.3g} s: parts may not overlap"
            )

    def array(self, name: str) -> Floats:
        """Times of a part, [R, S]."""
        return np.array(getattr(self, name), dtype=np.float64)


@dataclass(frozen=True)
class Labels:
    """Where the groups of figures of a run come from, one of `millrace.scaling.quantity.LABELS`."""

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


@dataclass(frozen=True)
class ScalingRun:
    """One run of a scaling study."""

    schema: str
    """`SCHEMA`."""
    experiment: str
    layout: str
    mode: str
    """``strong``: every layout has the same global batch; ``weak``: the same batch per rank."""
    repeat: int
    """Number of the run among its equals, from 0."""
    device: Device
    backend: str
    """Of the process group: nccl, gloo; none for a single rank."""
    hosts: tuple[Host, ...]
    """The nodes of the layout, in the order of ranks."""
    global_batch: int
    """Samples of an optimiser step over all ranks."""
    samples_per_epoch: int
    gradient_bytes: int
    """That ranks exchange in a step, after compression."""
    warm_up_steps: int
    """Steps before the first recorded one, not recorded."""
    times: Times
    precision: str = "float32"
    micro_batch: int | None = None
    """Samples that a rank takes at once; None: all of its share."""
    parameters: int | None = None
    flops_per_sample: float | None = None
    """Floating-point operations of forward and backward for one sample."""
    traffic_per_sample: float | None = None
    """Bytes to and from device memory for one sample, for the roofline."""
    losses: tuple[float, ...] = ()
    """Training loss of each recorded step, mean over the global batch, [S]; empty: not recorded."""
    peak_memory_bytes: tuple[int, ...] = ()
    """Most memory that each rank held on its device, [R]; empty: not recorded."""
    energy_joules: float | None = None
    """Of all devices over the recorded steps."""
    queue_seconds: float | None = None
    """Time that the job waited for its allocation."""
    bandwidth: tuple[Transfer, ...] = ()
    software: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    """As `millrace.provenance.provenance` gives it: ``git_revision``, ``git_dirty``, ``time_utc``."""
    labels: Labels = field(default_factory=Labels)

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise DataError(
                f"schema: expected {SCHEMA!r}, got {self.schema!r}: measure the run again"
            )
        _one_of("mode", self.mode, MODES)
        layout = Layout.parse(self.layout)
        ranks, steps = len(self.times.total), len(self.times.total[0])
        if ranks != layout.world_size:
            raise DataError(
                f"times: expected {layout.world_size} ranks, as layout {self.layout} has, got {ranks}"
            )
        if len(self.hosts) != layout.nodes:
            raise DataError(
                f"hosts: expected {layout.nodes}, as layout {self.layout} has, got {len(self.hosts)}"
            )
        for name in ("global_batch", "samples_per_epoch"):
            if getattr(self, name) < 1:
                raise DataError(f"{name}: expected 1 or more samples, got {getattr(self, name)}")
        for name in ("repeat", "gradient_bytes", "warm_up_steps"):
            if getattr(self, name) < 0:
                raise DataError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name, expected in (("losses", steps), ("peak_memory_bytes", ranks)):
            got = len(getattr(self, name))
            if got not in (0, expected):
                raise DataError(f"{name}: expected {expected} values or none, got {got}")
        for name in ("flops_per_sample", "traffic_per_sample", "energy_joules"):
            _positive(name, getattr(self, name))

    @property
    def place(self) -> Layout:
        """The layout, parsed."""
        return Layout.parse(self.layout)

    @property
    def commit(self) -> str:
        """Revision of the code that was measured, ``+`` for local changes; empty: not known."""
        revision = str(self.provenance.get("git_revision") or "")[:12]
        return revision + ("+" if revision and self.provenance.get("git_dirty") else "")


def read(path: Path) -> ScalingRun:
    """Read a run.

    Raises
    ------
    DataError
        No JSON, an unknown or missing key, or values that do not fit each other.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: expected the JSON file of a scaling run ({error}): measure it again"
        ) from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected one JSON object, got {type(values).__name__}")
    try:
        return from_mapping(ScalingRun, values, "run")
    except UserError as error:
        raise DataError(f"{path}: {error}") from error


def write(run: ScalingRun, path: Path) -> None:
    """Write a run whole; raises `millrace.files.OutputError` if there is no room."""
    write_json(path, dataclasses.asdict(run))


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise DataError(f"{key}: {value!r} is not known, {nearest(value, known)}")


def _positive(key: str, value: float | None) -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise DataError(f"{key}: expected a positive number, got {value}")
