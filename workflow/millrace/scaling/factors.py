r"""Efficiency of a layout, what it is the product of, and what costs it most.

In a step, rank r needs the time :math:`T_r`, of which it waits :math:`C_r` for communication and
:math:`D_r` for data, and computes the rest. Four levels of a step, each without one more loss:

=====  ==========================================  ======================================
w      :math:`\max_r T_r`                          the step, as long as its slowest rank
v      :math:`\max_r (T_r - C_r)`                  ... without exposed communication
u      :math:`\max_r (T_r - C_r - D_r)`            ... without waiting for data
m      :math:`\mathrm{mean}_r (T_r - C_r - D_r)`   ... with the work evenly divided
=====  ==========================================  ======================================

Their medians over steps give communication = v / w, data = u / v, balance = m / u, and, with the batch b
of a rank, compute = (m of the base / m) b / (b of the base): how much faster a rank computes a sample than
in the base layout. After the multiplicative model of POP (Wagner et al. 2017, *Tools for High Performance
Computing 2017*), with data apart. Each factor is divided by that of the base, so that their product is the
efficiency: throughput of a rank over that of a rank of the base. The waiting of fast ranks for slow ones
counts as imbalance, not as communication, because v is that of the slowest.

Shape suffixes: R ranks, S steps, K bootstrap draws; levels are [4, S] or [K, 4].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from millrace.scaling.quantity import Quantity
from millrace.scaling.records import PARTS, ScalingRun, Times
from millrace.scaling.statistics import bootstrap, centre, interval, welch

Floats = NDArray[np.float64]

NAMES = ("balance", "communication", "data", "compute")
_COMPUTING = ("forward", "backward", "optimiser", "other")
_NOTABLE = 0.05
"""Share of a step from which a loss is worth a word."""


@dataclass(frozen=True)
class Measurement:
    """All repeats of a layout: levels of a step and their bootstrap draws."""

    layout: str
    ranks: int
    nodes: int
    rank_batch: float
    """Samples of a rank in a step."""
    levels: Floats
    """w, v, u, m in seconds, [4]."""
    draws: Floats
    """[K, 4]."""
    repeats: int
    steps: int
    """Of the shortest repeat."""
    shares: dict[str, float]
    """Of the computing time m: forward, backward, optimiser, other; sum 1."""
    slowest_rank: int
    slowest_share: float
    """Of steps in which that rank computes longest."""
    runs: tuple[ScalingRun, ...]

    @property
    def degrees(self) -> int:
        """Of freedom between repeats."""
        return self.repeats - 1

    @property
    def global_batch(self) -> float:
        """Samples of a step over all ranks."""
        return self.rank_batch * self.ranks


@dataclass(frozen=True)
class Factors:
    """Efficiency and its factors, relative to the base layout."""

    efficiency: Quantity
    balance: Quantity
    communication: Quantity
    data: Quantity
    compute: Quantity


@dataclass(frozen=True)
class Diagnosis:
    """What costs a layout most."""

    kind: str
    """``imbalance``, ``data``, ``communication``, ``computing`` or ``none``."""
    sentence: str


def levels_of(times: Times) -> Floats:
    """w, v, u, m of every step, [4, S]."""
    total_RS, communication_RS, data_RS = (
        times.array(n) for n in ("total", "communication", "data")
    )
    # Clocks differ by rounding: a part may not make the rest negative.
    without_RS = np.maximum(total_RS - communication_RS, 1e-12)
    computing_RS = np.maximum(without_RS - data_RS, 1e-12)
    return np.stack(
        [
            total_RS.max(axis=0),
            without_RS.max(axis=0),
            computing_RS.max(axis=0),
            computing_RS.mean(axis=0),
        ]
    )


def measure(runs: Sequence[ScalingRun], draws: int, seed: int) -> Measurement:
    """Put the repeats of a layout together."""
    runs = tuple(sorted(runs, key=lambda run: run.repeat))
    place = runs[0].place
    repeats = [levels_of(run.times) for run in runs]
    computing = np.sum([_computing(run.times) for run in runs], axis=0)
    longest = np.concatenate([_computing_by_step(run.times).argmax(axis=0) for run in runs])
    counts_R = np.bincount(longest, minlength=place.world_size)
    return Measurement(
        layout=runs[0].layout,
        ranks=place.world_size,
        nodes=place.nodes,
        rank_batch=runs[0].global_batch / place.world_size,
        levels=centre(repeats),
        # Layouts are drawn independently: with the same picks, their ratio would look too certain.
        draws=bootstrap(repeats, draws, (seed, place.nodes, place.gpus_per_node)),
        repeats=len(runs),
        steps=min(levels.shape[1] for levels in repeats),
        shares=dict(zip(_COMPUTING, (computing / computing.sum()).tolist(), strict=True)),
        slowest_rank=int(counts_R.argmax()),
        slowest_share=float(counts_R.max() / counts_R.sum()),
        runs=runs,
    )


def compare(one: Measurement, base: Measurement, label: str) -> Factors:
    """Efficiency of a layout over the base, and its factors, with bootstrap intervals."""
    work = {
        "efficiency": one.rank_batch / base.rank_batch,
        "compute": one.rank_batch / base.rank_batch,
    }
    mine, theirs = _shares(one.levels), _shares(base.levels)
    my_draws, their_draws = _shares(one.draws), _shares(base.draws)
    made = {}
    for name in mine:
        value = float(work.get(name, 1.0) * mine[name] / theirs[name])
        if one is base:
            made[name] = Quantity(1.0, "1", label, 1.0, 1.0)
            continue
        draws = work.get(name, 1.0) * my_draws[name] / their_draws[name]
        degrees = welch(my_draws[name], one.degrees, their_draws[name], base.degrees)
        made[name] = Quantity(value, "1", label, *interval(value, draws, degrees))
    return Factors(**made)


def _shares(levels: Floats) -> dict[str, Floats]:
    """What the factors compare between layouts, from levels [..., 4]."""
    w, v, u, m = np.moveaxis(levels, -1, 0)
    return {
        "efficiency": 1 / w,
        "balance": m / u,
        "communication": v / w,
        "data": u / v,
        "compute": 1 / m,
    }


def breakdown(one: Measurement) -> dict[str, float]:
    """Seconds of a step by what they are spent on; the sum is the step."""
    w, v, u, m = (float(level) for level in one.levels)
    return {
        **{name: m * share for name, share in one.shares.items()},
        "imbalance": u - m,
        "data": v - u,
        "communication": w - v,
    }


def diagnose(one: Measurement, factors: Factors) -> Diagnosis:
    """Say in one sentence what costs a layout most, in shares of its own step.

    Balance, data and communication are those of the layout itself, so that a study which waits for data on
    every layout is told so; computing is relative to the base.
    """
    w, v, u, m = (float(level) for level in one.levels)
    losses = {
        "imbalance": (u - m) / w,
        "data": (v - u) / w,
        "communication": (w - v) / w,
        "computing": 1 - factors.compute.value,
    }
    kind = max(losses, key=lambda name: losses[name])
    share = losses[kind]
    if share < _NOTABLE:
        return Diagnosis(
            "none",
            f"{one.layout}: no loss above {_NOTABLE:.0%} of a step; "
            f"efficiency {factors.efficiency.value:.1%}.",
        )
    told = {
        "imbalance": f"imbalance: the slowest rank computes {u / m:.2f} times as long as the mean rank"
        + (
            f", and it is rank {one.slowest_rank} in {one.slowest_share:.0%} of the steps: give it less "
            "work or look at its device"
            if one.slowest_share > 0.5
            else ", and it is not always the same rank: batches differ in cost"
        ),
        "data": f"waiting for data: {share:.0%} of a step; use more loader workers, or keep "
        "the data in memory",
        "communication": f"communication: {share:.0%} of a step is communication not hidden behind "
        "computing; use a larger batch, accumulation or compressed gradients",
        "computing": f"computing: with {one.rank_batch:g} samples on a rank, a sample takes "
        f"{1 / factors.compute.value:.2f} times as long to compute as in the base layout; use a larger "
        "batch",
    }
    return Diagnosis(kind, f"{one.layout} loses most to {told[kind]}.")


def _computing_by_step(times: Times) -> Floats:
    return times.array("total") - times.array("communication") - times.array("data")


def _computing(times: Times) -> Floats:
    """Seconds of forward, backward, optimiser and the rest over all ranks and steps, [4]."""
    sums = {name: float(times.array(name).sum()) for name in PARTS}
    other = float(times.array("total").sum()) - sum(sums.values())
    return np.array([sums["forward"], sums["backward"], sums["optimiser"], max(other, 0.0)])
