"""One swept setting: its values, and how they are written in the name of a trial."""

import copy
import itertools
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from pydantic import Field

from millrace.config import Settings, as_number
from millrace.errors import ConfigError

_NUMBER = r"-?\d+(?:p\d+)?(?:e-?\d+)?"
_DIGITS = 3


class Range(Settings):
    """Numbers from ``low`` to ``high``: integers if both ends are."""

    low: int | float
    """The least."""
    high: int | float
    """The greatest."""
    log: bool = False
    """Draw the logarithm uniformly."""
    step: Annotated[int | float, Field(gt=0)] | None = None
    """Distance between values, counted from `low`; null: every number, rounded to three digits."""

    def model_post_init(self, _: Any) -> None:
        """Check that there is something between the ends."""
        if self.low >= self.high:
            raise ValueError(f"expected low below high, got {self.low!r} and {self.high!r}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log: true needs a low above 0 and no step")

    @property
    def whole(self) -> bool:
        """Whether all values are integers."""
        return all(isinstance(one, int) for one in (self.low, self.high, self.step or 1))

    @property
    def size(self) -> float:
        """Number of values; infinite for real numbers without a step."""
        if self.whole or self.step is not None:
            return (self.high - self.low) // (self.step or 1) + 1
        return math.inf

    def draw(self, rng: random.Random) -> int | float:
        """Return a value of a generator of random numbers."""
        if self.log:
            drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        elif self.size < math.inf:
            drawn = self.low + rng.randrange(int(self.size)) * (self.step or 1)
        else:
            drawn = rng.uniform(self.low, self.high)
        return self.rounded(drawn)

    def rounded(self, value: float) -> int | float:
        """Return a value as it stands in the configuration of a trial, within the range."""
        if self.whole:
            return int(min(max(round(value), self.low), self.high))
        # A step such as 0.1 is not exact in binary numbers. Narrow ranges need more digits.
        narrow = math.log10(max(abs(self.low), abs(self.high)) / (self.high - self.low))
        digits = 12 if self.step is not None else _DIGITS + max(0, math.ceil(narrow - 0.01))
        return float(min(max(float(f"{value:.{digits}g}"), self.low), self.high))


@dataclass(frozen=True)
class Parameter:
    """A swept setting.

    ``key`` is dotted, as ``train.learning_rate``; ``label`` is the part of it that stands in the names of
    trials. Values are a `Range`, or the texts and values of a list.
    """

    key: str
    label: str
    values: Range | Mapping[str, Any]

    @property
    def pattern(self) -> str:
        """Regular expression of this part of a trial's name, with one group: the value."""
        listed = (
            _NUMBER if isinstance(self.values, Range) else "|".join(map(re.escape, self.values))
        )
        return f"_{re.escape(self.label)}-({listed})"

    def text(self, value: Any) -> str:
        """Return the part of a trial's name that says its value."""
        known = {} if isinstance(self.values, Range) else self.values
        texts = (text for text, one in known.items() if one == value and type(one) is type(value))
        return f"_{self.label}-{next(texts, None) or text_of(value)}"

    def value(self, text: str) -> Any:
        """Return the value that a part of a name says."""
        if not isinstance(self.values, Range):
            return self.values[text]
        number = as_number(text.replace("p", "."), whole=True)
        return self.values.rounded(number)

    def draw(self, rng: random.Random) -> Any:
        """Return a value of a generator of random numbers."""
        if isinstance(self.values, Range):
            return self.values.draw(rng)
        return rng.choice(list(self.values.values()))

    @property
    def extremes(self) -> list[Any]:
        """Values that show whether all are allowed: the ends of a range, or all of a list."""
        if isinstance(self.values, Range):
            return [self.values.rounded(one) for one in (self.values.low, self.values.high)]
        return list(self.values.values())

    @property
    def size(self) -> float:
        """Number of values."""
        return self.values.size if isinstance(self.values, Range) else len(self.values)

    def own_value(self, block: Mapping[str, Any]) -> Any:
        """Return the value in the block of an experiment; None if it is none of those to try."""
        value: Any = block
        for name in self.key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        value = as_number(value, whole=True)
        if not isinstance(self.values, Range):
            return next((one for one in self.values.values() if one == value), None)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        return value if numeric and self.values.rounded(value) == value else None

    def set(self, block: dict[str, Any], value: Any) -> None:
        """Set the value in the block of an experiment."""
        *path, last = self.key.split(".")
        for name in path:
            block = block.setdefault(name, {})
            if not isinstance(block, dict):
                raise ConfigError(f"{self.key}: {name} holds no other keys")
        block[last] = copy.deepcopy(value)


def read_parameter(key: str, label: str, values: Any, where: str) -> Parameter:
    """Make a parameter from its values in the configuration: a list, or a mapping of a range.

    Raises `ConfigError` with ``where``, the place of the sweep in the configuration.
    """
    values = _with_numbers(values)
    if isinstance(values, Mapping):
        return Parameter(key, label, Range.parse(values, f"{where}.{key}"))
    if not isinstance(values, list) or not values:
        raise ConfigError(
            f"{where}.{key}: expected a list of values, or a range such as {{low: 0.1, high: 1}}, got "
            f"{values!r}"
        )
    texts: dict[str, Any] = {}
    for value in values:
        # Equal numbers, such as 1 and 1.0, give the same run.
        if any(
            value == one and isinstance(value, bool) == isinstance(one, bool)
            for one in texts.values()
        ):
            raise ConfigError(f"{where}.{key}: {value!r} stands there twice; leave one out")
        text = text_of(value)
        other = (f"{text}-{n}" for n in itertools.count(2))
        texts[text if text not in texts else next(one for one in other if one not in texts)] = value
    return Parameter(key, label, texts)


def text_of(value: Any) -> str:
    """Return a value as letters, digits and ``-``, which paths and names may hold: 0.25 is ``0p25``."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return "x".join(map(text_of, value))
    if isinstance(value, float):
        number = Decimal(repr(value)).normalize()
        plain = value == 0 or 0.01 <= abs(value) < 100_000
        return f"{number:{'f' if plain else 'e'}}".replace(".", "p").replace("+", "")
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return re.sub(r"[^A-Za-z0-9-]+", "-", str(value)) or "empty"


def _with_numbers(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _with_numbers(one) for key, one in values.items()}
    if isinstance(values, list):
        return [*map(_with_numbers, values)]
    return as_number(values, whole=True)
