"""Blocks of datasets that are the same for all systems, without numpy and torch."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from millrace.config import Settings, Share, Text, option


class SplitConfig(Settings):
    """Periods of training, validation and test, in this order in time.

    Statistics for the normalisation are those of the training period.
    """

    train: Share
    """Share of the steps that are used for training."""
    validation: Share
    """Share for validation; the test period takes the rest."""
    gap: int = option(0, ge=0, le=10**9, unit="steps")
    """Left out between the periods, at least a window of every experiment; independent samples need
    none."""

    def model_post_init(self, _: Any) -> None:
        """Check that something is left to test."""
        if self.train + self.validation >= 1:
            raise ValueError(
                f"train = {self.train} and validation = {self.validation}: expected fractions above 0 "
                "whose sum is below 1, the test takes the rest"
            )


class MissingConfig(Settings):
    """A number that stands for "no value", or one that looks like it; found ones are refused."""

    value: float
    """As it is written in the raw files, such as -999."""
    then: Literal["refuse", "keep"] = "refuse"
    """`refuse` it wherever it stands, or `keep` it as data."""


def with_missing(dataset: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """Add the key ``missing`` of a dataset to the settings of its extraction, if it is there."""
    value = dataset.get("missing")
    return {**section, **({} if value is None else {"missing": value})}


Parts = Annotated[int | None, Field(ge=1, le=10_000)]
"""Jobs that extract samples; None: by the size of the raw files."""


class DatasetSettings(Settings):
    """What all datasets have; each raw format adds its keys."""

    source: Text
    """`demo`, or the directory that holds the raw files."""
    format: Text = "feflow_csv"
    """What the raw files are."""
    demo: dict[str, Any] = option(default_factory=dict)
    """The simulator, for the source `demo`; ignored for others."""


class SplitDatasetSettings(DatasetSettings):
    """A dataset whose samples lie in time, or are independent, and are split by shares."""

    split: SplitConfig
    """Shares of the steps for training, validation and test."""
