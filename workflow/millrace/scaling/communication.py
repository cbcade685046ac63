r"""The alpha-beta model of an all-reduce, and the step of layouts that were not run.

A message of n bytes between two ranks takes :math:`\alpha + n / \beta`. A ring all-reduce sends
2 (p - 1) messages of n / p bytes one after the other (Thakur, Rabenseifner & Gropp 2005, *Int. J. High
Perform. Comput. Appl.* 19(1), section 4):

.. math:: t(n, p) = 2 (p - 1) \alpha + 2 \frac{p - 1}{p} \frac{n}{\beta}

A ring over several nodes is as slow as its slowest link, the one between nodes.

Shape suffixes: N observations, K draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from millrace.scaling.quantity import MODELLED, Quantity, Refusal
from millrace.scaling.records import Transfer
from millrace.scaling.statistics import LinearFit, relative_least_squares

Floats = NDArray[np.float64]

_FEWEST_SIZES, _LEAST_RANGE = 4, 10.0


@dataclass(frozen=True)
class LinkModel:
    """Latency and bandwidth of the links of one kind."""

    link: str
    """``intra`` or ``inter``."""
    alpha: Quantity
    """Seconds a message."""
    beta: Quantity
    """Bytes a second."""
    deviation: float | None
    """Largest deviation of the model from the median measured time of a size, relative."""
    source: str
    """Measured table, or where else it comes from."""


def ring_factors(ranks: ArrayLike) -> tuple[Floats, Floats]:
    """Messages of a ring all-reduce, 2 (p - 1), and its traffic over the message size, 2 (p - 1) / p."""
    p = np.asarray(ranks, dtype=np.float64)
    return 2 * (p - 1), 2 * (p - 1) / p


def all_reduce_seconds(link: LinkModel, size: float, ranks: int) -> float:
    """Time of a ring all-reduce of ``size`` bytes between ``ranks``; 0 for one rank."""
    messages, traffic = ring_factors(ranks)
    return float(messages * link.alpha.value + traffic * size / link.beta.value)


def bus_bandwidth(size: ArrayLike, seconds: ArrayLike, ranks: ArrayLike) -> Floats:
    """Bandwidth that every link carries in an all-reduce, bytes/s: comparable between numbers of ranks.

    The ``busbw`` of the NCCL tests: 2 (p - 1) / p times bytes over seconds.
    """
    return ring_factors(ranks)[1] * np.asarray(size) / np.asarray(seconds)


def fit_link(transfers: Sequence[Transfer], link: str) -> LinkModel | Refusal:
    """Fit alpha and beta of one kind of link to measured all-reduces.

    Refused below four sizes of messages, or if they do not span a factor of ten: then alpha and beta
    cannot be told apart.
    """
    mine = [transfer for transfer in transfers if transfer.link == link]
    what = f"alpha-beta model of {link}-node links"
    if not mine:
        return Refusal(what, "no all-reduce over them was measured")
    sizes = sorted({transfer.bytes for transfer in mine})
    if len(sizes) < _FEWEST_SIZES or sizes[-1] < _LEAST_RANGE * sizes[0]:
        return Refusal(
            what,
            f"{len(sizes)} sizes from {sizes[0]:,} to {sizes[-1]:,} bytes were measured; expected "
            f"{_FEWEST_SIZES} or more over a factor of {_LEAST_RANGE:g}",
        )
    size_N, ranks_N, seconds_N = (
        np.array([getattr(transfer, name) for transfer in mine], dtype=np.float64)
        for name in ("bytes", "ranks", "seconds")
    )
    (alpha, beta), (low, high), _ = estimate(size_N, ranks_N, seconds_N)
    if not np.isfinite(beta):
        return Refusal(what, "the measured time does not grow with the size of the message")
    model = LinkModel(
        link,
        Quantity(float(alpha), "s", MODELLED, float(low[0]), float(high[0])),
        Quantity(float(beta), "B/s", MODELLED, float(low[1]), float(high[1])),
        None,
        f"fitted to {len(mine)} measured all-reduces of {sizes[0]:,} to {sizes[-1]:,} bytes",
    )
    return LinkModel(
        model.link,
        model.alpha,
        model.beta,
        _deviation(model, size_N, ranks_N, seconds_N),
        model.source,
    )


def estimate(
    size_N: Floats, ranks_N: Floats, seconds: Floats
) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats], LinearFit]:
    """Alpha and beta with intervals, for one table of seconds [N] or many [..., N].

    Returns
    -------
    values : pair of ndarray
        Alpha and beta, [...].
    low, high : ndarray
        [2, ...], of the same.
    linear : LinearFit
        In alpha and 1 / beta.
    """
    messages_N, traffic_N = ring_factors(ranks_N)
    design = np.stack([messages_N, traffic_N * size_N], axis=1)
    free = relative_least_squares(design, seconds)
    without_latency = relative_least_squares(design[:, 1:], seconds)
    (alpha_low, alpha_high), (inverse_low, inverse_high) = free.interval(0), free.interval(1)
    alpha = free.coefficients[..., 0]
    inverse = np.where(alpha < 0, without_latency.coefficients[..., 0], free.coefficients[..., 1])
    with np.errstate(divide="ignore"):
        low = np.stack([alpha_low.clip(min=0), 1 / inverse_high.clip(min=0)])
        high = np.stack([alpha_high.clip(min=0), 1 / inverse_low.clip(min=0)])
        values = (alpha.clip(min=0), 1 / inverse.clip(min=0))
    return values, (low, high), free


def assumed_link(link: str, latency_s: float, bytes_per_s: float) -> LinkModel:
    """Model of a link from figures of the configuration, for clusters that were not measured."""
    return LinkModel(
        link,
        Quantity(latency_s, "s", MODELLED),
        Quantity(bytes_per_s, "B/s", MODELLED),
        None,
        "assumed in the configuration, not measured",
    )


def crossover_batch(forward_backward: tuple[float, float], communication_s: float) -> float | None:
    """Batch of a rank whose backward pass takes as long as the communication.

    Above it, communication can hide behind the backward pass; below, it cannot, however well it overlaps.

    Parameters
    ----------
    forward_backward : pair of float
        Constant (s) and slope (s/sample) of the time of the backward pass over the batch of a rank.
    communication_s : float
        Time of the all-reduce.

    Returns
    -------
    float or None
        Samples; 0 if every batch is enough; None if the time of the backward pass does not grow.
    """
    constant, slope = forward_backward
    if slope <= 0:
        return None
    return max(0.0, (communication_s - constant) / slope)


def _deviation(model: LinkModel, size_N: Floats, ranks_N: Floats, seconds_N: Floats) -> float:
    worst = 0.0
    for size, ranks in {(s, p) for s, p in zip(size_N, ranks_N, strict=True)}:
        chosen = (size_N == size) & (ranks_N == ranks)
        measured = float(np.median(seconds_N[chosen]))
        worst = max(worst, abs(all_reduce_seconds(model, size, int(ranks)) / measured - 1))
    return worst
