"""Which of all possible forecasts are made: those of a period, or some scenarios, or the first ones."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator

from millrace.config import Count, Settings, Text
from millrace.data.split import SPLITS
from millrace.errors import ConfigError

_DATE = r"\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d)?)?)?)?)?"
_SECONDS = 86400
_ROUNDING = 1e-6
"""Relative difference of numbers that a user means as the same."""


def _as_text(value: Any) -> Any:
    """What YAML takes for a number or a date."""
    plain = isinstance(value, int | float | date) and not isinstance(value, bool)
    return str(value) if plain else value


class Selection(Settings):
    """Which forecasts are made."""

    times: Annotated[Text | None, BeforeValidator(_as_text)] = None
    """Those whose last given state, or field, is of these times: one, `FIRST..LAST` with both, `FIRST..`
    or `..LAST`; each begins where the one before ends, unless there is a `stride`. Dates, of which
    `2020-01` is all of January, or numbers in the unit of the series. Or a period of the training, such as
    `validation`: forecasts within it to their last step."""
    limit: Count | None = None
    """At most so many forecasts, the first ones."""


@dataclass(frozen=True)
class Period:
    """Times from ``low`` on, and before ``high``, in the unit of a series; dates are days since 1970."""

    low: float = -np.inf
    high: float = np.inf
    name: str = ""
    """As the user gave it; empty: all times."""
    whole: bool = False
    """Whether forecasts lie within it to their last step, not only the time of the last given state."""

    def holds(self, first: Any, last: Any) -> NDArray[np.bool_]:
        """Which forecasts are meant, by the times of their first given states and of the last forecast.

        Without ``whole`` both are the times of their last given states.
        """
        return (np.asarray(first) >= self.low) & (np.asarray(last) < self.high)

    def nothing(self, time: NDArray[Any], is_date: bool) -> ConfigError:
        """What to say if no forecast is meant; ``time`` are those that could have been."""
        if not len(time):
            has = "there are no forecasts of any time"
        else:
            ends = f"{_shown(time[0], is_date)} to {_shown(time[-1], is_date)}"
            has = f"forecasts are possible from {len(time)} times, {ends}"
        return ConfigError(f"times {self.name}: no forecast is of this period; {has}")


def period_of(times: str | None, recipe: Mapping[str, Any], is_date: bool) -> Period:
    """The period that `Selection.times` means for a model, see `millrace.data.recipe`.

    Raises `ConfigError` if it is none.
    """
    if times is None:
        return Period()
    if times in SPLITS:
        if "periods" not in recipe:
            raise ConfigError(
                f"times {times}: the checkpoint does not say which period that was, because it is of an "
                "earlier version or its samples are no single series; give dates or numbers, FIRST..LAST"
            )
        low, high = recipe["periods"][times]
        margin = 1e-9 * max(1.0, abs(low), abs(high))
        return Period(low - margin, high + margin, times, whole=True)
    first, dots, last = (part.strip() for part in times.partition(".."))
    if is_date:
        bounds = partial(_dates, given=times)
    else:
        bounds = partial(_numbers, given=times, step=recipe.get("time_step", np.inf))
    low = bounds(first)[0] if first else -np.inf
    high = bounds(last)[1] if last else np.inf
    if not dots:
        high = bounds(first)[1]
    if (dots and not first and not last) or low >= high:
        raise ConfigError(f"times {times}: expected FIRST..LAST, the earlier one first")
    return Period(low, high, times)


def _dates(text: str, given: str) -> tuple[float, float]:
    """Begin and end of a date, or of a month and so on, in days since 1970."""
    known = re.fullmatch(_DATE, text.removesuffix("Z"))
    try:
        moment = np.datetime64(text.removesuffix("Z")) if known else None
    except ValueError:  # the 13th month
        moment = None
    if moment is None:
        raise ConfigError(
            f"times {given}: {text!r} is no date; expected such as 2020-01-31 or 2020-01-31T06, or "
            f"FIRST..LAST, or one of {', '.join(SPLITS)}"
        )
    one: Any = np.timedelta64(1, np.datetime_data(moment)[0])  # type: ignore[call-overload]
    ends = moment, moment + one
    # Half a second before: days as numbers are not exact.
    low, high = (
        float((end - np.datetime64(0, "s")) / np.timedelta64(1, "s")) - 0.5 for end in ends
    )
    return low / _SECONDS, high / _SECONDS


def _numbers(text: str, given: str, step: float) -> tuple[float, float]:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ConfigError(
            f"times {given}: {text!r} is no number; expected a time in the unit of the series, or "
            f"FIRST..LAST, or one of {', '.join(SPLITS)}"
        )
    margin = min(_ROUNDING * max(1.0, abs(value)), step / 4)
    return value - margin, value + margin


def _shown(time: float, is_date: bool) -> str:
    if not is_date:
        return f"{time:g}"
    moment = np.datetime64(round(float(time) * _SECONDS), "s")
    return str(moment).removesuffix(":00")
