"""Settings of the analysis of a scaling study, from the section ``scaling`` of the configuration."""

from dataclasses import asdict, dataclass, field
from typing import Any

from millrace.errors import ConfigError
from millrace.layout import Layout
from millrace.scaling.records import LINKS


@dataclass(frozen=True)
class Goal:
    """The section ``scaling.goal``: limits that a recommended layout respects; None: no such limit."""

    deadline_hours: float | None = None
    """Longest time from submission to the target error, waiting in the queue included."""
    budget: float | None = None
    """Highest cost, in the currency of the prices."""
    budget_device_hours: float | None = None
    min_efficiency: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None:
                _check_number(f"goal.{name}", value)


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis; all have a default."""

    layouts: tuple[str, ...] = ()
    """Layouts to predict if they were not measured."""
    claims: dict[str, Any] = field(
        default_factory=lambda: {"n1_gpu4": [0.95, 0.99], "n4_gpu1": [0.85, 0.95]}
    )
    """By layout: lowest and highest efficiency on GPUs that was claimed and is to be tested."""
    links: dict[str, Any] = field(default_factory=dict)
    """By kind, intra or inter: ``latency_s`` and ``bytes_per_s`` to assume where none was measured."""
    prices: dict[str, Any] = field(default_factory=dict)
    """Price of a device-hour by name of the device, or by its kind, cpu or gpu."""
    currency: str = "EUR"
    epochs: dict[str, Any] = field(default_factory=dict)
    """By experiment: epochs until the target error is reached."""
    queue_hours: dict[str, Any] = field(default_factory=dict)
    """By layout: expected wait for the allocation; replaces measured waits."""
    goal: Goal = field(default_factory=Goal)
    loss_tolerance: float = 1e-3
    """Largest relative difference of losses at the same step between layouts of equal global batch."""
    regression_tolerance: float = 0.05
    """Relative change of the step time from which a step counts as slower or faster."""
    min_steps: int = 30
    min_repeats: int = 3
    draws: int = 2000
    """Number of bootstrap draws."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (*self.layouts, *self.claims, *self.queue_hours):
            Layout.parse(name)
        for name, band in self.claims.items():
            if not (isinstance(band, list | tuple) and len(band) == 2 and 0 < band[0] < band[1]):
                raise ConfigError(
                    f"scaling.claims.{name}: expected the lowest and the highest efficiency, as in "
                    f"[0.85, 0.95], got {band!r}"
                )
        for name, link in self.links.items():
            is_link = isinstance(link, dict) and {*link} == {"latency_s", "bytes_per_s"}
            if name not in LINKS or not is_link:
                raise ConfigError(
                    f"scaling.links.{name}: expected intra or inter with latency_s and bytes_per_s, "
                    f"got {link!r}"
                )
        positive = {"prices": self.prices, "epochs": self.epochs}
        positive |= {f"links.{name}": link for name, link in self.links.items()}
        for section, values in positive.items():
            for key, value in values.items():
                _check_number(f"{section}.{key}", value)
        for name, value in self.queue_hours.items():
            _check_number(f"queue_hours.{name}", value, zero=True)
        if self.draws < 200:
            raise ConfigError(f"scaling.draws: expected 200 or more, got {self.draws}")

    def price(self, device_name: str, device_kind: str) -> float | None:
        """Return the price of a device-hour; None: not given."""
        return self.prices.get(device_name, self.prices.get(device_kind))


def _check_number(key: str, value: Any, zero: bool = False) -> None:
    """Raise `ConfigError` unless the value is a positive number, or zero where that is allowed."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or value < 0 or (value == 0 and not zero):
        expected = "a number of 0 or more" if zero else "a positive number"
        raise ConfigError(f"scaling.{key}: expected {expected}, got {value!r}")
