r"""Efficiency of a layout, the factors that it is the product of, and the largest loss.

In a step, rank r takes the time :math:`T_r`, of which it waits :math:`C_r` for communication and
:math:`D_r` for data; in the remaining time it computes. There are four levels of the time of a step, each
without one more loss:

=====  ==========================================  ======================================
w      :math:`\max_r T_r`                          the step, as long as its slowest rank
v      :math:`\max_r (T_r - C_r)`                  ... without exposed communication
u      :math:`\max_r (T_r - C_r - D_r)`            ... without waiting for data
m      :math:`\mathrm{mean}_r (T_r - C_r - D_r)`   ... with evenly distributed work
=====  ==========================================  ======================================

Their medians over steps give communication = v / w, data = u / v, balance = m / u, and, with the batch b
of a rank, compute = (m of the base / m) b / (b of the base): how much faster a rank computes a sample than
in the base layout. This is the multiplicative model of POP (Wagner et al. 2017, *Tools for High Performance
Computing 2017*) with a separate factor for data. Each factor is divided by that of the base, so that their
product is the efficiency: the throughput of a rank over that of a rank of the base. The time that fast
ranks wait for slow ones counts as imbalance, not as communication, because v is that of the slowest rank.

Shape suffixes: R ranks, S steps, K bootstrap draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from millrace.scaling.quantity import Floats, Quantity
from millrace.scaling.records import TIMED_PARTS, ScalingRun, Times
from millrace.scaling.statistics import bootstrap, interval, median_of_medians, welch_degrees

_COMPUTING = ("forward", "backward", "optimiser", "other")
_NOTABLE = 0.05
"""Smallest loss that is reported, as a share of a step."""


@dataclass(frozen=True)
class StepLevels:
    """The four levels of the time of a step of one layout, with bootstrap draws."""

    rank_batch: float
    """Samples of a rank in a step."""
    levels: Floats
    """w, v, u, m in seconds, [4]."""
    draws: Floats
    """The same for each bootstrap draw, [K, 4]."""
    degrees: int
    """Degrees of freedom between repeats."""


@dataclass(frozen=True)
class Measurement(StepLevels):
    """All repeats of a measured layout."""

    layout: str
    ranks: int
    nodes: int
    repeats: int
    steps: int
    """Number of steps of the shortest repeat."""
    shares: dict[str, float]
    """Shares of the computing time m: forward, backward, optimiser, other; their sum is 1."""
    slowest_rank: int
    """The rank that most often computes longest."""
    slowest_share: float
    """Share of the steps in which that rank computes longest."""
    runs: tuple[ScalingRun, ...]

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
    """The largest loss of a layout."""

    kind: str
    """``imbalance``, ``data``, ``communication``, ``computing`` or ``none``."""
    sentence: str


def levels_of(times: Times) -> Floats:
    """Return w, v, u, m of every step, [4, S]."""
    total_RS, communication_RS, data_RS = (
        times.array(n) for n in ("total", "communication", "data")
    )
    # Clocks are rounded: the remainder of a step must not become negative.
    without_RS = np.maximum(total_RS - communication_RS, 1e-12)
    computing_RS = np.maximum(without_RS - data_RS, 1e-12)
    longest = [times_RS.max(axis=0) for times_RS in (total_RS, without_RS, computing_RS)]
    return np.stack([*longest, computing_RS.mean(axis=0)])


def measure(runs: Sequence[ScalingRun], draws: int, seed: int) -> Measurement:
    """Combine the repeats of a layout, with ``draws`` bootstrap draws."""
    runs = tuple(sorted(runs, key=lambda run: run.repeat))
    layout = runs[0].parsed_layout
    repeats = [levels_of(run.times) for run in runs]
    computing = np.sum([_computing_seconds(run.times) for run in runs], axis=0)
    longest = np.concatenate([_slowest_ranks(run.times) for run in runs])
    counts_R = np.bincount(longest, minlength=layout.world_size)
    return Measurement(
        layout=runs[0].layout,
        ranks=layout.world_size,
        nodes=layout.nodes,
        rank_batch=runs[0].global_batch / layout.world_size,
        levels=median_of_medians(repeats),
        # Layouts are resampled independently: with the same draws, their ratio would seem too certain.
        draws=bootstrap(repeats, draws, (seed, layout.nodes, layout.gpus_per_node)),
        degrees=len(runs) - 1,
        repeats=len(runs),
        steps=min(levels.shape[1] for levels in repeats),
        shares=dict(zip(_COMPUTING, (computing / computing.sum()).tolist(), strict=True)),
        slowest_rank=int(counts_R.argmax()),
        slowest_share=float(counts_R.max() / counts_R.sum()),
        runs=runs,
    )


def compare(layout: StepLevels, base: StepLevels, label: str) -> Factors:
    """Return the efficiency of a layout relative to the base, and its factors, with 95 % intervals."""
    if layout is base:
        return Factors(*[Quantity(1.0, "1", label, 1.0, 1.0)] * 5)
    values, base_values = _comparable(layout.levels), _comparable(base.levels)
    draws, base_draws = _comparable(layout.draws), _comparable(base.draws)
    factors = {}
    for name in values:
        work = layout.rank_batch / base.rank_batch if name in ("efficiency", "compute") else 1.0
        value = float(work * values[name] / base_values[name])
        degrees = welch_degrees(draws[name], layout.degrees, base_draws[name], base.degrees)
        ends = interval(value, work * draws[name] / base_draws[name], degrees)
        factors[name] = Quantity(value, "1", label, *ends)
    return Factors(**factors)


def _comparable(levels: Floats) -> dict[str, Floats]:
    """Quantities whose ratio to the base layout is a factor, from levels [..., 4]."""
    w, v, u, m = np.moveaxis(levels, -1, 0)
    return {
        "efficiency": 1 / w, "balance": m / u, "communication": v / w, "data": u / v, "compute": 1 / m,
    }  # fmt: skip


def losses(levels: Floats) -> dict[str, float]:
    """Return the seconds of a step that are lost to imbalance, data and communication, from [4] levels."""
    w, v, u, m = (float(level) for level in levels)
    return {"imbalance": u - m, "data": v - u, "communication": w - v}


def breakdown(measurement: Measurement) -> dict[str, float]:
    """Return the seconds of a step by what they are spent on; their sum is the step."""
    computing = {
        name: float(measurement.levels[3]) * share for name, share in measurement.shares.items()
    }
    return computing | losses(measurement.levels)


def diagnose(measurement: Measurement, factors: Factors) -> Diagnosis:
    """Name the largest loss of a layout in one sentence, with what to do about it.

    Imbalance, data and communication are shares of the layout's own step, so that a study which waits for
    data on every layout is diagnosed as well; computing is relative to the base.
    """
    w, _, u, m = (float(level) for level in measurement.levels)
    shares = {name: seconds / w for name, seconds in losses(measurement.levels).items()}
    shares["computing"] = 1 - factors.compute.value
    kind = max(shares, key=lambda name: shares[name])
    if shares[kind] < _NOTABLE:
        efficiency = f"efficiency {factors.efficiency.value:.1%}"
        return Diagnosis(
            "none", f"{measurement.layout}: no loss above {_NOTABLE:.0%} of a step; {efficiency}."
        )
    who = "it is not always the same rank: batches differ in cost"
    if measurement.slowest_share > 0.5:
        who = f"it is rank {measurement.slowest_rank} in {measurement.slowest_share:.0%} of the steps: "
        who += "give it less work or check its device"
    cause = {
        "imbalance": f"imbalance: the slowest rank computes {u / m:.2f} times as long as the mean rank, "
        f"and {who}",
        "data": f"waiting for data: {shares[kind]:.0%} of a step; use more loader workers, or keep the "
        "data in memory",
        "communication": f"communication: {shares[kind]:.0%} of a step is communication that is not hidden "
        "behind computing; use a larger batch, accumulation or compressed gradients",
        "computing": f"computing: with {measurement.rank_batch:g} samples on a rank, a sample takes "
        f"{1 / factors.compute.value:.2f} times as long to compute as in the base layout; use a larger "
        "batch",
    }
    return Diagnosis(kind, f"{measurement.layout} loses most to {cause[kind]}.")


def _slowest_ranks(times: Times) -> NDArray[np.intp]:
    """For each step, the rank that computes longest, [S]."""
    computing_RS = times.array("total") - times.array("communication") - times.array("data")
    return computing_RS.argmax(axis=0)


def _computing_seconds(times: Times) -> Floats:
    """Seconds of forward, backward, optimiser and the rest over all ranks and steps, [4]."""
    sums = {name: float(times.array(name).sum()) for name in TIMED_PARTS}
    other = float(times.array("total").sum()) - sum(sums.values())
    return np.array([sums["forward"], sums["backward"], sums["optimiser"], max(other, 0.0)])
