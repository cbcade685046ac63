"""Recommendation of a layout for a deadline, a budget or a least efficiency."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from millrace.scaling.quantity import MEASURED
from millrace.scaling.settings import Goal


@dataclass(frozen=True)
class Candidate:
    """A layout that may be recommended."""

    layout: str
    label: str
    """Label of its times, see `millrace.scaling.quantity.LABELS`."""
    wait_hours: float
    """Expected wait for the allocation."""
    wait_known: bool
    """Whether that is the wait of this layout; otherwise it is the longest known one of the others."""
    run_hours: float
    """Time to the target error."""
    device_hours: float
    money: float | None
    efficiency: float
    slow_run_hours: float
    """Upper end of the interval of ``run_hours``."""

    @property
    def hours(self) -> float:
        """Time from submission to the end."""
        return self.wait_hours + self.run_hours


@dataclass(frozen=True)
class Recommendation:
    """A layout and the reason; None: no layout respects the limits."""

    layout: str | None
    sentence: str


class _Limit(NamedTuple):
    """A limit of the goal: a value of each candidate that may not exceed a bound."""

    what: str
    """Infinitive, for sentences."""
    bound: float
    value: Callable[[Candidate], float]
    show: Callable[[Candidate], str]


def recommend(candidates: Sequence[Candidate], goal: Goal, currency: str) -> Recommendation:
    """Choose a layout.

    With a deadline, it is the cheapest layout that meets it, otherwise the one that finishes first; both
    within the budget and with the least efficiency. The cost is money if prices are given, otherwise
    device-hours.
    """
    if goal.budget is not None and any(one.money is None for one in candidates):
        return Recommendation(
            None,
            "No layout is recommended: the budget is in money, and scaling.prices gives no price.",
        )
    kept, limits = list(candidates), list(_limits(goal, currency))
    for limit in limits:
        closest = min(kept, key=limit.value)
        if limit.value(closest) > limit.bound:
            detail = f"{closest.layout} comes closest with {limit.show(closest)}"
            return Recommendation(
                None, f"No layout is recommended: the goal is to {limit.what}, and {detail}."
            )
        kept = [one for one in kept if limit.value(one) <= limit.bound]
    if goal.deadline_hours is not None:
        best = min(kept, key=lambda one: (_price(one), one.hours, one.layout))
        order = "cheapest"
    else:
        best = min(kept, key=lambda one: (one.hours, _price(one), one.layout))
        order = "first to finish"
    text = f"Take {best.layout}: it is the {order} of {len(kept)} layouts"
    if len(kept) == 1:
        text = f"Take {best.layout}: it is the only layout"
    if limits:
        text += " to " + " and ".join(limit.what for limit in limits)
    text += f", after {best.hours:.3g} h"
    if best.wait_hours:
        text += f" of which {best.wait_hours:.3g} h in the queue"
        text += "" if best.wait_known else " (not known, the longest of the others)"
    text += f", for {_cost(best, currency)} at {best.efficiency:.0%} efficiency"
    fastest = min(candidates, key=lambda one: one.run_hours)
    if fastest.layout != best.layout and fastest.hours > best.hours:
        text += f"; {fastest.layout} would run faster but wait longer"
    if best.label != MEASURED:
        text += f"; the times of {best.layout} are {best.label}, so measure it first"
    if goal.deadline_hours and best.wait_hours + best.slow_run_hours > goal.deadline_hours:
        text += "; its interval reaches past the deadline"
    return Recommendation(best.layout, f"{text}.")


def pareto(candidates: Sequence[Candidate]) -> list[str]:
    """Return the layouts for which no other is both cheaper and earlier to finish, fastest first."""
    front: list[Candidate] = []
    for one in sorted(candidates, key=lambda one: (one.hours, _price(one))):
        if not front or _price(one) < _price(front[-1]):
            front.append(one)
    return [one.layout for one in front]


def _limits(goal: Goal, currency: str) -> Iterator[_Limit]:
    """Limits that are set, in the order in which they are applied."""
    if goal.min_efficiency is not None:
        yield _Limit(
            f"reach {goal.min_efficiency:.0%} efficiency",
            -goal.min_efficiency,
            lambda one: -one.efficiency,
            lambda one: f"{one.efficiency:.0%}",
        )
    if goal.budget is not None:
        what = f"cost {goal.budget:g} {currency} or less"
        yield _Limit(what, goal.budget, _price, lambda one: _cost(one, currency))
    if (hours := goal.budget_device_hours) is not None:
        yield _Limit(
            f"take {hours:g} device-hours or less",
            hours,
            lambda one: one.device_hours,
            lambda one: f"{one.device_hours:.3g} device-hours",
        )
    if (hours := goal.deadline_hours) is not None:
        what = f"finish within {hours:g} h"
        yield _Limit(what, hours, lambda one: one.hours, lambda one: f"{one.hours:.3g} h")


def _price(one: Candidate) -> float:
    return one.device_hours if one.money is None else one.money


def _cost(one: Candidate, currency: str) -> str:
    unit = "device-hours" if one.money is None else currency
    return f"{_price(one):.3g} {unit}"
