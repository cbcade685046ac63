"""No-data values: numbers that stand for "no value", which no file declares.

Programs write such numbers where a cell is dry, inactive or outside the model (1e30, -999, 9.96921e36).
They are finite, and far from everything else. Two kinds are told from data:

* Usual ones (`is_usual`) at a single occurrence, if they lie outside the range of the other values by more
  than the spread of these (greatest minus least) and half their size; a usual negative one of several
  occurrences by a tenth of the spread, or if the others are hardly ever negative.
* Any other whole number of at least 90 that stands there three times or more, ten times as large as all
  others and 100 times their spread away from them.

A limit at which data are cut off (zero, sea water, saturation) or a constant boundary value is no such
number: it lies beside the others, is not as far away, or inside the range that its caller knows to be
possible.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from millrace.systems.settings import MissingConfig

_FILLS = (
    9.96921e36,
    9.9692099683868690e36,
    1.70141e38,
    3.4028235e38,
    2147483647,
    2147483648,
    32767,
    32768,
)
_FRACTIONS = ("999.25", "99.99", "999.9", "999.99", "9999.9", "9999.99", "999.999")
_SAME = 1e-6  # relative: what single precision makes of a number, or six written digits
_REPEATED, _FAR, _LARGER, _WRITTEN = 3, 100.0, 10.0, 90.0
_PEELS = 8  # different no-data values of one variable


@dataclass(frozen=True)
class Suspect:
    """A number that stands for "no value"."""

    value: float
    count: int
    """How often it stands there, in all pieces."""
    piece: int
    """Piece in which it stands first."""
    index: int
    """Position of the first one in that piece, of its flattened values."""
    others: tuple[float, float]
    """Least and greatest of all other values; NaN if there are none."""
    declared: bool
    """Whether it was given as such, not found."""

    def sentence(self, name: str, key: str, at: str = "", mask: str = "") -> str:
        """What is wrong and what to do, to follow a place in a file and a colon.

        ``key`` admits the value, if there is one, ``at`` is a place that the file does not tell, such as
        " at node 7", and ``mask`` what ``then: mask`` does, empty where there are no masks.
        """
        here = f"{self.value:g}{at} in {name!r}"
        if self.declared:
            return f"{here}, which {key} declares as no value; fill it or leave such places out"
        low, high = self.others
        rest = "there is no other" if np.isnan(low) else f"the others are {low:.6g} to {high:.6g}"
        times = "once" if self.count == 1 else f"{self.count} times"
        masked = f"{{value: {self.value:g}, then: mask}}, which {mask}, or " if mask else ""
        setting = f", or set {key} to {masked}{{value: {self.value:g}, then: keep}} if it is data"
        return (
            f"{here} looks like a no-data value: it stands there {times}, and {rest}; expected data; fill "
            f"such places or leave them out{setting if key else ''}"
        )


def is_usual(value: float) -> bool:
    """Whether programs use a number for "no value".

    These are fill values of NetCDF, GDAL and Surfer, limits of integers, powers of ten from 1e6 on, and
    two or more nines, or three or more eights or sevens, also with nines as decimals; of either sign.
    """
    size = abs(float(value))
    if any(abs(size - fill) <= _SAME * fill for fill in _FILLS):
        return True
    if size >= 1e6:
        power = 10.0 ** round(np.log10(size))
        if abs(size - power) <= _SAME * power:
            return True
    text = f"{size:.7g}"
    if text in _FRACTIONS:
        return True
    digits = set(text)
    return text.isdigit() and (
        (digits == {"9"} and len(text) >= 2) or (digits in ({"8"}, {"7"}) and len(text) >= 3)
    )


@dataclass
class Screening:
    """Looks for no-data values in one variable that is read piece by piece.

    Only the ends of the range of a piece are looked at, which takes as long as its least and greatest value
    where there is nothing to find.

    Parameters
    ----------
    declared : sequence of float
        Values that stand for "no value" for certain; they are suspects wherever they stand.
    kept : sequence of float
        Values that are data, whatever they look like.
    possible : (float, float), optional
        Range of values that the variable may take: inside, only usual ones are suspects, and outside these
        count as if they stood there several times.
    """

    declared: Sequence[float] = ()
    kept: Sequence[float] = ()
    possible: tuple[float, float] | None = None

    @classmethod
    def of(cls, missing: MissingConfig | None, possible: tuple[float, float] | None = None) -> Self:
        """Make one for the block ``missing`` of a dataset; values to mask are masked before."""
        value = () if missing is None else (missing.value,)
        then = "" if missing is None else missing.then
        return cls(value if then == "refuse" else (), value if then == "keep" else (), possible)

    _found: dict[float, list[int]] = field(default_factory=dict)  # value: count, piece, index
    _low: float = np.inf
    _high: float = -np.inf
    _pieces: int = 0

    def add(self, values: ArrayLike) -> None:
        """Add a piece of any shape; values that are not finite do not count."""
        piece, self._pieces = self._pieces, self._pieces + 1
        whole = np.asarray(values)
        if whole.size and not self.declared:
            # As a rule there is nothing to find, and values in any order of memory need no copy.
            ends = [float(whole.max()), float(whole.min())]
            if np.isfinite(ends).all() and not any(self._is_candidate(e, whole) for e in ends):
                self._high, self._low = max(self._high, ends[0]), min(self._low, ends[1])
                return
        flat = whole.ravel()
        open_ = np.isfinite(flat)
        if not open_.all():
            open_ = open_.copy()
        for value in self.declared:
            self._note(value, same(flat, value) & open_, open_, piece)
        for _ in range(_PEELS):
            rest = flat if open_.all() else flat[open_]
            if not rest.size:
                return
            ends = [float(rest.max()), float(rest.min())]
            wrong = [end for end in dict.fromkeys(ends) if self._is_candidate(end, rest)]
            if not wrong:
                self._high, self._low = max(self._high, ends[0]), min(self._low, ends[1])
                return
            for value in wrong:
                self._note(value, flat == value, open_, piece)

    @property
    def span(self) -> tuple[float, float] | None:
        """Least and greatest value of all pieces, without candidates; None if there are none."""
        return (self._low, self._high) if self._low <= self._high else None

    def to_json(self, place: Callable[[int, int], Any]) -> dict[str, Any]:
        """What was seen, for `add_seen`; ``place`` tells a place by its piece and index."""
        found = [[value, count, place(*at)] for value, (count, *at) in self._found.items()]
        return {"low": self._low, "high": self._high, "found": found}

    def add_seen(self, seen: Mapping[str, Any], places: list[Any]) -> None:
        """Add what another screening saw; ``places`` gets its places, which count as pieces here."""
        self._low, self._high = min(self._low, seen["low"]), max(self._high, seen["high"])
        for value, count, place in seen["found"]:
            self._found.setdefault(value, [0, len(places), 0])[0] += count
            places.append(place)

    def suspects(self) -> list[Suspect]:
        """No-data values of all pieces, the most frequent first."""
        low, high = self._low, self._high
        # What looked like one but is none belongs to the others: judged from the nearest to the farthest.
        plain = [] if low > high else [low, high]
        middle = float(np.mean(plain)) if plain else 0.0
        chosen = []
        for value in sorted(self._found, key=lambda one: abs(one - middle)):
            count, piece, index = self._found[value]
            declared = any(bool(same(np.array(value), one)) for one in self.declared)
            if declared or self._stands_out(value, count, plain):
                others = (min(plain), max(plain)) if plain else (np.nan, np.nan)
                chosen.append(Suspect(value, count, piece, index, others, declared))
            else:
                plain = [min([value, *plain]), max([value, *plain])]
        return sorted(chosen, key=lambda one: -one.count)

    def _note(
        self, value: float, at: NDArray[np.bool_], open_: NDArray[np.bool_], piece: int
    ) -> None:
        if count := int(np.count_nonzero(at)):
            entry = self._found.setdefault(value, [0, piece, int(np.argmax(at))])
            entry[0] += count
            open_ &= ~at

    def _is_candidate(self, value: float, rest: NDArray) -> bool:
        if any(bool(same(np.array(value), one)) for one in self.kept):
            return False
        if is_usual(value):
            return True
        if value != round(value) or abs(value) < _WRITTEN or self._is_possible(value):
            return False
        others = rest[rest != value]
        return bool(others.size) and _is_far(value, float(others.min()), float(others.max()))

    def _is_possible(self, value: float) -> bool:
        return self.possible is not None and self.possible[0] <= value <= self.possible[1]

    def _stands_out(self, value: float, count: int, plain: list[float]) -> bool:
        """Whether a value is far enough from the range of all others."""
        if not plain:  # a constant boundary may well be 99 or 999
            return value <= -_WRITTEN or value >= 1e10
        low, high = min(plain), max(plain)
        spread, size = high - low, max(abs(low), abs(high))
        distance = max(low - value, value - high)
        if not is_usual(value):
            return count >= _REPEATED and _is_far(value, low, high)
        if abs(value) >= 1e6:
            return abs(value) > _LARGER * size and distance > spread
        if value > 0:  # such as 99 beside 98
            return distance > max(2 * spread, size / 2) and spread > 0
        if distance > max(spread, size / 2):
            return True
        if self.possible is not None and not self._is_possible(value):
            count = max(count, _REPEATED)
        rarely_negative = low > value / 10 and (count >= _REPEATED or value <= -999)
        return rarely_negative or (count >= _REPEATED and distance > spread / 10)


def same(values: NDArray[Any], value: float) -> NDArray[np.bool_]:
    """Where values are a number, to the digits of single precision."""
    close: NDArray[np.bool_] = np.abs(values - value) <= _SAME * abs(value)
    return close


def _is_far(value: float, low: float, high: float) -> bool:
    spread, size = high - low, max(abs(low), abs(high))
    distance = max(low - value, value - high)
    return spread > 0 and distance > _FAR * spread and abs(value) > _LARGER * size
