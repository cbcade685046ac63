"""What an epoch and the way to the target error cost: time, device-hours, node-hours, money."""

from collections.abc import Iterable
from dataclasses import dataclass

from millrace.layout import Layout
from millrace.scaling.quantity import Quantity, Refusal


@dataclass(frozen=True)
class Cost:
    """Of an epoch, or of several. The intervals are those of the step."""

    seconds: Quantity
    device_hours: Quantity
    node_hours: Quantity
    money: Quantity | None
    """None: no price was given."""

    def times(self, epochs: float) -> "Cost":
        """Cost of several epochs."""
        return Cost(
            self.seconds.times(epochs, "s"),
            self.device_hours.times(epochs, "h"),
            self.node_hours.times(epochs, "h"),
            self.money and self.money.times(epochs, self.money.unit),
        )


def epoch_cost(
    step: Quantity,
    layout: Layout,
    steps_per_epoch: float,
    price: float | None,
    currency: str,
) -> Cost:
    """Cost of an epoch from the time of a step (s) and the price of a device-hour."""
    seconds = step.times(steps_per_epoch, "s")
    device_hours = seconds.times(layout.world_size / 3600, "h")
    return Cost(
        seconds,
        device_hours,
        seconds.times(layout.nodes / 3600, "h"),
        None if price is None else device_hours.times(price, currency),
    )


def epochs_to(history: Iterable[tuple[int, float]], target: float) -> int | Refusal:
    """First epoch whose validation error is at or below a target.

    Parameters
    ----------
    history : iterable of (epoch, error)
        As the receipt of a run holds it.
    target : float

    Returns
    -------
    int or Refusal
        Refused if the run did not get there.
    """
    seen = sorted((epoch, error) for epoch, error in history)
    reached = [epoch for epoch, error in seen if error <= target]
    if reached:
        return reached[0]
    best = min((error for _, error in seen), default=float("inf"))
    last = seen[-1][0] if seen else 0
    return Refusal(
        f"cost to a target error of {target:g}",
        f"it was not reached in {last} epochs (best {best:.3g})",
    )
