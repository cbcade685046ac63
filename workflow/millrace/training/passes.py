"""Forward and backward passes of a rank's samples, for losses and gradients."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from millrace.models.spec import ModelSpec
from millrace.training.ahead import Ahead
from millrace.training.batches import (
    BatchPlan,
    GlobalBatch,
    RankShare,
    micro_batches,
    rank_shares,
    sample_seeds,
)
from millrace.training.config import ExecutionConfig, TrainConfig
from millrace.training.distributed import Ranks
from millrace.training.phases import Mark
from millrace.training.precision import LossScaler, autocast
from millrace.training.replay import Draw, Replay
from millrace.training.store import Position

if TYPE_CHECKING:
    from millrace.training.parallel.divided import DividedModel


class Dataset(Protocol):
    """Samples as the engine sees them: groups of samples that share a geometry."""

    group_costs: np.ndarray
    """Computing time of a sample of each group, in any unit, [G]."""

    def groups(self, split: Any) -> np.ndarray:
        """Number of samples of each group, int64[G]."""

    def batch(self, split: Any, group: int, index: np.ndarray, weight: Any = None) -> Any:
        """Gather samples of a group; the result has ``weight_B``."""


@dataclass(frozen=True, eq=False)
class Passes:
    """A model, its samples and the ranks it is trained on."""

    spec: ModelSpec
    model_config: Any
    """An instance of ``spec.config``."""
    dataset: Dataset
    config: TrainConfig
    execution: ExecutionConfig
    seed: int
    ranks: Ranks
    module: nn.Module
    """The model without wrappers for training."""
    trained: nn.Module
    """``module`` as called in training; among replicas its backward pass exchanges gradients."""
    divided: "DividedModel | None"
    """How the module is divided among ranks; None: each has a replica."""
    scaler: LossScaler
    replay: Replay | None
    """Forecasts to start from; None: all samples start from data."""
    mark: Mark
    _ahead: dict[tuple[str, int], Ahead] = field(default_factory=dict)
    """Of the batches that are iterated over, by split and epoch."""

    def iterate(
        self, split: str, plan: BatchPlan, epoch: int, start: int = 0
    ) -> Iterator[GlobalBatch]:
        """Iterate over the batches of an epoch from ``start`` on, and gather the next samples meanwhile."""
        foreseen = None
        if self.replay is not None and split == "train":
            foreseen = self.replay.foreseen()
        steps = enumerate(plan.epoch(epoch, start), epoch * len(plan) + start)
        wanted = (
            (part, partial(self.samples, split, part, epoch))
            if foreseen is None
            else (part, partial(foreseen, part, step))
            for step, batch in steps
            for part in self._parts(batch)
        )
        with Ahead(wanted) as ahead:
            self._ahead[split, epoch] = ahead
            try:
                yield from plan.epoch(epoch, start)
            finally:
                if self._ahead.get((split, epoch)) is ahead:
                    del self._ahead[split, epoch]

    def backward(self, batch: GlobalBatch, position: Position) -> Tensor:
        """Add up the gradients of this rank's samples; returns their part of the mean loss of the batch.

        Ranks may have different numbers of micro-batches, but each has a last one. Only the last one
        exchanges gradients, so that no rank waits for another that has no micro-batches left.
        """
        if self.divided is not None:
            return self._backward_divided(self.divided, self._parts(batch), position)
        total = torch.zeros((), device=self.ranks.device)
        *first, last = self._parts(batch)
        without_exchange: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if first and isinstance(self.trained, DistributedDataParallel):
            without_exchange = self.trained.no_sync()
        with without_exchange:
            for part in first:
                total += self._backward_part(part, position, self.ranks.world_size)
        return total + self._backward_part(last, position, self.ranks.world_size)

    def loss_sum(self, batch: GlobalBatch, position: Position) -> float:
        """Sum of the validation losses of this rank's samples; the sum over ranks is that of the batch."""
        parts = self._parts(batch)
        if self.divided is not None and self.divided.is_pipeline:
            samples = [self._taken("validation", part, position) for part in parts]
            return float(self._through_stages(self.divided, samples)) / self.divided.counted
        losses = (
            self._losses("validation", part, position, self.module).double().sum() for part in parts
        )
        return sum(map(float, losses)) / (self.divided.counted if self.divided else 1)

    def samples(self, split: str, part: RankShare, epoch: int) -> Any:
        """Gather samples, with their random numbers of this epoch; that of validation is always 0."""
        samples = self.dataset.batch(split, part.group, part.index, part.weight)
        if self.spec.add_noise is not None:
            # Validation uses the same random numbers in every epoch: its losses can be compared.
            seeds = sample_seeds(self.seed, split, epoch, part.group, part.index)
            samples = self.spec.add_noise(self.model_config, samples, seeds)
        return samples

    def _taken(self, split: str, part: RankShare, position: Position) -> Any:
        """`samples`, which may have been gathered already."""
        # Validation is the same in every epoch.
        epoch = position.epoch if split == "train" else 0
        ahead = self._ahead.get((split, epoch))
        gather = partial(self.samples, split, part, epoch)
        if ahead is None:
            return gather()
        gathered = ahead.take(part)
        return ahead.instead(gather) if gathered is None else gathered

    def _replayed(self, replay: Replay, part: RankShare, position: Position) -> tuple[Any, Draw]:
        """Samples of which some start from forecasts; all but these may have been gathered already."""
        ahead = self._ahead.get(("train", position.epoch))
        foreseen, windows = (None if ahead is None else ahead.take(part)) or (None, None)
        if foreseen is None or foreseen.lots.step != position.step:
            draw = replay.draw(replay.lots(part, position.step))
        else:
            draw = replay.draw(foreseen.lots)
        # It is another than was foreseen if a forecast was not finite.
        if foreseen is None or not np.array_equal(foreseen.start, draw.start):
            gather = partial(replay.gather, draw)
            windows = gather() if ahead is None else ahead.instead(gather)
        return replay.fill(windows, draw), draw

    def _parts(self, batch: GlobalBatch) -> list[RankShare]:
        """This rank's micro-batches of a batch."""
        size = self.execution.micro_batch
        if self.divided is None:
            return micro_batches(rank_shares(batch, self.ranks.rank, self.ranks.world_size), size)
        # All samples of a model that can be divided belong to one group.
        [share] = rank_shares(batch, self.divided.data_rank, self.divided.data_size)
        share = self.divided.padded(share, self.config.global_batch)
        if self.divided.is_pipeline:
            size = len(share.index) // (self.divided.config.micro_batches or 1)
        return micro_batches([share], size)

    def _backward_part(self, part: RankShare, position: Position, factor: float) -> Tensor:
        loss = self._losses("train", part, position, self.trained).sum() / part.batch_size
        self.mark("backward")
        # Gradients are averaged over the ranks, but the sum of the ranks' parts is needed.
        (loss * factor * self.scaler.scale).backward()
        return loss.detach()

    def _backward_divided(
        self, divided: "DividedModel", parts: list[RankShare], position: Position
    ) -> Tensor:
        if divided.is_pipeline:
            samples = [self._taken("train", part, position) for part in parts]
            size = parts[0].batch_size
            factor = divided.loss_factor * self.scaler.scale / size
            total = self._through_stages(divided, samples, factor) / size
        else:
            total = torch.zeros((), device=self.ranks.device)
            for number, part in enumerate(parts, start=1):
                divided.exchanging(number == len(parts))
                total += self._backward_part(part, position, divided.loss_factor)
        divided.finish_gradients()
        return total / divided.counted  # other processes report the same loss

    def _through_stages(
        self, divided: "DividedModel", samples: list[Any], backward: float | None = None
    ) -> Tensor:
        """Sum of the losses, the same on all ranks of the pipeline.

        ``backward`` is the factor on the losses in the backward pass; None: there is no backward pass.
        """
        factor = 1.0 if backward is None else backward

        def loss(output: Tensor, part: Any) -> Tensor:
            assert self.spec.division is not None
            loss_B = self.spec.division.loss(self.module, output, part, self.config.loss)
            return (loss_B * part.weight_B).sum() * factor

        with self._autocast():
            return divided.run(samples, loss, backward is not None) / factor

    def _losses(self, split: str, part: RankShare, position: Position, model: nn.Module) -> Tensor:
        """Loss of each sample, [B]; 0 for those that do not count."""
        self.mark("data")
        if self.execution.has_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        if self.replay is not None and split == "train":
            assert self.spec.continued is not None
            samples, draw = self._replayed(self.replay, part, position)
            self.mark("forward")
            with self._autocast():
                loss_B, past = self.spec.continued(model, samples, self.config.loss)
            self.replay.keep(draw, past)
        else:
            samples = self._taken(split, part, position)
            self.mark("forward")
            with self._autocast():
                loss_B = self.spec.loss(model, samples, self.config.loss)
        return loss_B * samples.weight_B

    def _autocast(self) -> torch.autocast:
        # FSDP collects the gradients of a unit when the gradients of its inputs are complete. If
        # micro-batches, or the steps of a rollout, shared rounded weights, the gradients of these would
        # arrive later and could be lost.
        cache = self.divided is None or self.divided.config.dp_shard == 1
        return autocast(self.config.precision, self.ranks.device, cache)
