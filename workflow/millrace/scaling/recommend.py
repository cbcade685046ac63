"""Which layout to take for a deadline, a budget or a floor of efficiency, waiting included."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from millrace.scaling.quantity import MEASURED
from millrace.scaling.settings import Goal


@dataclass(frozen=True)
class Candidate:
    """A layout as a choice."""

    layout: str
    label: str
    wait_hours: float
    """Expected wait for the allocation."""
    wait_known: bool
    """Else ``wait_hours`` is the longest known one."""
    run_hours: float
    """To the target error."""
    device_hours: float
    money: float | None
    efficiency: float
    slow_run_hours: float
    """Upper end of the interval of ``run_hours``."""

    @property
    def hours(self) -> float:
        """From submission to the end."""
        return self.wait_hours + self.run_hours


@dataclass(frozen=True)
class Recommendation:
    """A layout and why; None: no layout keeps the limits."""

    layout: str | None
    sentence: str


def recommend(candidates: Sequence[Candidate], goal: Goal, currency: str) -> Recommendation:
    """Choose a layout.

    With a deadline, the cheapest layout that meets it; else the one that finishes first, within the budget
    and above the floor of efficiency. Cost is money if prices are given, else device-hours.
    """
    if goal.budget is not None and any(one.money is None for one in candidates):
        return Recommendation(
            None,
            "No layout is recommended: the budget is in money, and scaling.prices gives no price.",
        )
    kept = list(candidates)
    for name, keeps in _limits(goal).items():
        left = [one for one in kept if keeps(one)]
        if not left:
            return Recommendation(None, _nothing_left(kept, goal, name, currency))
        kept = left
    if goal.deadline_hours is not None:
        best = min(kept, key=lambda one: (_price(one), one.hours, one.layout))
        why = f"it is {_among(kept, 'cheapest')} to finish within {goal.deadline_hours:g} h"
    else:
        best = min(kept, key=lambda one: (one.hours, _price(one), one.layout))
        limits = _told(goal, currency)
        why = f"it is {_among(kept, 'soonest done')}" + (f" to {limits}" if limits else "")
    fastest = min(candidates, key=lambda one: one.run_hours)
    text = f"Take {best.layout}: {why}, after {best.hours:.3g} h"
    if best.wait_hours:
        text += f" of which {best.wait_hours:.3g} h in the queue"
        text += "" if best.wait_known else " (not known, the longest of the others)"
    text += f", for {_cost(best, currency)} at {best.efficiency:.0%} efficiency"
    if fastest.layout != best.layout and fastest.hours > best.hours:
        text += f"; {fastest.layout} would run faster but wait longer"
    if best.label != MEASURED:
        text += f"; the times of {best.layout} are {best.label}, so measure it first"
    late = (
        goal.deadline_hours is not None
        and best.wait_hours + best.slow_run_hours > goal.deadline_hours
    )
    return Recommendation(
        best.layout, text + ("; its interval reaches past the deadline." if late else ".")
    )


def pareto(candidates: Sequence[Candidate]) -> list[str]:
    """Layouts for which no other is both cheaper and sooner done, from soonest to cheapest."""
    order = sorted(candidates, key=lambda one: (one.hours, _price(one)))
    front: list[Candidate] = []
    for one in order:
        if not front or _price(one) < _price(front[-1]):
            front.append(one)
    return [one.layout for one in front]


def _limits(goal: Goal) -> dict[str, Callable[[Candidate], bool]]:
    """Tests of the limits that are set."""
    limits: dict[str, tuple[float | None, Callable[[Candidate, float], bool]]] = {
        "min_efficiency": (goal.min_efficiency, lambda one, floor: one.efficiency >= floor),
        "budget": (goal.budget, lambda one, most: one.money is not None and one.money <= most),
        "budget_device_hours": (
            goal.budget_device_hours,
            lambda one, most: one.device_hours <= most,
        ),
        "deadline_hours": (goal.deadline_hours, lambda one, most: one.hours <= most),
    }
    return {
        name: _test(keeps, limit) for name, (limit, keeps) in limits.items() if limit is not None
    }


def _test(keeps: Callable[[Candidate, float], bool], limit: float) -> Callable[[Candidate], bool]:
    return lambda one: keeps(one, limit)


def _nothing_left(kept: Sequence[Candidate], goal: Goal, name: str, currency: str) -> str:
    if name == "deadline_hours":
        best = min(kept, key=lambda one: one.hours)
        detail = f"none finishes within {goal.deadline_hours:g} h"
        detail += f", and {best.layout} is soonest with {best.hours:.3g} h"
    elif name == "min_efficiency":
        best = max(kept, key=lambda one: one.efficiency)
        detail = f"none reaches {goal.min_efficiency:.0%} efficiency"
        detail += f", and {best.layout} is best with {best.efficiency:.0%}"
    else:
        best = min(kept, key=_price)
        limit = (
            f"{goal.budget:g} {currency}"
            if name == "budget"
            else f"{goal.budget_device_hours:g} device-hours"
        )
        detail = f"none costs {limit} or less, and {best.layout} is cheapest with {_cost(best, currency)}"
    return f"No layout is recommended: {detail}."


def _told(goal: Goal, currency: str) -> str:
    told = []
    if goal.min_efficiency is not None:
        told.append(f"reach {goal.min_efficiency:.0%} efficiency")
    if goal.budget is not None:
        told.append(f"cost {goal.budget:g} {currency} or less")
    if goal.budget_device_hours is not None:
        told.append(f"take {goal.budget_device_hours:g} device-hours or less")
    return " and ".join(told)


def _price(one: Candidate) -> float:
    return one.device_hours if one.money is None else one.money


def _cost(one: Candidate, currency: str) -> str:
    return (
        f"{one.device_hours:.3g} device-hours"
        if one.money is None
        else f"{one.money:.3g} {currency}"
    )


def _among(kept: Sequence[Candidate], best: str) -> str:
    return "the only layout" if len(kept) == 1 else f"the {best} of {len(kept)} layouts"
