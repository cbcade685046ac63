"""What the analysis of a scaling study says: plain data, every number with its label."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from millrace.scaling.communication import LinkModel
from millrace.scaling.cost import Cost
from millrace.scaling.factors import Diagnosis, Factors
from millrace.scaling.fits import Fit
from millrace.scaling.quantity import Quantity, Refusal
from millrace.scaling.recommend import Recommendation

SCHEMA = "millrace.scaling.write/1"
PARTS = (
    "forward", "backward", "optimiser", "computing", "other", "imbalance", "data", "communication",
)  # fmt: skip
"""Of a step. A predicted one has ``computing`` in place of forward, backward, optimiser and other."""


@dataclass(frozen=True)
class Claim:
    """An efficiency that was claimed for a layout, and what the measurement says."""

    low: float
    high: float
    verdict: str
    """``confirmed``: the interval lies in the band; ``contradicted``: outside; ``open``: neither."""


@dataclass(frozen=True)
class LayoutResult:
    """One layout of a study."""

    layout: str
    label: str
    """Of its times."""
    nodes: int
    ranks: int
    rank_batch: float
    repeats: int
    steps: int
    """Of the shortest repeat; 0 for predicted layouts, as are ``repeats``."""
    step: Quantity
    run_seconds: tuple[float, ...]
    """Median step of each run, in the order of repeats; empty for predicted layouts."""
    throughput: Quantity
    """Samples/s over all ranks."""
    speed_up: Quantity
    """Throughput over that of the base layout."""
    factors: Factors
    parts: dict[str, Quantity]
    """Seconds of a step, see `PARTS`; their sum is the step."""
    diagnosis: Diagnosis | None
    """None for predicted layouts."""
    basis: str
    """How its times are known."""
    epoch: Cost
    target: Cost | None
    """To the target error; None: epochs not given, or weak scaling, where the batch differs."""
    all_reduce: Quantity | None
    """Modelled time of the all-reduce of all gradients without overlap, s."""
    crossover: Quantity | None
    """Global batch from which the backward pass is long enough to hide the all-reduce."""
    mfu: Quantity | None
    """Share of the peak of all devices that forward and backward use."""
    roofline: Quantity | None
    """Share of what the roofline allows at this arithmetic intensity."""
    memory: Quantity | None
    """Most that a rank held, bytes."""
    energy: Quantity | None
    """Joules a sample."""
    queue_hours: Quantity | None
    claim: Claim | None
    loss_deviation: Quantity | None
    """Largest relative difference of the loss to the base layout at the same step."""


def wait_hours(one: LayoutResult, layouts: Sequence[LayoutResult]) -> float:
    """Wait of a layout to reckon with: its own if known, else the longest known of the others, else 0."""
    if one.queue_hours is not None:
        return one.queue_hours.value
    return max((other.queue_hours.value for other in layouts if other.queue_hours), default=0.0)


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
    """One experiment, mode and kind of device."""

    key: str
    """Unique, of letters, digits, ``-`` and ``_``: names files and anchors."""
    experiment: str
    mode: str
    device_kind: str
    device_name: str
    backend: str
    precision: str
    global_batch: int | None
    """Strong scaling: of all layouts."""
    rank_batch: float | None
    """Weak scaling: of every rank."""
    base: str
    layouts: tuple[LayoutResult, ...]
    fits: tuple[Fit, ...]
    links: tuple[LinkModel, ...]
    bandwidth: tuple[BandwidthPoint, ...]
    model_deviation: float | None
    """Largest deviation of predicted from measured steps where both are known."""
    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...]
    losses_agree: bool | None
    """None: not comparable or not recorded."""
    recommendation: Recommendation
    pareto: tuple[str, ...]
    commits: tuple[str, ...]
    hosts: tuple[str, ...]
    software: dict[str, Any]


@dataclass(frozen=True)
class Change:
    """A step compared with an earlier commit on the same hardware."""

    study: str
    layout: str
    hardware: str
    before_commit: str
    before: Quantity
    now_commit: str
    now: Quantity
    change: float
    """Relative: 0.1 is ten per cent slower."""
    verdict: str
    """``slower``, ``faster`` or ``unchanged``."""


@dataclass(frozen=True)
class Analysis:
    """All studies of a report."""

    schema: str
    studies: tuple[Study, ...]
    """GPU first, then CPU; in the order of experiments."""
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    settings: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """As nested dictionaries and lists."""
        return _plain(dataclasses.asdict(self))


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
