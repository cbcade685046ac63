r"""The alpha-beta model of an all-reduce.

A message of n bytes between two ranks takes :math:`\alpha + n / \beta`, with the latency :math:`\alpha`
(s) and the bandwidth :math:`\beta` (bytes/s). A ring all-reduce sends 2 (p - 1) messages of n / p bytes one
after the other (Thakur, Rabenseifner & Gropp 2005, *Int. J. High Perform. Comput. Appl.* 19(1), section 4):

.. math:: t(n, p) = 2 (p - 1) \alpha + 2 \frac{p - 1}{p} \frac{n}{\beta}

A ring over several nodes is as slow as its slowest link, the one between nodes.

Shape suffix: N observations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from millrace.scaling.quantity import MODELLED, Floats, Quantity, Refusal
from millrace.scaling.records import AllReduceTiming
from millrace.scaling.statistics import relative_least_squares

_MIN_SIZES, _MIN_SIZE_RATIO = 4, 10.0


@dataclass(frozen=True)
class LinkModel:
    """Latency and bandwidth of the links of one kind."""

    link: str
    """``intra``: within a node; ``inter``: between nodes."""
    alpha: Quantity
    """Seconds per message."""
    beta: Quantity
    """Bytes per second."""
    deviation: float | None
    """Largest relative deviation of the model from the median measured time of a message size."""
    source: str
    """The measurements that the model is fitted to, or where else it comes from."""


def ring_factors(ranks: ArrayLike) -> tuple[Floats, Floats]:
    """Return 2 (p - 1), the messages of a ring all-reduce, and 2 (p - 1) / p, its traffic per byte."""
    p = np.asarray(ranks, dtype=np.float64)
    return 2 * (p - 1), 2 * (p - 1) / p


def all_reduce_seconds(link: LinkModel, size: ArrayLike, ranks: int) -> Floats:
    """Return the time of a ring all-reduce of ``size`` bytes between ``ranks``; 0 for one rank."""
    return ring_seconds(link.alpha.value, link.beta.value, size, ranks)


def ring_seconds(alpha: ArrayLike, beta: ArrayLike, size: ArrayLike, ranks: int) -> Floats:
    """Return t(n, p) of the module's formula for a latency (s) and a bandwidth (bytes/s)."""
    messages, traffic = ring_factors(ranks)
    return np.asarray(messages * np.asarray(alpha) + traffic * np.asarray(size) / np.asarray(beta))


def bus_bandwidth(size: ArrayLike, seconds: ArrayLike, ranks: ArrayLike) -> Floats:
    """Return the bandwidth that every link carries in an all-reduce, bytes/s.

    This is the ``busbw`` of the NCCL tests, 2 (p - 1) / p times bytes over seconds: it is comparable
    between different numbers of ranks.
    """
    return ring_factors(ranks)[1] * np.asarray(size) / np.asarray(seconds)


def fit_link(timings: Sequence[AllReduceTiming], link: str) -> LinkModel | Refusal:
    """Fit latency and bandwidth of one kind of link to measured all-reduces.

    Refused for fewer than four message sizes, or if the sizes do not span a factor of ten: then latency
    and bandwidth cannot be told apart.
    """
    timings = [timing for timing in timings if timing.link == link]
    what = f"alpha-beta model of {link}-node links"
    if not timings:
        return Refusal(what, "no all-reduce over them was measured")
    sizes = sorted({timing.bytes for timing in timings})
    measured = f"{sizes[0]:,} to {sizes[-1]:,} bytes"
    if len(sizes) < _MIN_SIZES or sizes[-1] < _MIN_SIZE_RATIO * sizes[0]:
        expected = f"expected {_MIN_SIZES} or more over a factor of {_MIN_SIZE_RATIO:g}"
        return Refusal(what, f"{len(sizes)} sizes from {measured} were measured; {expected}")
    size_N, ranks_N, seconds_N = (
        np.array([getattr(timing, name) for timing in timings], dtype=np.float64)
        for name in ("bytes", "ranks", "seconds")
    )
    (alpha, beta), low, high = estimate(size_N, ranks_N, seconds_N)
    if not np.isfinite(beta):
        return Refusal(what, "the measured time does not grow with the size of the message")
    model = LinkModel(
        link,
        Quantity(float(alpha), "s", MODELLED, float(low[0]), float(high[0])),
        Quantity(float(beta), "B/s", MODELLED, float(low[1]), float(high[1])),
        None,
        f"fitted to {len(timings)} measured all-reduces of {measured}",
    )
    deviations = []
    for size, ranks in {*zip(size_N, ranks_N, strict=True)}:
        median = float(np.median(seconds_N[(size_N == size) & (ranks_N == ranks)]))
        deviations.append(abs(float(all_reduce_seconds(model, size, int(ranks))) / median - 1))
    return replace(model, deviation=max(deviations))


def estimate(size_N: Floats, ranks_N: Floats, seconds: Floats) -> tuple[Floats, Floats, Floats]:
    """Estimate latency and bandwidth from one series of seconds [N] or from many [..., N].

    Returns estimates of alpha (s) and beta (bytes/s), and the lower and upper ends of their 95 % intervals,
    [2, ...] each.
    """
    messages_N, traffic_N = ring_factors(ranks_N)
    design = np.stack([messages_N, traffic_N * size_N], axis=1)
    both = relative_least_squares(design, seconds)
    without_latency = relative_least_squares(design[:, 1:], seconds)
    (alpha_low, alpha_high), (inverse_low, inverse_high) = both.interval(0), both.interval(1)
    alpha = both.coefficients[..., 0]
    inverse = np.where(alpha < 0, without_latency.coefficients[..., 0], both.coefficients[..., 1])
    with np.errstate(divide="ignore"):
        values, low, high = (
            np.stack([latency.clip(min=0), 1 / inverse_bandwidth.clip(min=0)])
            for latency, inverse_bandwidth in (
                (alpha, inverse),
                (alpha_low, inverse_high),
                (alpha_high, inverse_low),
            )
        )
    return values, low, high


def assumed_link(link: str, latency_s: float, bytes_per_s: float) -> LinkModel:
    """Return the model of a link that the configuration describes, for clusters that were not measured."""
    alpha, beta = Quantity(latency_s, "s", MODELLED), Quantity(bytes_per_s, "B/s", MODELLED)
    return LinkModel(link, alpha, beta, None, "assumed in the configuration, not measured")


def crossover_batch(backward: tuple[float, float], communication_s: float) -> float | None:
    """Return the batch of a rank whose backward pass takes as long as the communication.

    With a larger batch the communication (s) can be hidden behind the backward pass, with a smaller one it
    cannot. ``backward`` is the constant (s) and the slope (s/sample) of the time of the backward pass over
    the batch of a rank. The result is 0 if every batch is large enough, and None if the backward pass takes
    no longer for more samples.
    """
    constant, slope = backward
    return max(0.0, (communication_s - constant) / slope) if slope > 0 else None
