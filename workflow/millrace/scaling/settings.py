"""The block ``scaling`` of the configuration."""

from typing import Annotated, Any, Literal

from pydantic import Field

from millrace.config import (
    UNIQUE,
    Count,
    LayoutName,
    Layouts,
    Names,
    Positive,
    Seed,
    Settings,
    Text,
    option,
)

Efficiency = Annotated[float, Field(gt=0)]


class Goal(Settings):
    """What a recommended layout has to keep; null: no such limit."""

    deadline_hours: Positive | None = option(None, unit="h")
    """Longest time from submission to the target error, waiting in the queue included."""
    budget: Positive | None = option(None, unit="currency")
    """Highest cost, in the currency of the prices."""
    budget_device_hours: Positive | None = option(None, unit="h")
    """Most device-hours."""
    min_efficiency: Annotated[float, Field(gt=0, le=1)] | None = None
    """Lowest efficiency."""


class Link(Settings):
    """A link between devices."""

    latency_s: float = option(gt=0, unit="s")
    """Time that the smallest message takes."""
    bytes_per_s: float = option(gt=0, unit="bytes/s")
    """Bandwidth."""


class AnalysisSettings(Settings):
    """How measured runs are analysed; all keys may be left out."""

    layouts: Annotated[tuple[LayoutName, ...], *UNIQUE] = ()
    """Layouts that are predicted if they are not measured; refused beyond twice the most GPUs measured."""
    claims: dict[LayoutName, tuple[Efficiency, Efficiency]] = Field(
        default_factory=lambda: {"n1_gpu4": (0.95, 0.99), "n4_gpu1": (0.85, 0.95)}
    )
    """By layout: lowest and highest efficiency on GPUs that was claimed and is to be tested; by default
    those of n1_gpu4 (0.95 to 0.99) and n4_gpu1 (0.85 to 0.95)."""
    links: dict[Literal["intra", "inter"], Link] = option(
        default_factory=dict, examples=[{"inter": {"latency_s": 5.0e-5, "bytes_per_s": 1.1e9}}]
    )
    """`intra` (within a node) and `inter` (between nodes), to assume where no all-reduce was measured: the
    layouts of several nodes on one machine need it."""
    prices: dict[Text, Positive] = option(
        default_factory=dict, unit="currency/h", examples=[{"gpu": 2.5}]
    )
    """Of a device, by its name or its kind (`cpu`, `gpu`)."""
    currency: Text = "EUR"
    """Of the prices."""
    epochs: dict[Text, Positive] = option(
        default_factory=dict, unit="epochs", examples=[{"gino_head": 40}]
    )
    """By experiment: how many it needs to its target error; by default `train.epochs`."""
    queue_hours: dict[LayoutName, Annotated[float, Field(ge=0)]] = option(
        default_factory=dict, unit="h", examples=[{"n4_gpu1": 12}]
    )
    """By layout: expected wait for the allocation; replaces measured waits."""
    goal: Goal = Goal()
    """What the recommended layout has to keep."""
    loss_tolerance: float = option(1e-3, gt=0)
    """Largest relative difference of losses at the same step between layouts of equal global batch."""
    regression_tolerance: float = option(0.05, gt=0)
    """Relative change of the step time, against an earlier commit, from which on a step counts as slower or
    faster."""
    min_steps: Count = 30
    """Steps of a run below which its times are marked as few."""
    min_repeats: Count = 3
    """Repeats below which intervals are marked as few."""
    draws: int = option(2000, ge=200, le=10**6)
    """Bootstrap draws of the intervals."""
    seed: Seed = 0
    """Of these draws."""

    def model_post_init(self, _: Any) -> None:
        """Check that bands are bands."""
        for name, (low, high) in self.claims.items():
            if not low < high:
                raise ValueError(
                    f"claims.{name}: expected the lowest and the highest efficiency, as in [0.85, 0.95], "
                    f"got {[low, high]}"
                )

    def price(self, device_name: str, device_kind: str) -> float | None:
        """Return the price of a device-hour; None: not given."""
        return self.prices.get(device_name, self.prices.get(device_kind))


class ScalingSettings(AnalysisSettings):
    """What the target `scaling_report` measures, and what its report is asked to say.

    A measurement is a job of its own: it trains some steps with the real samples of the experiment, and
    leaves no weights. Measured layouts must fit on the machine or the cluster; the others are
    predicted, and the report says so with every number.
    """

    experiments: Names = ()
    """Experiments to measure; by default those of `run` without a block `parallel`. To measure divided
    models, name them, on layouts of their size."""
    measure: Layouts = ("n1_gpu1",)
    """Layouts that are measured; the smallest is the base of all efficiencies. Fits of scaling laws
    need four different numbers of GPUs."""
    modes: Annotated[tuple[Literal["strong", "weak"], ...], Field(min_length=1), *UNIQUE] = (
        "strong",
        "weak",
    )
    """`strong`: the global batch of the experiment on every layout; `weak`: that batch on every rank."""
    repeats: int = option(3, ge=1, le=1000)
    """Runs of each, for the intervals."""
    steps: int = option(30, ge=2, le=10**6, unit="steps")
    """Timed in each run, after a warm-up that ends when steps take equally long."""
