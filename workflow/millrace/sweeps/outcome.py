"""What is known of trials: their validation losses, read from the receipts of their milestones."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.sealed import read_sealed, write_sealed
from millrace.training.receipt import read_receipt

# Below so many trials at a milestone a median says little, and none is stopped.
_FEWEST = 4


@dataclass(frozen=True)
class Outcome:
    """A trial up to a milestone."""

    trial: str
    epoch: int
    """The milestone."""
    histories: tuple[Sequence[Mapping[str, Any]], ...]
    """Records of the epochs of each seed, with ``epoch`` and ``validation_loss``."""
    failure: str | None = None
    """Why one of its seeds could not be trained to the milestone."""

    def loss(self, epoch: int | None = None) -> float:
        """Return the lowest validation loss up to an epoch, the mean over seeds; infinite if it failed."""
        if self.failure is not None:
            return math.inf
        last = self.epoch if epoch is None else epoch
        return statistics.fmean(
            min(
                (r["validation_loss"] for r in records if r["epoch"] <= last and _is_loss(r)),
                default=math.inf,
            )
            for records in self.histories
        )


def _is_loss(record: Mapping[str, Any]) -> bool:
    return record["validation_loss"] is not None and math.isfinite(record["validation_loss"])


def read_outcomes(receipts: Iterable[Path | str]) -> list[Outcome]:
    """Read the receipts of trials, one for each seed, in the order of the trials.

    Raises `DataError` if one is damaged.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    milestones = {}
    for path in map(Path, receipts):
        receipt = read_receipt(path, ("experiment", "history"))
        trial = receipt["experiment"]
        found.setdefault(trial, []).append(receipt)
        # Not the epoch in the receipt: after early stopping it is an earlier one.
        milestones[trial] = int(path.stem.removeprefix("epoch_"))
    return [
        Outcome(
            trial,
            milestones[trial],
            tuple(one["history"] for one in several),
            next((one["failure"] for one in several if "failure" in one), None),
        )
        for trial, several in found.items()
    ]


def going_on(outcomes: Sequence[Outcome], current: Iterable[str], epoch: int) -> list[str]:
    """Return which of the current trials are trained beyond a milestone.

    Those whose loss is not above the median of all trials that got there, of this generation and earlier
    ones, if there are at least four, and that did not fail. A function of the losses alone: neither the
    order in which jobs ended nor how often they were repeated matters.
    """
    losses = {one.trial: one.loss(epoch) for one in outcomes if one.epoch >= epoch}
    median = statistics.median(losses.values()) if len(losses) >= _FEWEST else math.inf
    return [trial for trial in current if losses[trial] <= median and losses[trial] < math.inf]


def write_decision(
    receipts: Sequence[str], trials: Iterable[str], epoch: int, output: Path
) -> None:
    """Write which of the trials go on beyond a milestone, see `going_on`, and why."""
    outcomes = read_outcomes(receipts)
    losses = {one.trial: one.loss(epoch) for one in outcomes if one.epoch >= epoch}
    known = {trial: loss if loss < math.inf else None for trial, loss in losses.items()}
    write_sealed(output, {"going_on": going_on(outcomes, trials, epoch), "losses": known})


def read_trials(path: Path) -> dict[str, Any]:
    """Read what `write_decision`, or `millrace.sweeps.asking.write_trials`, wrote; raises `DataError`."""
    what = "the trials of a sweep"
    return read_sealed(
        path, what, "the workflow makes it", "delete it: the workflow makes it again"
    )


def ended(
    asked: Sequence[str], milestones: Sequence[int], decided: Callable[[int], Sequence[str]] | None
) -> dict[str, int]:
    """Return the trials of a generation with the milestone at which each ends.

    ``decided`` takes a milestone and returns the trials that go on; None: no trial is stopped.
    """
    *earlier, last = milestones
    found: dict[str, int] = {}
    current = list(asked)
    for epoch in earlier if decided else ():
        remaining = decided(epoch) if decided and current else []
        found |= {trial: epoch for trial in current if trial not in remaining}
        current = list(remaining)
    # In the order in which they were asked for.
    return {trial: found.get(trial, last) for trial in asked}
