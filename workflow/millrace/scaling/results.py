"""The result of the analysis of a scaling study: plain data, every number with its label."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from millrace.layout import Layout
from millrace.scaling.communication import LinkModel
from millrace.scaling.factors import Diagnosis, Factors, Measurement
from millrace.scaling.fits import Fit
from millrace.scaling.quantity import Quantity, Refusal
from millrace.scaling.recommend import Recommendation

SCHEMA = "millrace.scaling.write/1"


@dataclass(frozen=True)
class Cost:
    """Cost of one or several epochs; the relative width of its intervals is that of the step time."""

    seconds: Quantity
    device_hours: Quantity
    node_hours: Quantity
    money: Quantity | None
    """None: no price was given."""

    def times(self, epochs: float) -> "Cost":
        """Return the cost of several epochs."""
        return Cost(
            self.seconds.times(epochs, "s"),
            self.device_hours.times(epochs, "h"),
            self.node_hours.times(epochs, "h"),
            self.money and self.money.times(epochs, self.money.unit),
        )


def epoch_cost(
    step: Quantity, layout: Layout, steps_per_epoch: float, price: float | None, currency: str
) -> Cost:
    """Return the cost of an epoch from the time of a step (s) and the price of a device-hour."""
    seconds = step.times(steps_per_epoch, "s")
    device_hours = seconds.times(layout.world_size / 3600, "h")
    node_hours = seconds.times(layout.nodes / 3600, "h")
    money = None if price is None else device_hours.times(price, currency)
    return Cost(seconds, device_hours, node_hours, money)


@dataclass(frozen=True)
class Claim:
    """An efficiency that was claimed for a layout, and whether the measurement confirms it."""

    low: float
    high: float
    verdict: str
    """``confirmed``: the measured interval lies in the claimed band; ``contradicted``: it lies outside;
    ``open``: it crosses an edge of the band."""


@dataclass(frozen=True, kw_only=True)
class LayoutResult:
    """One measured or predicted layout of a study; fields with a default belong to measured ones."""

    layout: str
    label: str
    """Label of its times."""
    nodes: int
    ranks: int
    rank_batch: float
    step: Quantity
    throughput: Quantity
    """Samples/s over all ranks."""
    speed_up: Quantity
    """Throughput over that of the base layout."""
    factors: Factors
    parts: dict[str, Quantity]
    """Seconds of a step by what they are spent on; their sum is the step. The parts are ``imbalance``,
    ``data``, ``communication`` and, if measured, ``forward``, ``backward``, ``optimiser`` and ``other``; in
    place of these four, a prediction has ``computing``."""
    basis: str
    """What the times are based on."""
    epoch: Cost
    target: Cost | None
    """Cost until the target error is reached; None: the number of epochs is not given, or weak scaling,
    where batches differ."""
    all_reduce: Quantity | None
    """Modelled time of the all-reduce of all gradients without overlap, s."""
    crossover: Quantity | None
    """Global batch from which the backward pass takes long enough to hide the all-reduce."""
    mfu: Quantity | None
    """Model FLOPs utilisation: share of the peak of all devices that forward and backward pass use."""
    roofline: Quantity | None
    """Share of the speed that the roofline allows at this arithmetic intensity."""
    queue_hours: Quantity | None
    repeats: int = 0
    steps: int = 0
    """Number of steps of the shortest repeat."""
    run_seconds: tuple[float, ...] = ()
    """Median step time of each run, in the order of repeats."""
    diagnosis: Diagnosis | None = None
    memory: Quantity | None = None
    """Peak memory of a rank, bytes."""
    energy: Quantity | None = None
    """Joules per sample."""
    claim: Claim | None = None
    loss_deviation: Quantity | None = None
    """Largest relative difference of the loss from that of the base layout at the same step."""


def wait_hours(layout: LayoutResult, layouts: Sequence[LayoutResult]) -> float:
    """Return the expected wait of a layout: its own if known, else the longest known one, else 0."""
    if layout.queue_hours is not None:
        return layout.queue_hours.value
    return max((other.queue_hours.value for other in layouts if other.queue_hours), default=0.0)


_Layout = TypeVar("_Layout", Measurement, LayoutResult)


def by_ranks(layouts: Sequence[_Layout]) -> dict[int, _Layout]:
    """Return one layout for each number of ranks, that on the fewest nodes.

    ``layouts`` are in the order of ranks and nodes.
    """
    return dict(sorted({one.ranks: one for one in reversed(layouts)}.items()))


@dataclass(frozen=True)
class BandwidthPoint:
    """A measured all-reduce."""

    layout: str
    link: str
    ranks: int
    bytes: int
    seconds: Quantity
    """Median over runs."""
    bus: Quantity
    """Bus bandwidth, bytes/s."""


@dataclass(frozen=True)
class Study:
    """The results of one experiment, mode of scaling and kind of device."""

    key: str
    """Unique name of letters, digits, ``-`` and ``_``, for files and anchors."""
    experiment: str
    mode: str
    device_kind: str
    device_name: str
    backend: str
    precision: str
    global_batch: int | None
    """Strong scaling: global batch of all layouts."""
    rank_batch: float | None
    """Weak scaling: batch of every rank."""
    base: str
    layouts: tuple[LayoutResult, ...]
    fits: tuple[Fit, ...]
    links: tuple[LinkModel, ...]
    bandwidth: tuple[BandwidthPoint, ...]
    model_deviation: float | None
    """Largest relative deviation of predicted from measured steps."""
    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...]
    losses_agree: bool | None
    """None: losses are not comparable or were not recorded."""
    recommendation: Recommendation
    pareto: tuple[str, ...]
    commits: tuple[str, ...]
    hosts: tuple[str, ...]
    software: dict[str, Any]

    @property
    def units(self) -> str:
        """What the ranks run on, for axes and captions."""
        return "GPUs" if self.device_kind == "gpu" else "CPU processes"


@dataclass(frozen=True)
class Change:
    """A step time compared with that of an earlier commit on the same hardware."""

    study: str
    layout: str
    hardware: str
    before_commit: str
    before: Quantity
    now_commit: str
    now: Quantity
    change: float
    """Relative change: 0.1 is ten per cent slower."""
    verdict: str
    """``slower``, ``faster`` or ``unchanged``."""


@dataclass(frozen=True)
class Analysis:
    """All studies of a report."""

    schema: str
    studies: tuple[Study, ...]
    """GPU before CPU, in the order of experiments."""
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    settings: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return nested dictionaries and lists, exactly as reading the JSON file gives them."""
        return dict(json.loads(json.dumps(dataclasses.asdict(self))))
