"""The ``scaling:`` block of the configuration: what the report is asked to say."""

from dataclasses import dataclass, field
from typing import Any

from millrace.errors import ConfigError
from millrace.layout import Layout
from millrace.scaling.records import LINKS


@dataclass(frozen=True)
class Goal:
    """The ``scaling.goal`` block: what a layout has to keep to be recommended; None: no such limit."""

    deadline_hours: float | None = None
    """From submission to the target error, waiting in the queue included."""
    budget: float | None = None
    """In the currency of the prices."""
    budget_device_hours: float | None = None
    min_efficiency: float | None = None

    def __post_init__(self) -> None:
        for name in ("deadline_hours", "budget", "budget_device_hours", "min_efficiency"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"scaling.goal.{name}: expected a positive number, got {value}")


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
    """By experiment: epochs that it needs to its target error."""
    queue_hours: dict[str, Any] = field(default_factory=dict)
    """By layout: expected wait for the allocation; takes the place of measured waits."""
    goal: Goal = field(default_factory=Goal)
    loss_tolerance: float = 1e-3
    """Largest relative difference of losses at the same step between layouts of equal global batch."""
    regression_tolerance: float = 0.05
    """Relative change of the time of a step that counts as a change."""
    min_steps: int = 30
    min_repeats: int = 3
    draws: int = 2000
    """Of the bootstrap."""
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
            if (
                name not in LINKS
                or not isinstance(link, dict)
                or {*link} != {"latency_s", "bytes_per_s"}
            ):
                raise ConfigError(
                    f"scaling.links.{name}: expected intra or inter with latency_s and bytes_per_s, "
                    f"got {link!r}"
                )
        numbers = {
            **{
                f"links.{name}.{key}": v
                for name, link in self.links.items()
                for key, v in link.items()
            },
            **{
                f"{block}.{k}": v
                for block in ("prices", "epochs")
                for k, v in getattr(self, block).items()
            },
        }
        for key, value in numbers.items():
            if not _is_number(value) or value <= 0:
                raise ConfigError(f"scaling.{key}: expected a positive number, got {value!r}")
        for name, value in self.queue_hours.items():
            if not _is_number(value) or value < 0:
                raise ConfigError(
                    f"scaling.queue_hours.{name}: expected hours, 0 or more, got {value!r}"
                )
        if self.draws < 200:
            raise ConfigError(f"scaling.draws: expected 200 or more, got {self.draws}")

    def price(self, device_name: str, device_kind: str) -> float | None:
        """Price of a device-hour; None: not given."""
        return self.prices.get(device_name, self.prices.get(device_kind))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
