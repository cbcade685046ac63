"""Division of samples into training, validation and test, and statistics of the training period."""

import bisect
import math
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from millrace.errors import ConfigError
from millrace.systems.settings import SplitConfig

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Floats = NDArray[np.float64]

MINIMUM_STD = 1e-6
"""Smallest standard deviation, relative to max(1, |mean|): a field that does not vary in the training
period must not be divided by rounding errors."""

_REORDERED_BYTES = 256 << 10


def time_split(n_steps: int, split: SplitConfig) -> NDArray[np.int64]:
    """Divide steps into ranges, so that no window of up to ``gap`` + 1 steps touches two of them.

    Returns half-open ranges of training, validation and test, int64[3, 2]; raises `ConfigError` if a range
    would be empty or shorter than the gap.
    """
    ranges = _ranges(n_steps, split)
    shortest = int((ranges[:, 1] - ranges[:, 0]).min())
    if shortest < max(1, split.gap):
        raise ConfigError(
            f"split: {n_steps} steps in fractions {split.train} and {split.validation} with gaps of "
            f"{split.gap} leave a range of {max(0, shortest)} steps; expected at least "
            f"{max(1, split.gap)}, shorten the gap or use more steps"
        )
    return ranges


def check_periods(n_steps: int, split: SplitConfig, window: int) -> None:
    """Raise `ConfigError` if a period of ``n_steps`` steps is shorter than the gap or a window.

    The message names the largest gap that fits, if there is one that is not too short for the window, and a
    number of steps that is enough for the given one.
    """

    def shortest(gap: int) -> int:
        ranges = _ranges(n_steps, split.replaced(gap=gap))
        return int((ranges[:, 1] - ranges[:, 0]).min())

    def fits(gap: int) -> bool:
        return shortest(gap) >= max(gap, window)

    if fits(split.gap):
        return
    # A longer gap makes all periods shorter.
    largest = bisect.bisect_left(range(n_steps // 2 + 1), True, key=lambda gap: not fits(gap)) - 1
    remedy = (
        f"the largest gap that fits is {largest}"
        if largest >= window - 1
        else "no gap fits, shorten the window"
    )
    smallest = min(split.train, split.validation, 1 - split.train - split.validation)
    enough = 2 * split.gap + math.ceil(round(max(split.gap, window) / smallest, 6))
    raise ConfigError(
        f"{n_steps} steps in fractions {split.train} and {split.validation} with gaps of {split.gap} leave "
        f"a period of {max(0, shortest(split.gap))} steps, where the gap and a window of {window} steps "
        f"have to fit: {remedy}, or use {enough:,} steps or more"
    )


def _ranges(n_steps: int, split: SplitConfig) -> NDArray[np.int64]:
    """Half-open ranges of `time_split`, whether they make sense or not."""
    used = n_steps - 2 * split.gap
    # Rounding removes the binary error first: 0.7 * 30 is 20.999999999999996.
    train, both = (
        math.floor(round(fraction * used, 6))
        for fraction in (split.train, split.train + split.validation)
    )
    start = np.array([0, train + split.gap, both + 2 * split.gap])
    stop = np.array([train, both + split.gap, n_steps])
    return np.stack([start, stop], axis=1)


class Moments:
    """Running mean and standard deviation of columns, in double precision.

    Sums are taken relative to the first values, so that a mean that is large compared with the deviation
    costs no digits.
    """

    def __init__(self, columns: int) -> None:
        self._count, self._shift, self._sum, self._square = np.zeros((4, columns))

    def add(self, values_NC: NDArray, mask_NC: NDArray | None = None) -> None:
        """Add rows; a value whose mask is 0 does not count."""
        values = np.asarray(values_NC, dtype=np.float64)
        weight = None if mask_NC is None else mask_NC.astype(np.float64)
        count = self.count_of(values, weight)
        begins = (self._count == 0) & (count > 0)
        if begins.any():
            self._shift = np.where(begins, self.shift_of(values, weight), self._shift)
        total, square = self.terms(values, self._shift, weight)
        self._count += count
        self._sum += total
        self._square += square

    @staticmethod
    def count_of(values_NC: Floats, weight_NC: Floats | None = None) -> Floats:
        """Values of each column, without those of weight 0."""
        if weight_NC is None:
            return np.full(values_NC.shape[1], float(len(values_NC)))
        return np.asarray(weight_NC.sum(axis=0))

    @staticmethod
    def shift_of(values_NC: Floats, weight_NC: Floats | None = None) -> Floats:
        """Value of each column that sums are taken relative to, of the rows that are added first."""
        if weight_NC is None:
            return np.ascontiguousarray(values_NC).sum(axis=0) / max(1, len(values_NC))
        return (values_NC * weight_NC).sum(axis=0) / np.maximum(weight_NC.sum(axis=0), 1)

    @staticmethod
    def terms(
        values_NC: Floats,
        shift_C: Floats,
        weight_NC: Floats | None = None,
        out: Floats | None = None,
    ) -> tuple[Floats, Floats]:
        """Sums of the rows and of their squares, less ``shift_C``; see `of_terms`.

        ``out`` is overwritten, in place of new memory; it may be ``values_NC``, as which it lies in memory.
        """
        deviation = np.subtract(values_NC, shift_C, out=out)
        if weight_NC is not None:
            deviation = deviation * weight_NC
        # The last digits of sums depend on the order in memory. Statistics of earlier versions were
        # multiplied with weights, which brought small arrays into this one.
        elif deviation.nbytes < _REORDERED_BYTES:
            deviation = np.ascontiguousarray(deviation)
        total = deviation.sum(axis=0)
        return total, np.square(deviation, out=deviation).sum(axis=0)

    @classmethod
    def of_terms(
        cls, rows: int | Floats, shift_C: Floats, sum_TC: Floats, square_TC: Floats
    ) -> Self:
        """As if rows had been added T times, whose `terms` were made apart, in this order.

        ``rows`` is their number, or that of each time and column, [T, C].
        """
        made = cls(len(shift_C))
        made._shift = np.array(shift_C)
        counts = np.broadcast_to(rows, sum_TC.shape)
        for count, total, square in zip(counts, sum_TC, square_TC, strict=True):
            made._count += count
            made._sum += total
            made._square += square
        return made

    @property
    def mean(self) -> Floats:
        """Mean of each column; 0 if nothing was added."""
        return self._shift + self._sum / np.maximum(self._count, 1)

    @property
    def std(self) -> Floats:
        """Standard deviation of each column (population); 0 if nothing was added."""
        count = np.maximum(self._count, 1)
        variance = self._square / count - (self._sum / count) ** 2
        return np.sqrt(np.maximum(variance, 0))
